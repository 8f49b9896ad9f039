package fuzz

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/bttnbd/bttnbd/btt"
	"github.com/bttnbd/bttnbd/check"
	"github.com/bttnbd/bttnbd/layout"
	"github.com/bttnbd/bttnbd/pmem"
	"github.com/bttnbd/bttnbd/pmem/pmemtest"
)

// Arenas that an image grows by here have 16 to 24 KiB, so that they differ from the
// first, of 20.
const (
	growMin = 16 << 10
	growMax = 24 << 10
)

var growParams = btt.GrowParams{MinArena: growMin, MaxArena: growMax}

// growCase is an image, in a container that has become larger, of which something is
// left where the new arenas will be.
type growCase struct {
	name   string
	more   int
	behind func(space []byte, before []byte)
	zeroed bool
}

var growCases = []growCase{
	{name: "one arena in zeros", more: growMax, zeroed: true},
	{name: "two arenas in zeros", more: growMax + growMin + 4096, zeroed: true},
	{name: "one arena in ones", more: growMax, behind: func(space, _ []byte) { copy(space, bytes.Repeat([]byte{0xff}, len(space))) }},
	// Its flog has gone round: a record that is left stands for something.
	{name: "one arena in what another one was", more: arena, behind: func(space, before []byte) { copy(space, before[len(before)-arena:]) }},
}

// Goal: a crash at any moment of a growth leaves the image that was there, or the one
// that has grown: with all that was in it, new blocks that read as zeros, sound to
// bttcheck, that goes on and can be grown again. Which one it is, is not taken back,
// also by the loss of a primary info block. Method: every image of every crash in a
// growth, and in the one after it.
func TestGrowCrash(t *testing.T) {
	t.Parallel()
	parent := t
	for _, f := range []layout.Flavour{layout.Kernel, layout.UEFI} {
		for i, c := range growCases {
			if f == layout.Kernel && i > 0 {
				break // begins elsewhere, and does the same
			}
			t.Run(f.Name+" by "+c.name, func(t *testing.T) {
				if !beside(t, parent) {
					return
				}
				before, was := growable(f)
				image := append(slices.Clone(before), make([]byte, c.more)...)
				if c.behind != nil {
					c.behind(image[len(before):], before)
				}
				g := &growing{was: was, params: growParams, outcomes: map[string]int{}}
				g.params.Zeroed = c.zeroed
				if err := g.run(pmemtest.New(image), 1); err != nil {
					t.Fatal(err)
				}
				t.Logf("%d images: %v", g.images, g.outcomes)
				if model().exhaustive() && (g.outcomes["old"] == 0 || g.outcomes["new"] == 0 || g.outcomes["pair"] == 0 || g.outcomes["torn"] == 0) {
					t.Errorf("not every outcome was seen: %v", g.outcomes)
				}
			})
		}
	}
}

// growable is an image of one arena, every block of which has been written, some of
// them often, and what they hold.
func growable(f layout.Flavour) (image, content []byte) {
	image = make([]byte, int(f.Start)+arena)
	r := pmem.NewTraced(image, nil)
	if err := btt.Format(r, formatParams(f)); err != nil {
		panic(err)
	}
	d, err := openGrown(r)
	if err != nil {
		panic(err)
	}
	for i := range 5 {
		content = marked(int(d.Size()), byte(i))
		if _, err := d.WriteAt(content, 0); err != nil {
			panic(err)
		}
	}
	return image, content
}

// marked is n bytes of which each block says which one it is.
func marked(n int, id byte) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i/sector)*31 + id + 1
	}
	return b
}

func openGrown(r *pmem.Region) (*btt.Device, error) {
	return btt.Open(r, btt.Options{MaxArena: growMax})
}

// growing is a growth that is crashed.
type growing struct {
	was      []byte // what the blocks hold that there were
	params   btt.GrowParams
	images   int
	outcomes map[string]int
}

