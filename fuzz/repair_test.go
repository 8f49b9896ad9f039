package fuzz

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"syscall"
	"testing"

	"github.com/bttnbd/bttnbd/btt"
	"github.com/bttnbd/bttnbd/check"
	"github.com/bttnbd/bttnbd/layout"
	"github.com/bttnbd/bttnbd/pmem"
	"github.com/bttnbd/bttnbd/pmem/pmemtest"
)

// hurt is an image whose metadata is going to be damaged.
type hurt struct {
	buf []byte
	f   layout.Flavour
	geo layout.Geometry
}

// newHurt is an image in which every block was written and no block is where it was.
func newHurt(f layout.Flavour) *hurt {
	h := &hurt{buf: slices.Clone(formatted[f.Name]), f: f}
	m := pmemtest.New(h.buf)
	d, err := open(m)
	if err != nil {
		panic(err)
	}
	in, err := layout.DecodeInfo(h.buf[f.Start:])
	if err != nil {
		panic(err)
	}
	h.geo = in.Geometry()
	n := int(h.geo.ExternalNLBA)
	for i := 0; i < 3*n; i += 4 {
		var offs []int64
		var data [][]byte
		for j := range 4 {
			lba := (i + j) * (n - 1) % n
			c := written(i+j+1, lba)
			offs, data = append(offs, int64(lba)*sector), append(data, c.data[:])
		}
		m.Lanes = uint32(i / 4 % 2)
		if d.WriteGroup(offs, data, make([]error, 4)); m.Undurable() != nil {
			panic("not durable")
		}
	}
	h.buf = slices.Clone(m.Peek())
	return h
}

func (h *hurt) entryAt(lba uint32) []byte { return h.buf[h.f.Start+h.geo.MapOff+4*uint64(lba):] }

func (h *hurt) entry(lba uint32) layout.MapEntry {
	return layout.MapEntry(binary.LittleEndian.Uint32(h.entryAt(lba)))
}

func (h *hurt) put(lba uint32, e layout.MapEntry) {
	binary.LittleEndian.PutUint32(h.entryAt(lba), uint32(e))
}

func (h *hurt) group(lane int) []byte {
	return h.buf[h.f.Start+h.geo.FlogOff+uint64(lane)*layout.FlogGroupSize:][:layout.FlogGroupSize]
}

// lane alters a lane; cur is its current record, other the one before.
func (h *hurt) lane(lane int, fn func(g *layout.FlogGroup, cur, other int)) {
	g := layout.DecodeFlogGroup(h.group(lane))
	cur, err := g.Current(layout.PaddingNew)
	if err != nil {
		panic(err)
	}
	fn(&g, cur, 1-cur)
	g.Encode(h.group(lane))
}

func (h *hurt) free(lane int) (b layout.PostmapLBA) {
	h.lane(lane, func(g *layout.FlogGroup, cur, _ int) { b = g[cur].Old.Block() })
	return b
}

// interrupt logs a write to lba in a lane, but leaves the map as it is.
func (h *hurt) interrupt(lane int, lba uint32) {
	free := h.free(lane)
	h.lane(lane, func(g *layout.FlogGroup, cur, other int) {
		g[other] = layout.FlogRecord{
			LBA: layout.PremapLBA(lba), Old: h.f.LoggedOld(h.entry(lba), layout.PremapLBA(lba)),
			New: h.f.LoggedNew(free), Seq: layout.NextSeq(g[cur].Seq),
		}
	})
}

func (h *hurt) info(backup bool) []byte {
	if backup {
		return h.buf[h.f.Start+h.geo.InfoOff:][:layout.InfoSize]
	}
	return h.buf[h.f.Start:][:layout.InfoSize]
}

// repaired are the flavours of which images are damaged.
var repaired = []layout.Flavour{layout.Kernel, layout.UEFI, pmemblk}

