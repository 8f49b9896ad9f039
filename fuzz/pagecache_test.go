package fuzz

import (
	"errors"
	"fmt"
	"syscall"
	"testing"

	"github.com/bttnbd/bttnbd/layout"
	"github.com/bttnbd/bttnbd/pmem/pmemtest"
)

// Goal: the promises hold for an ordinary file as well, whose drains are msyncs that
// package pmem puts together from what was noted. Method: that code runs here, and
// the page cache is simulated: all sequences, as in TestSequences.
func TestPageCache(t *testing.T) {
	t.Parallel()
	parent := t
	for _, c := range []struct {
		flavour                layout.Flavour
		length                 int
		images, nested, states int // what was seen when this was written, less a little
	}{
		{layout.UEFI, 3, 54_000, 80_000, 130},
		{pmemblk, 2, 2_500, 3_800, 44},
	} {
		if testing.Short() {
			c.length, c.images, c.nested, c.states = min(c.length, 2), 0, 0, 0
		}
		t.Run(fmt.Sprintf("%s/%d", c.flavour.Name, c.length), func(t *testing.T) {
			if beside(t, parent) {
				e := &explorer{flavour: c.flavour, file: true}
				e.sequences(t, c.length, 1)
				e.atLeast(t, c.images, c.nested, c.states)
			}
		})
	}
}

// Goal: what several threads have noted is on disk when the drain of each returns,
// whosever msync it was. Method: as TestSchedules. An msync is one step here: what is
// noted, and who waits, while one runs has its tests in package pmem.
func TestPageCacheShared(t *testing.T) {
	t.Parallel()
	schedules, images := 0, 0
	for _, s := range scenarios {
		s.preemptions = 1
		n, seen := s.test(t, &explorer{flavour: layout.UEFI, file: true})
		schedules, images = schedules+n, images+seen
	}
	t.Logf("in all %d schedules, %d images", schedules, images)
	atLeast(t, "schedules", schedules, 2_350)
	atLeast(t, "images", images, 70_000)
}

// Goal: once an msync has failed nothing is acknowledged any more, whatever later
// ones say, and all that was promised holds, after a power cut and in a server that is
// started again. Method: every operation with the n-th msync failing, for n = 1, 2, …
// until none does; the kernel takes the pages for clean, on disk or not.
func TestMsyncFails(t *testing.T) {
	t.Parallel()
	e := &explorer{flavour: layout.UEFI, file: true}
	left := new(int)
	failing := refusal{"msync", 0, func(m *pmemtest.Machine, n int) *int {
		left = &n
		m.OnSync = func() error {
			if n--; n == 0 {
				return syscall.EIO
			}
			return nil
		}
		return &n
	}}
	met := e.refuseEach(t, failing, alphabet, func(w *world, _ op) error {
		w.m.OnSync = nil
		if *left > 0 {
			return nil // there was no n-th
		}
		return e.afterMsync(w)
	})
	t.Logf("%d times a failing msync, %d images, %d of them after a restart", met, e.images, e.kills)
	atLeast(t, "failures", met, 80)
	atLeast(t, "images", e.images+e.kills, 12_000)
}

// afterMsync goes on with a device of which an msync has failed.
func (e *explorer) afterMsync(w *world) error {
	if w.d == nil {
		return e.cutOrRestart(w) // it could not be opened
	}
	for i := range lbas {
		c, err := w.read(i)
		if err != nil || c.bad && !w.now[i][0].bad {
			continue // an entry that may not be on disk is not shown
		}
		if err := w.now.keeps(i, c); err != nil {
			return err
		}
		if c != w.now[i][0] {
			w.now[i] = []content{c} // a failed write may come true later, but not go away again
		}
	}
	if err := e.cutOrRestart(w); err != nil {
		return err
	}
	for _, o := range []op{{opWrite, 0, lowLanes}, {opGroup, 0, highLanes}, {opZero, 0, lowLanes}, {kind: opClearFlag}} {
		during, _ := w.during(o)
		w.writes++
		w.m.Lanes = o.lanes
		if err := w.call(o, w.writes); !errors.Is(err, syscall.EIO) {
			return fmt.Errorf("an msync has failed, and then %v returned %v, want EIO", o, err)
		}
		w.now = during
		if err := e.cutOrRestart(w); err != nil {
			return fmt.Errorf("after the failure and %v: %w", o, err)
		}
	}
	return nil
}

// cutOrRestart verifies what a power cut leaves at this moment, and what a server
// that is started again finds, also when the power is cut later.
func (e *explorer) cutOrRestart(w *world) error {
	if err := e.crash(w.m, w, w.now, 0); err != nil {
		return fmt.Errorf("power cut: %w", err)
	}
	return e.kill(w.m, w, w.now)
}
