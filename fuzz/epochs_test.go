package fuzz

import (
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/bttnbd/bttnbd/layout"
	"github.com/bttnbd/bttnbd/pmem/pmemtest"
)

// Goal: what recovery leaves is as good as new: another operation may follow, and
// another crash. A recovery that was not made durable, or that left a lane in a
// wrong state, shows only so. Method: short sequences with a crash or a kill in the
// last operation, recovery, then every operation with a crash in it.
func TestEpochs(t *testing.T) {
	t.Parallel()
	parent := t
	length := 2
	if testing.Short() {
		length = 1
	}
	var images atomic.Int64
	if wholeCampaign() {
		t.Cleanup(func() { atLeast(t, "images", int(images.Load()), 600_000) })
	}
	for _, first := range alphabet {
		t.Run(fmt.Sprint(first, " first"), func(t *testing.T) {
			if !beside(t, parent) {
				return
			}
			e := &explorer{flavour: layout.UEFI, alone: true}
			start := time.Now()
			forEachSequence(length, func(ops []op) {
				if ops[0] != first {
					return
				}
				if err := e.twoEpochs(ops); err != nil {
					t.Fatalf("%v: %v", ops, err)
				}
			})
			images.Add(int64(e.images))
			took := time.Since(start)
			t.Logf("%d images of a second crash, %d lines decided, %d distinct states, %.1f s, %.0f images/s",
				e.images, e.choices, len(e.states), took.Seconds(), float64(e.images)/took.Seconds())
		})
	}
}

// twoEpochs carries ops out, with a crash at every moment of the last.
func (e *explorer) twoEpochs(ops []op) error {
	w := newWorld(e.flavour)
	for i, o := range ops {
		if i == len(ops)-1 {
			during, _ := w.during(o)
			onCrash(w.m, func() error {
				if err := e.afterCrash(w, during); err != nil {
					return fmt.Errorf("crash in %v before drain %d: %w", o, w.m.Count.Drains, err)
				}
				return nil
			})
		}
		if err := w.do(o); err != nil {
			return err
		}
		onCrash(w.m, nil)
	}
	if err := e.afterCrash(w, w.now); err != nil {
		return fmt.Errorf("crash after %v: %w", ops[len(ops)-1], err)
	}
	return nil
}

// secondEpoch marks moments of a first crash in e.seen.
const secondEpoch = -1

// afterCrash carries each operation out on each image of a crash of before.
func (e *explorer) afterCrash(before *world, p promise) error {
	if e.again(before.m, p, secondEpoch) {
		return nil
	}
	for _, o := range alphabet {
		for f := newFates(); ; {
			e.spare[1] = before.m.Crash(f, e.spare[1])
			if err := e.epoch(e.spare[1], before, p, o); err != nil {
				return fmt.Errorf("second epoch: %w", err)
			}
			if !f.Next() {
				break
			}
		}
		for f := newFates(); model().exhaustive(); {
			if err := e.epoch(before.m.Kill(f), before, p, o); err != nil {
				return fmt.Errorf("second epoch, after a kill: %w", err)
			}
			if !f.Next() {
				break
			}
		}
	}
	return nil
}

// epoch recovers m and carries o out on it, with a crash at every moment.
func (e *explorer) epoch(m *pmemtest.Machine, before *world, p promise, o op) error {
	w := &world{m: m, now: p, writes: before.writes + 1}
	if err := w.open(); err != nil {
		return fmt.Errorf("open: %w", err)
	}
	if err := w.readAll(); err != nil {
		return err
	}
	m.Switch(1) // whose drains do not cover what the opener has left undrained
	w.inError = w.d.Stats().ArenasFailed > 0
	during, _ := w.during(o)
	onCrash(m, func() error {
		return e.wrap(fmt.Sprintf("crash in %v", o), e.crash(m, w, during, 0))
	})
	err := w.do(o)
	onCrash(m, nil)
	if err != nil {
		return err
	}
	return e.wrap(fmt.Sprintf("crash after %v", o), e.crash(m, w, w.now, 0))
}

// Goal: every lane is recovered, the last one as well. Method: groups that take
// all lanes of a word, again and again until their sequence numbers have gone
// round, with a crash in the last.
func TestLanes(t *testing.T) {
	for _, lanes := range []uint32{lowLanes, highLanes} {
		for groups := 1; groups <= 5; groups++ {
			e := &explorer{flavour: layout.UEFI}
			if err := e.allLanes(lanes, groups); err != nil {
				t.Errorf("lanes %d, group %d: %v", lanes, groups, err)
			}
		}
	}
}

func (e *explorer) allLanes(lanes uint32, groups int) error {
	w := newWorld(e.flavour)
	w.m.Lanes = lanes
	for g := range groups {
		during, after := w.during(op{kind: opGroup})
		if g == groups-1 {
			onCrash(w.m, func() error { return e.crash(w.m, w, during, 0) })
		}
		// One block more than the world knows of, so that no lane is left over.
		offs, data := []int64{20 * sector}, [][]byte{make([]byte, sector)}
		for _, lba := range lbas {
			c := written(w.writes+1, lba)
			offs, data = append(offs, int64(lba)*sector), append(data, c.data[:])
		}
		errs := make([]error, len(offs))
		w.d.WriteGroup(offs, data, errs)
		for _, err := range errs {
			if err != nil {
				return err
			}
		}
		w.writes++
		w.now = after
	}
	onCrash(w.m, nil)
	return e.crash(w.m, w, w.now, 0)
}