var hurts = []struct {
	name string
	fn   func(h *hurt)
}{
	{"two blocks share one", func(h *hurt) { h.put(3, h.entry(20)) }},
	{"three blocks and a lane share one", func(h *hurt) {
		h.put(2, layout.NormalEntry(h.free(1)))
		h.put(3, h.entry(2))
		h.put(22, layout.ZeroEntry(h.free(1)))
	}},
	{"a block and a lane share one", func(h *hurt) { h.put(3, layout.NormalEntry(h.free(2))) }},
	{"out of range", func(h *hurt) { h.put(3, layout.NormalEntry(1<<20)); h.put(19, layout.NormalEntry(1<<21)) }},
	{"flags lost", func(h *hurt) { h.put(3, h.entry(3)&layout.BlockMask) }},
	{"equal sequence numbers", func(h *hurt) {
		for lane := range 2 {
			h.lane(lane, func(g *layout.FlogGroup, cur, other int) { g[other].Seq = g[cur].Seq })
		}
	}},
	{"wild sequence number", func(h *hurt) { h.lane(1, func(g *layout.FlogGroup, cur, _ int) { g[cur].Seq = 9 }) }},
	{"lane zeroed", func(h *hurt) { clear(h.group(5)) }},
	{"older record taken", func(h *hurt) {
		h.lane(1, func(g *layout.FlogGroup, cur, other int) { g[cur].Seq, g[other].Seq = g[other].Seq, g[cur].Seq })
	}},
	{"padding used", func(h *hurt) { h.lane(1, func(g *layout.FlogGroup, _, _ int) { g[2].LBA, g[3].Seq = 1, 2 }) }},
	{"other padding", func(h *hurt) {
		h.lane(1, func(g *layout.FlogGroup, _, _ int) { g[2] = g[1]; g[1] = layout.FlogRecord{} })
	}},
	{"lone record with another number", func(h *hurt) {
		h.lane(1, func(g *layout.FlogGroup, cur, _ int) { *g = layout.FlogGroup{g[cur]}; g[0].Seq = 2 })
	}},
	{"old out of range", func(h *hurt) { h.lane(1, func(g *layout.FlogGroup, cur, _ int) { g[cur].Old = 1 << 20 }) }},
	{"lba out of range in a write", func(h *hurt) {
		h.interrupt(1, 4)
		h.lane(1, func(g *layout.FlogGroup, cur, _ int) { g[cur].LBA = 1 << 20 })
	}},
	{"interrupted, and its block taken", func(h *hurt) {
		h.interrupt(0, 4)
		h.interrupt(3, 9)
		h.put(17, layout.NormalEntry(h.geoFree(0)))
	}},
	{"interrupted twice", func(h *hurt) { h.interrupt(0, 4); h.interrupt(1, 4) }},
	{"primary lost", func(h *hurt) { clear(h.info(false)) }},
	{"backup lost", func(h *hurt) { clear(h.info(true)) }},
	{"both checksums", func(h *hurt) { h.info(false)[300], h.info(true)[300] = 1, 1 }},
	{"error flag and a shared block", func(h *hurt) {
		layout.PatchFlags(h.info(false), layout.FlagError)
		layout.PatchFlags(h.info(true), layout.FlagError)
		h.put(3, h.entry(20))
	}},
	{"everything", func(h *hurt) {
		h.interrupt(0, 4)
		layout.PatchFlags(h.info(true), layout.FlagError)
		clear(h.info(false)[:64])
		h.put(3, h.entry(20))
		h.put(7, layout.NormalEntry(1<<20))
		h.put(8, layout.NormalEntry(h.free(2)))
		h.lane(3, func(g *layout.FlogGroup, cur, other int) { g[other].Seq = g[cur].Seq })
	}},
}

// geoFree is the block that the interrupted write of a lane has filled.
func (h *hurt) geoFree(lane int) (b layout.PostmapLBA) {
	h.lane(lane, func(g *layout.FlogGroup, cur, _ int) { b = g[cur].New.Block() })
	return b
}

// readings is what each block reads as; an I/O error is bad.
type readings []content

// read opens a copy of an image and reads all of it; nil if it does not open.
func (h *hurt) read(image []byte) readings {
	r := pmem.NewTraced(slices.Clone(image), nil)
	d, err := btt.Open(r, btt.Options{MaxArena: arena})
	if err != nil {
		return nil
	}
	all := make(readings, h.geo.ExternalNLBA)
	for lba := range all {
		_, err := d.ReadAt(all[lba].data[:], int64(lba)*sector)
		if err != nil && !errors.Is(err, syscall.EIO) {
			panic(err)
		}
		if err != nil {
			all[lba] = content{bad: true}
		}
	}
	return all
}

