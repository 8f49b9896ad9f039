package fuzz

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"syscall"
	"testing"

	"github.com/bttnbd/bttnbd/btt"
	"github.com/bttnbd/bttnbd/layout"
	"github.com/bttnbd/bttnbd/pmem"
	"github.com/bttnbd/bttnbd/pmem/pmemtest"
)

// fault is what the runtime panics with when memory refuses an access.
type fault struct{ at uintptr }

func (f *fault) Error() string { return "the simulated memory refuses an access" }
func (f *fault) Addr() uintptr { return f.at }

// refusal makes the n-th thing of its kind fail, once.
type refusal struct {
	what  string
	floor int // of times it is met
	arm   func(m *pmemtest.Machine, n int) (left *int)
}

var refusals = []refusal{
	{"access", 500, func(m *pmemtest.Machine, n int) *int {
		at := reflect.ValueOf(m.Peek()).Pointer()
		m.OnAccess = func() {
			if n--; n == 0 {
				panic(&fault{at})
			}
		}
		return &n
	}},
	{"drain", 50, func(m *pmemtest.Machine, n int) *int {
		m.OnDrain = func() error {
			if n--; n == 0 {
				return syscall.EIO
			}
			return nil
		}
		return &n
	}},
}

// before are what has been done when the memory fails.
var before = [][]op{
	{},
	{{opGroup, 0, lowLanes}, {opGroup, 0, highLanes}, {opZero, 0, lowLanes}},
	{{opWrite, 0, highLanes}, {opWrite, 0, highLanes}, {opError, 1, lowLanes}, {opPart, 2, lowLanes}},
	{{kind: opSetFlag}},
}

// Goal: memory that fails at any moment costs the operation that met it, and no
// more: each block is old or new, nobody waits for ever, what is read stays true,
// and after a reopen all is well. Method: every operation with the n-th access, or
// the n-th drain, failing, for n = 1, 2, … until none does.
func TestFaults(t *testing.T) {
	t.Parallel()
	reads := []op{{opRead, 0, lowLanes}, {opRead, 1, lowLanes}, {opRead, 2, lowLanes}}
	for _, r := range refusals {
		e := &explorer{flavour: layout.UEFI}
		met := e.refuseEach(t, r, append(reads, alphabet...), e.afterFault)
		t.Logf("%d times a failing %s, %d images", met, r.what, e.images)
		atLeast(t, "failures", met, r.floor)
	}
}

// Goal: an operator who clears the error flag of an arena that has failed, with the
// device open, gets it back sound, or is refused. Nothing of what memory had been
// ahead of media by is built upon. Method: as before; then the flag is cleared, every
// lane writes, and every further operation is cut short at every moment.
func TestFaultsCleared(t *testing.T) {
	t.Parallel()
	for _, r := range refusals {
		e := &explorer{flavour: layout.UEFI}
		cleared, refused := 0, 0
		e.refuseEach(t, r, alphabet, func(w *world, o op) error {
			if o.kind == opReopen || w.d.Stats().ArenasFailed == 0 {
				return nil
			}
			if err := w.d.SetArenaError(0, false); err != nil {
				refused++
				return e.afterFault(w, o)
			}
			cleared++
			return e.afterClearing(w)
		})
		t.Logf("%s: %d arenas cleared, %d refused, %d images", r.what, cleared, refused, e.images)
		atLeast(t, "arenas in error", cleared+refused, r.floor/10)
	}
}

// afterClearing goes on with a device whose arena had failed and does no more.
func (e *explorer) afterClearing(w *world) error {
	if w.d.Stats().ArenasFailed > 0 {
		return errors.New("the error flag was cleared, but the arena is in error still")
	}
	if err := e.crash(w.m, w, w.now, 0); err != nil {
		return fmt.Errorf("crash after the flag was cleared: %w", err)
	}
	if err := sound(w.m, e.flavour); err != nil {
		return fmt.Errorf("the flag was cleared: %w", err)
	}
	if err := w.readAll(); err != nil { // from now on all is decided
		return fmt.Errorf("the flag was cleared: %w", err)
	}
	w.inError = false
	for _, next := range []op{{opGroup, 0, lowLanes}, {opGroup, 0, highLanes}, {opPart, 0, lowLanes}, {opZero, 1, lowLanes}, {opWrite, 2, lowLanes}} {
		during, _ := w.during(next)
		onCrash(w.m, func() error { return e.crash(w.m, w, during, 0) })
		err := w.do(next)
		onCrash(w.m, nil)
		if err != nil {
			return fmt.Errorf("the flag was cleared: %w", err)
		}
		if err := w.readAll(); err != nil {
			return fmt.Errorf("the flag was cleared, then %v: %w", next, err)
		}
	}
	if err := w.takesAllLanes(); err != nil {
		return fmt.Errorf("the flag was cleared: %w", err)
	}
	return e.crash(w.m, w, w.now, 0)
}

