package fuzz

import (
	"errors"
	"fmt"
	"syscall"

	"github.com/google/uuid"

	"github.com/bttnbd/bttnbd/btt"
	"github.com/bttnbd/bttnbd/layout"
	"github.com/bttnbd/bttnbd/pmem"
	"github.com/bttnbd/bttnbd/pmem/pmemtest"
)

// The world is one arena of 20 KiB: 23 blocks of two cache lines, 8 lanes in two
// words of the pool. Small, because every crash image is looked at whole; the
// engine does not know it is not 512 GiB.
const (
	sector = 128
	nfree  = 8
	arena  = 20 << 10
)

// lbas are the blocks that are used: two neighbours in one map line, and one
// under another map lock.
var lbas = [3]int{0, 1, 17}

// The lane words that operations start from.
const (
	lowLanes  = 0
	highLanes = 1
)

// The flavours of the world. Pools have blocks as small as namespaces here; and
// one image has the padding of old kernels, which a single lane tells.
var (
	pmemblk    = small(layout.PMEMBLK)
	oldPadding = renamed(layout.UEFI, "uefi padding {0,2}")
	flavours   = []layout.Flavour{pmemblk, layout.Kernel, layout.UEFI, oldPadding}
)

func small(f layout.Flavour) layout.Flavour {
	f.Align, f.MinBlock = layout.Kernel.Align, 0
	return f
}

func renamed(f layout.Flavour, name string) layout.Flavour {
	f.Name = name
	return f
}

func paddingOf(f layout.Flavour) layout.Padding {
	if f == oldPadding {
		return layout.PaddingOld
	}
	return layout.PaddingNew
}

var formatted = map[string][]byte{}

func init() {
	for _, f := range flavours {
		formatted[f.Name] = formatImage(f)
	}
}

func formatParams(f layout.Flavour) btt.FormatParams {
	return btt.FormatParams{Flavour: f, SectorSize: sector, Nfree: nfree, UUID: uuid.UUID{1}, Zeroed: true, MinArena: arena, MaxArena: arena}
}

func formatImage(f layout.Flavour) []byte {
	buf := make([]byte, f.Start+arena)
	if err := btt.Format(pmem.NewTraced(buf, nil), formatParams(f)); err != nil {
		panic(err)
	}
	if paddingOf(f) == layout.PaddingOld {
		tellOldPadding(buf, f)
	}
	return buf
}

// tellOldPadding makes the last lane one that has written, to a block that the
// world does not use, under the padding {0,2}.
func tellOldPadding(buf []byte, f layout.Flavour) {
	const lba, lane = 5, nfree - 1
	r := pmem.NewTraced(buf, nil)
	geo := parts(r, f)
	base := r.Size() - arena
	g := layout.InitialFlogGroup(lane, geo.ExternalNLBA)
	free := g[0].Old.Block()
	g[layout.PaddingOld] = layout.FlogRecord{LBA: lba, Old: f.LoggedOld(0, lba), New: f.LoggedNew(free), Seq: 2}
	g.Encode(buf[base+geo.FlogOff+lane*layout.FlogGroupSize:])
	r.Store32(base+geo.MapOff+lba*4, uint32(layout.NormalEntry(free)))
}

func open(m *pmemtest.Machine) (*btt.Device, error) {
	return btt.Open(m.Region(), btt.Options{MaxArena: arena})
}

// op is one operation on the device, and what it does to the blocks it touches.
type op struct {
	kind  opKind
	block int // index into lbas
	lanes uint32
}

type opKind byte

const (
	opWrite     opKind = iota // one whole block
	opGroup                   // all three blocks in one group
	opPart                    // 24 bytes across the line boundary inside a block
	opZero                    // one block
	opZeroes                  // the range from block 0 to 17, two map lines
	opError                   // mark a block bad
	opReopen                  // close and open
	opSetFlag                 // arena error flag on …
	opClearFlag               // … and off
	opRead                    // one block; only in schedules: sequences read everything anyway
)

func (o op) String() string {
	name := [...]string{"write", "group", "part", "zero", "zeroes", "error", "reopen", "setflag", "clearflag", "read"}[o.kind]
	switch o.kind {
	case opWrite, opPart, opZero, opError, opRead:
		return fmt.Sprintf("%s(%d,lanes %d)", name, lbas[o.block], o.lanes)
	}
	return name
}

// alphabet is what sequences are made of.
var alphabet = []op{
	{opWrite, 0, lowLanes}, {opWrite, 0, highLanes}, {opWrite, 1, lowLanes}, {opWrite, 2, highLanes},
	{opGroup, 0, lowLanes}, {opPart, 0, highLanes}, {opZero, 0, lowLanes}, {opZeroes, 0, lowLanes},
	{opError, 1, lowLanes}, {kind: opReopen}, {kind: opSetFlag}, {kind: opClearFlag},
}

const partAt, partLen = 52, 24