// anyInfo reports whether one of an image's info blocks is.
func (h *hurt) anyInfo(image []byte) bool {
	_, primary := layout.DecodeInfo(image[h.f.Start:])
	_, backup := layout.DecodeInfo(image[h.f.Start+h.geo.InfoOff:])
	return primary == nil || backup == nil
}

// promised is what each block may read as while a damaged image is repaired: what
// the damaged map says, or the outcome of an interrupted write.
func (h *hurt) promised() []readings {
	all := make([]readings, h.geo.ExternalNLBA)
	for lba := range h.geo.ExternalNLBA {
		e := h.entry(lba)
		add := func(e layout.MapEntry) {
			block := e.Owned(layout.PremapLBA(lba))
			switch {
			case e.State() == layout.Zero || e.State() == layout.Initial && h.f.InitialZero:
				all[lba] = append(all[lba], zero)
			case e.State() != layout.Error && uint32(block) < h.geo.InternalNLBA:
				var c content
				copy(c.data[:], h.buf[h.f.Start+h.geo.DataOff+uint64(block)*uint64(h.geo.InternalLBASize):])
				all[lba] = append(all[lba], c)
			}
		}
		add(e)
		for lane := range nfree {
			for _, r := range layout.DecodeFlogGroup(h.group(lane)) {
				if uint32(r.LBA) == lba && r.Moves() && r.Old.Block() == e.Owned(r.LBA) {
					add(layout.NormalEntry(r.New.Block()))
				}
			}
		}
	}
	return all
}

// repairRun explores crashes of the repair of one damaged image.
type repairRun struct {
	h                    *hurt
	before               []readings // see promised
	lost                 []uint64   // what the repair costs if nothing comes between
	after                readings
	images, kills, opens int
	spare                [3]*pmemtest.Machine
	rnd                  *rand.Rand
}

func repairImage(r *pmem.Region) (*check.Report, error) {
	return check.Repair(context.Background(), r, check.RepairOptions{Options: check.Options{MaxArena: arena}})
}

// Goal: a repair that is cut short at any drain, by a power cut or a kill, shows no
// reader anything but what was there before or an error; run again it ends clean, at
// the loss of the same blocks and no others; the same holds for the second run.
func TestRepairCrash(t *testing.T) {
	t.Parallel()
	images, kills, opens := 0, 0, 0
	for _, f := range repaired {
		for _, c := range hurts {
			t.Run(f.Name+"/"+c.name, func(t *testing.T) {
				h := newHurt(f)
				c.fn(h)
				x := &repairRun{h: h, before: h.promised(), rnd: rand.New(rand.NewPCG(1, 2))}
				whole := slices.Clone(h.buf)
				rep, err := repairImage(pmem.NewTraced(whole, nil))
				if err != nil || rep.After == nil || !rep.After.Clean() || len(rep.Plan.Refused) > 0 {
					t.Fatalf("without a crash: %+v, %v", rep, err)
				}
				x.lost, x.after = rep.Plan.Lost(), h.read(whole)
				if err := x.judge(x.after); err != nil || x.after == nil {
					t.Fatalf("without a crash: %v", err)
				}
				for _, lba := range x.lost {
					if !x.after[lba].bad {
						t.Errorf("block %d is named as lost, and can be read", lba)
					}
				}
				if err := x.explore(pmemtest.New(h.buf), 1); err != nil {
					t.Fatal(err)
				}
				images, kills, opens = images+x.images, kills+x.kills, opens+x.opens
			})
		}
	}
	t.Logf("%d damages, %d crash images, %d kills, %d of the images opened in between", len(repaired)*len(hurts), images, kills, opens)
	if wholeCampaign() {
		atLeast(t, "images", images, 8_000)
		atLeast(t, "kills", kills, 150)
		atLeast(t, "images opened in between", opens, 3_200)
	}
}