// run grows, with a crash before each drain and at the end; depth is how many further
// crashes are tried in the growth after each.
func (g *growing) run(m *pmemtest.Machine, depth int) error {
	crash := func() error { return g.crash(m, depth, false) }
	onCrash(m, crash)
	err := btt.Grow(m.Region(), g.params)
	onCrash(m, nil)
	if err != nil {
		return fmt.Errorf("grow: %w", err)
	}
	if dirty := m.Undurable(); model() == full && len(dirty) > 0 {
		return fmt.Errorf("grow has returned, but lines at %d are not durable", dirty)
	}
	return g.crash(m, depth, true)
}

// crash looks at all that a power cut, or a kill and a power cut later, leaves of m.
func (g *growing) crash(m *pmemtest.Machine, depth int, returned bool) error {
	for o := newFates(); ; {
		if err := g.verify(m.Crash(o, nil), depth, returned); err != nil {
			return fmt.Errorf("crash before drain %d: %w", m.Count.Drains, err)
		}
		if !o.Next() {
			break
		}
	}
	if !model().exhaustive() {
		return nil
	}
	for o := new(pmemtest.Odometer); ; {
		if err := g.verify(m.Kill(o), 0, returned); err != nil {
			return fmt.Errorf("kill before drain %d: %w", m.Count.Drains, err)
		}
		if !o.Next() {
			return nil
		}
	}
}

// verify judges one image, and goes on with it.
func (g *growing) verify(m *pmemtest.Machine, depth int, returned bool) error {
	g.images++
	d, err := openGrown(m.Region())
	if err != nil {
		return fmt.Errorf("open: %w", err)
	}
	has := int(d.Size())
	switch {
	case returned && has == len(g.was):
		return errors.New("grow has returned, but the image is the old one")
	case len(d.Warnings()) > 0:
		g.outcomes["torn"]++
	case has == len(g.was):
		g.outcomes["old"]++
	default:
		g.outcomes["new"]++
	}
	if err := g.holds(d, has); err != nil {
		return err
	}
	// This decides what has become of all info blocks.
	plan, err := btt.PlanGrow(m.Region(), m.Region().Size(), growParams)
	if grown := has > len(g.was); grown != errors.Is(err, btt.ErrNoRoom) || !grown && err != nil {
		return fmt.Errorf("plan of another growth: %w", err)
	}
	// What has been seen stays: the power goes again, and a primary with it.
	n := m.Crash(new(uniformlyLost), nil)
	if d, err = openGrown(n.Region()); err != nil || int(d.Size()) != has {
		return fmt.Errorf("%d bytes were seen, and after another power cut %v: %v", has, sizeOf(d), err)
	}
	if err := g.judged(n); err != nil {
		return err
	}
	if err := g.withoutPrimary(n, has); err != nil {
		return err
	}
	return g.again(m, &plan, has, depth)
}

// uniformlyLost decides that nothing has survived.
type uniformlyLost struct{}

func (*uniformlyLost) Choose(n int) int { return min(1, n-1) }

func sizeOf(d *btt.Device) uint64 {
	if d == nil {
		return 0
	}
	return d.Size()
}

// holds reports an error unless the device of which has bytes were seen holds what was
// there, and zeros.
func (g *growing) holds(d *btt.Device, has int) error {
	got := make([]byte, has)
	if _, err := d.ReadAt(got, 0); err != nil {
		return err
	}
	if !bytes.Equal(got[:len(g.was)], g.was) {
		return errors.New("what was in the image is not")
	}
	if len(bytes.Trim(got[len(g.was):], "\x00")) > 0 {
		return errors.New("what is new is not zeros")
	}
	return nil
}