// world is a device in use and what it has promised.
type world struct {
	m       *pmemtest.Machine
	d       *btt.Device
	now     promise
	inError bool // the arena error flag is set
	writes  int  // ids given out
}

// newWorld is a freshly formatted device.
func newWorld(f layout.Flavour) *world { return newWorldOn(pmemtest.New(formatted[f.Name])) }

// newWorldOn is the device that a machine holds, on which nothing was written yet.
func newWorldOn(m *pmemtest.Machine) *world {
	w := &world{m: m}
	for i := range w.now {
		w.now[i] = []content{zero}
	}
	if err := w.open(); err != nil {
		panic(err)
	}
	return w
}

func (w *world) open() (err error) {
	w.d, err = open(w.m)
	return err
}

// effect is what an operation makes of one block.
type effect struct {
	block int // index into lbas
	apply func(content) content
}

// effects are what o does when it is write number id and nothing forbids it.
func (o op) effects(id int) (es []effect) {
	put := func(i int, c content) { es = append(es, effect{i, func(content) content { return c }}) }
	switch o.kind {
	case opWrite:
		put(o.block, written(id, lbas[o.block]))
	case opGroup:
		for i, lba := range lbas {
			put(i, written(id, lba))
		}
	case opPart:
		es = append(es, effect{o.block, func(c content) content {
			if c.bad {
				return c // refused
			}
			return c.patched(id, lbas[o.block], partAt, partLen)
		}})
	case opZero:
		put(o.block, zero)
	case opZeroes:
		for i := range lbas {
			put(i, zero)
		}
	case opError:
		put(o.block, content{bad: true})
	}
	return es
}

// during is what is promised while o is in flight, and what after it.
func (w *world) during(o op) (during, after promise) {
	during, after = w.now, w.now
	if w.inError {
		return during, after
	}
	for _, e := range o.effects(w.writes + 1) {
		c := e.apply(w.now[e.block][0])
		during = during.with(e.block, c)
		after[e.block] = []content{c}
	}
	return during, after
}

// do carries o out. It fails when the device does something else than it should.
func (w *world) do(o op) error {
	refused := w.refuses(o)
	_, after := w.during(o)
	w.writes++
	w.m.Lanes = o.lanes
	err := w.call(o, w.writes)
	switch {
	case refused && !errors.Is(err, syscall.EIO):
		return fmt.Errorf("%v: got %v, want EIO", o, err)
	case !refused && err != nil:
		return fmt.Errorf("%v: %w", o, err)
	}
	w.now = after
	switch o.kind {
	case opSetFlag:
		w.inError = true
	case opClearFlag:
		w.inError = false
	case opReopen:
		if failed := w.d.Stats().ArenasFailed > 0; failed != w.inError {
			return fmt.Errorf("reopened: the error flag of the arena is %v, want %v", failed, w.inError)
		}
	}
	return nil
}

// refuses reports whether o must fail: the arena is in error, or part of a bad
// block is to be kept.
func (w *world) refuses(o op) bool {
	return w.inError && o.kind <= opError || o.kind == opPart && w.now[o.block][0].bad
}

func (w *world) call(o op, id int) error {
	lba := lbas[o.block]
	at := int64(lba) * sector
	switch o.kind {
	case opWrite:
		c := written(id, lba)
		return w.writeAt(c.data[:], at)
	case opGroup:
		var offs []int64
		var data [][]byte
		for _, lba := range lbas {
			c := written(id, lba)
			offs, data = append(offs, int64(lba)*sector), append(data, c.data[:])
		}
		errs := make([]error, len(lbas))
		w.d.WriteGroup(offs, data, errs)
		return errors.Join(errs...)
	case opPart:
		c := written(id, lba)
		return w.writeAt(c.data[partAt:partAt+partLen], at+partAt)
	case opZero:
		return w.d.ZeroAt(at, sector)
	case opZeroes:
		return w.d.ZeroAt(0, int64(lbas[2]+1)*sector)
	case opError:
		return w.d.SetError(layout.ExternalLBA(lba))
	case opReopen:
		return w.open()
	case opSetFlag:
		return w.d.SetArenaError(0, true)
	case opClearFlag:
		return w.d.SetArenaError(0, false)
	}
	panic("unknown operation")
}

func (w *world) writeAt(p []byte, off int64) error {
	_, err := w.d.WriteAt(p, off)
	return err
}

// read reads block i.
func (w *world) read(i int) (c content, err error) {
	_, err = w.d.ReadAt(c.data[:], int64(lbas[i])*sector)
	if errors.Is(err, syscall.EIO) {
		return content{bad: true}, nil
	}
	return c, err
}

// readAll reads every block, checks it against the promise, and from then on
// promises what was read: a crash may not take it back.
func (w *world) readAll() error {
	for i := range lbas {
		c, err := w.read(i)
		if err != nil {
			return fmt.Errorf("read of block %d: %w", lbas[i], err)
		}
		if err := w.now.keeps(i, c); err != nil {
			return err
		}
		w.now[i] = []content{c}
	}
	return nil
}