// refuseEach carries every operation out, after each of some prefixes, with the
// n-th thing failing for every n, and looks at what is left with after.
func (e *explorer) refuseEach(t *testing.T, r refusal, ops []op, after func(*world, op) error) (met int) {
	for _, prefix := range before {
		for _, o := range ops {
			for n, hit := 1, true; hit; n++ {
				var err error
				if hit, err = e.refuse(prefix, o, r, n, after); err != nil {
					t.Fatalf("%v, then %v with %s %d failing: %v", prefix, o, r.what, n, err)
				}
				if hit {
					met++
				}
			}
		}
	}
	return met
}

// refuse carries prefix out, then o with a failure, then goes on. hit is false
// when o was done before it came to that.
func (e *explorer) refuse(prefix []op, o op, r refusal, n int, after func(*world, op) error) (hit bool, err error) {
	w := e.world()
	for _, p := range prefix {
		if err := w.do(p); err != nil {
			return false, err
		}
	}
	during, whole := w.during(o)
	refused := w.refuses(o)
	w.writes++
	w.m.Lanes = o.lanes
	left := r.arm(w.m, n)
	done := w.attempt(o)
	w.m.OnAccess, w.m.OnDrain = nil, nil
	hit = *left <= 0
	switch {
	case !hit && done != nil && !refused:
		return false, done
	case hit && done != nil && !errors.Is(done, syscall.EIO):
		return true, fmt.Errorf("got %w, want EIO", done)
	case done == nil && o.kind != opRead:
		during = whole
	}
	w.now = during
	return hit, after(w, o)
}

// attempt carries o out, which may fail.
func (w *world) attempt(o op) error {
	if o.kind != opRead {
		return w.call(o, w.writes)
	}
	got, err := w.read(o.block)
	if err != nil || got.bad {
		return err
	}
	return w.now.keeps(o.block, got)
}

// afterFault goes on with a device that has met a failure.
func (e *explorer) afterFault(w *world, o op) error {
	if o.kind == opReopen { // which may have failed; this one must not
		if err := w.open(); err != nil {
			return fmt.Errorf("reopen: %w", err)
		}
	}
	if err := w.readUndecided(); err != nil {
		return err
	}
	if err := e.crash(w.m, w, w.now, 0); err != nil {
		return fmt.Errorf("crash after the failure: %w", err)
	}
	w.inError = w.d.Stats().ArenasFailed > 0
	if !w.inError {
		if err := w.takesAllLanes(); err != nil {
			return fmt.Errorf("after the failure: %w", err)
		}
	}
	for _, next := range []op{{opGroup, 0, lowLanes}, {opGroup, 0, highLanes}, {opPart, 0, lowLanes}, {opZero, 1, lowLanes}, {opError, 2, lowLanes}} {
		if err := w.do(next); err != nil {
			return fmt.Errorf("after the failure: %w", err)
		}
		if err := w.readUndecided(); err != nil {
			return fmt.Errorf("after the failure and %v: %w", next, err)
		}
	}
	if err := e.crash(w.m, w, w.now, 0); err != nil {
		return fmt.Errorf("crash after going on: %w", err)
	}
	if err := w.open(); err != nil {
		return fmt.Errorf("reopen: %w", err)
	}
	w.inError = w.d.Stats().ArenasFailed > 0
	return e.goOn(w)
}

// takesAllLanes reports lanes that nobody has given back: a group for all lanes of
// a word then takes more than one commit. A lane whose block refused a store is
// out of use, and the device says so.
func (w *world) takesAllLanes() error {
	if w.d.Stats().LanesRetired > 0 {
		return nil
	}
	for _, lanes := range []uint32{lowLanes, highLanes} {
		w.m.Lanes = lanes
		before := w.d.Stats().Groups
		var offs []int64
		var data [][]byte
		for lba := range int64(nfree / 2) {
			offs, data = append(offs, (lba+6)*sector), append(data, make([]byte, sector))
		}
		errs := make([]error, len(offs))
		w.d.WriteGroup(offs, data, errs)
		if n := w.d.Stats().Groups - before; n != 1 {
			return fmt.Errorf("a group of %d blocks took %d commits: lanes are lost; %w", len(offs), n, errors.Join(errs...))
		}
	}
	return nil
}