// judge checks what readers see against what they may see.
func (x *repairRun) judge(got readings) error {
	for lba, c := range got {
		if !c.bad && !slices.Contains(x.before[lba], c) {
			return fmt.Errorf("block %d: %s; promised: %s", lba, c.describe(lba, x.before[lba]), describeAll(lba, x.before[lba]))
		}
	}
	return nil
}

// explore repairs m and looks at every image of a crash at each drain, the last one
// behind the repair; depth is how many further crashes are tried on top of each.
func (x *repairRun) explore(m *pmemtest.Machine, depth int) error {
	m.OnDrain = func() error { return x.crash(m, depth) }
	rep, err := repairImage(m.Region())
	m.OnDrain = nil
	if err != nil {
		return err
	}
	if dirty := m.Undurable(); model() == full && len(dirty) > 0 && rep.Repaired > 0 {
		return fmt.Errorf("the repair has returned, but lines at %d are not durable", dirty)
	}
	if err := x.ends(m, rep); err != nil {
		return err
	}
	return x.crash(m, 0)
}

// crash looks at all images of a power cut of m at this moment, and at one kill.
func (x *repairRun) crash(m *pmemtest.Machine, depth int) error {
	if model() == noCrash {
		return nil
	}
	for o := newFates(); ; {
		x.spare[depth] = m.Crash(o, x.spare[depth])
		x.images++
		if err := x.resume(x.spare[depth], depth); err != nil {
			return fmt.Errorf("power cut before drain %d: %w", m.Count.Drains, err)
		}
		if !o.Next() {
			break
		}
	}
	if depth == 0 || !model().exhaustive() {
		return nil
	}
	x.kills++
	if err := x.explore(m.Kill(pmemtest.Random{Rand: x.rnd}), depth-1); err != nil {
		return fmt.Errorf("kill before drain %d: %w", m.Count.Drains, err)
	}
	return nil
}

// resume opens what a crash has left, if it can be, and then repairs it.
func (x *repairRun) resume(m *pmemtest.Machine, depth int) error {
	r := m.Region()
	line := make([]byte, pmemtest.LineSize)
	for off := x.h.geo.MapOff; off < x.h.geo.InfoOff; off += pmemtest.LineSize {
		r.Read(line, x.h.f.Start+off)
	}
	for _, off := range [...]uint64{0, x.h.geo.InfoOff} { // apart, so that each can be torn
		r.Read(make([]byte, layout.InfoSize), x.h.f.Start+off)
	}
	image := m.Peek()
	if x.h.anyInfo(x.h.buf) && !x.h.anyInfo(image) {
		return errors.New("there was a sound info block, and now there is none")
	}
	got := x.h.read(image)
	if got != nil {
		x.opens++
	}
	if err := x.judge(got); err != nil {
		return fmt.Errorf("opened in between: %w", err)
	}
	if depth > 0 && model().exhaustive() {
		return x.sampled(m)
	}
	rep, err := repairImage(r)
	if err != nil {
		return err
	}
	return x.ends(m, rep)
}

// sampled repairs m with a second crash somewhere.
func (x *repairRun) sampled(m *pmemtest.Machine) error {
	at := x.rnd.IntN(4)
	m.OnDrain = func() error {
		if at--; at != 0 {
			return nil
		}
		x.images++
		return x.resume(m.Crash(pmemtest.Random{Rand: x.rnd}, nil), 0)
	}
	rep, err := repairImage(m.Region())
	m.OnDrain = nil
	if err != nil {
		return err
	}
	return x.ends(m, rep)
}

// ends checks that a repaired image is what it is without a crash.
func (x *repairRun) ends(m *pmemtest.Machine, rep *check.Report) error {
	if last := rep.After; last != nil && !last.Clean() || last == nil && !rep.Clean() {
		return fmt.Errorf("not clean after the repair: %+v, refused %+v", rep, rep.Plan.Refused)
	}
	got := x.h.read(m.Peek())
	for lba := range x.after {
		if got == nil || got[lba] != x.after[lba] && !bytes.Equal(got[lba].data[:], x.after[lba].data[:]) || got[lba].bad != x.after[lba].bad {
			return fmt.Errorf("block %d ends otherwise than without a crash", lba)
		}
	}
	return nil
}