// judged is what bttcheck says of the image: only the two info blocks of the last old
// arena may be different, or one of them torn, and a repair makes it clean and leaves
// the size as it is.
func (g *growing) judged(m *pmemtest.Machine) error {
	r := pmem.NewTraced(slices.Clone(m.Peek()), nil)
	o := check.Options{MaxArena: growMax}
	rep, err := check.Run(context.Background(), r, o)
	if err != nil {
		return fmt.Errorf("bttcheck: %w", err)
	}
	damaged := false
	for i := range rep.Findings {
		switch f := &rep.Findings[i]; {
		case f.Severity == check.Info:
		case f.Kind == check.InfoCopies && f.Severity == check.Warning:
			g.outcomes["pair"]++
			damaged = true
		case f.Kind == check.InfoChecksum:
			damaged = true
		default:
			return fmt.Errorf("bttcheck finds: %s", f.Message)
		}
	}
	if !damaged {
		return nil
	}
	before, err := openGrown(pmem.NewTraced(slices.Clone(m.Peek()), nil))
	if err != nil {
		return err
	}
	if rep, err = check.Repair(context.Background(), r, check.RepairOptions{Options: o}); err != nil || rep.After == nil || rep.After.Damaged() {
		return fmt.Errorf("bttcheck --repair: %v, %+v", err, rep.After)
	}
	after, err := openGrown(r)
	if err != nil {
		return fmt.Errorf("after bttcheck --repair: %w", err)
	}
	if after.Size() != before.Size() || len(after.Warnings()) > 0 {
		return fmt.Errorf("%d bytes, after bttcheck --repair %d; warnings %v", before.Size(), after.Size(), after.Warnings())
	}
	return g.holds(after, int(after.Size()))
}

// withoutPrimary loses the primary info blocks, one at a time: whole, once the image is
// the new one. Before, the backup of the last arena is not at the end of the container,
// and must be found by what is left of the primary.
func (g *growing) withoutPrimary(m *pmemtest.Machine, has int) error {
	d, err := openGrown(m.Region())
	if err != nil {
		return err
	}
	for _, a := range d.Arenas() {
		var backup [layout.InfoSize]byte
		m.Region().Read(backup[:], a.Offset+a.Geometry.InfoOff)
		if _, err := layout.DecodeInfo(backup[:]); err != nil || a.FromBackup {
			continue // one is lost already
		}
		image := slices.Clone(m.Peek())
		lose := image[a.Offset : a.Offset+layout.InfoSize]
		if has == len(g.was) {
			lose = lose[layout.InfoSize-8:] // the checksum
		}
		clear(lose)
		r := pmem.NewTraced(image, nil)
		switch d, err := openGrown(r); {
		case err != nil:
			return fmt.Errorf("without the primary at %d: %w", a.Offset, err)
		case int(d.Size()) < has:
			return fmt.Errorf("without the primary at %d: %d bytes, and %d were seen", a.Offset, d.Size(), has)
		default:
			if err := g.holds(d, int(d.Size())); err != nil {
				return fmt.Errorf("without the primary at %d: %w", a.Offset, err)
			}
		}
	}
	return nil
}

// again grows what has not grown, as the command does: over zeros, or over what the
// growth has left, which it must recognise. What has grown is written to.
func (g *growing) again(m *pmemtest.Machine, plan *btt.Growth, has, depth int) error {
	if has == len(g.was) {
		zeros := len(bytes.Trim(m.Peek()[plan.Offset:], "\x00")) == 0
		if g.params.Zeroed && !zeros && !plan.Interrupted {
			return errors.New("grow again: it does not know its own")
		}
		next := &growing{was: g.was, params: growParams, outcomes: g.outcomes}
		next.params.Zeroed = zeros
		if depth > 0 {
			err := next.run(m, depth-1)
			g.images += next.images
			return within("grow again", err)
		}
		if err := btt.Grow(m.Region(), next.params); err != nil {
			return fmt.Errorf("grow again: %w", err)
		}
	}
	if err := btt.Grow(m.Region(), growParams); !errors.Is(err, btt.ErrNoRoom) {
		return fmt.Errorf("grow what has grown: %v", err)
	}
	d, err := openGrown(m.Region())
	if err != nil || len(d.Warnings()) > 0 {
		return fmt.Errorf("grown again: %v, warnings %v", err, d.Warnings())
	}
	if err := g.holds(d, int(d.Size())); err != nil {
		return err
	}
	want := marked(int(d.Size()), 77)
	for range 3 { // each lane, and its records
		if _, err := d.WriteAt(want, 0); err != nil {
			return err
		}
	}
	if d, err = openGrown(m.Region()); err != nil {
		return err
	}
	return within("after writing", (&growing{was: want}).holds(d, len(want)))
}

func within(where string, err error) error {
	if err != nil {
		return fmt.Errorf("%s: %w", where, err)
	}
	return nil
}