// readUndecided is readAll, except that in an arena which has failed a write of
// which its client was told nothing but the failure may still come true: the next
// open decides. Once it has been read it stays.
func (w *world) readUndecided() error {
	undecided := w.now
	if err := w.readAll(); err != nil {
		return err
	}
	if w.d.Stats().ArenasFailed > 0 {
		for i := range undecided {
			if w.now[i][0] == undecided[i][0] {
				w.now[i] = undecided[i]
			}
		}
	}
	return nil
}

// Goal: with a thread that meets a fault, the others go on: it leaves no lock, no
// lane and no announcement behind, and what it has half done is not built upon.
// Method: schedules of two threads with the n-th access of both together failing.
func TestFaultSchedules(t *testing.T) {
	t.Parallel()
	for _, s := range []scenario{
		{"two writers, one block", 1, [][]op{{{opWrite, 0, lowLanes}}, {{opWrite, 0, highLanes}}}},
		{"writer and reader", 1, [][]op{{{opWrite, 0, lowLanes}, {opWrite, 0, lowLanes}}, {{opRead, 0, lowLanes}}}},
		{"writer and reader, racing", 1, [][]op{{{opWrite, 0, lowLanes}, {opWrite, 0, lowLanes}}, {{opRead, 0, lowLanes}}}},
		{"writer and zero", 1, [][]op{{{opWrite, 0, lowLanes}}, {{opZero, 0, lowLanes}}}},
		{"part and zero", 1, [][]op{{{opPart, 0, lowLanes}}, {{opZero, 0, lowLanes}}}},
	} {
		t.Run(s.name, func(t *testing.T) {
			e := &explorer{flavour: layout.UEFI, racing: strings.HasSuffix(s.name, "racing")}
			schedules := 0
			for n, hit := 1, true; hit; n++ {
				hit = false
				for c := new(pmemtest.Odometer); ; {
					schedules++
					met, err := s.runFailing(e, c, n)
					if err != nil {
						t.Fatalf("schedule %d, access %d failing: %v", schedules, n, err)
					}
					hit = hit || met
					if !c.Next() {
						break
					}
				}
			}
			t.Logf("%d schedules, %d images", schedules, e.images)
		})
	}
}

// Goal: real bad memory is an error of the operation that meets it, and the
// process lives. Method: a file that is cut under the device, and grown again.
func TestTruncated(t *testing.T) {
	const size, block = 4 << 20, 4096
	path := filepath.Join(t.TempDir(), "image")
	r, err := pmem.Create(path, size, pmem.Options{Durability: pmem.ForceProcess})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	p := btt.FormatParams{Flavour: layout.Kernel, SectorSize: block, Nfree: 16, UUID: newID, Zeroed: true, MinArena: 1 << 20}
	if err := btt.Format(r, p); err != nil {
		t.Fatal(err)
	}
	d, err := btt.Open(r, btt.Options{})
	if err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, block)
	whole := func() error { _, err := d.WriteAt(buf, 0); return err }
	read := func() error { _, err := d.ReadAt(buf, 0); return err }
	if err := errors.Join(whole(), read()); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, 8192); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		do   func() error
	}{
		{"read", read},
		{"readable", func() error { return d.Readable(0, block) }},
		{"write", whole},
		{"part", func() error { _, err := d.WriteAt(buf[:8], 8); return err }},
		{"zero", func() error { return d.ZeroAt(0, block) }},
		{"trim", func() error { return d.TrimAt(0, block) }},
		{"set error", func() error { return d.SetError(0) }},
		{"open", func() error { _, err := btt.Open(r, btt.Options{}); return err }},
		{"set flag", func() error { return d.SetArenaError(0, true) }},
		{"format", func() error { return btt.Format(r, p) }},
	} {
		if err := c.do(); !errors.Is(err, syscall.EIO) {
			t.Errorf("%s: %v, want EIO", c.name, err)
		}
	}
	if err := os.Truncate(path, size); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(btt.Format(r, p), read()); err != nil {
		t.Errorf("the file is back: %v", err)
	}
}
