package fuzz

import (
	"errors"
	"fmt"
	"iter"
	"reflect"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/bttnbd/bttnbd/layout"
	"github.com/bttnbd/bttnbd/pmem/pmemtest"
)

// scenario is a few threads, each with a few operations, one after another.
type scenario struct {
	name        string
	preemptions int // how often a thread that could go on is stopped
	threads     [][]op
}

var scenarios = []scenario{
	{"two writers, one block", 3, [][]op{{{opWrite, 0, lowLanes}}, {{opWrite, 0, highLanes}}}},
	{"two writers, one lane word", 3, [][]op{{{opWrite, 0, lowLanes}}, {{opWrite, 0, lowLanes}}}},
	{"two writers, one map line", 3, [][]op{{{opWrite, 0, lowLanes}}, {{opWrite, 1, highLanes}}}},
	{"twice each, one block", 3, [][]op{{{opWrite, 0, lowLanes}, {opWrite, 0, lowLanes}}, {{opWrite, 0, highLanes}, {opWrite, 0, highLanes}}}},
	{"reader and three writes", 3, [][]op{{{opRead, 0, lowLanes}}, {{opWrite, 0, lowLanes}, {opWrite, 0, lowLanes}, {opWrite, 0, lowLanes}}}},
	{"reader twice and a write", 3, [][]op{{{opRead, 0, lowLanes}, {opRead, 0, lowLanes}}, {{opWrite, 0, lowLanes}}}},
	{"reader and a zero", 3, [][]op{{{opRead, 0, lowLanes}, {opRead, 0, lowLanes}}, {{opWrite, 0, lowLanes}, {opZero, 0, lowLanes}}}},
	{"reader and a write over zero", 3, [][]op{{{opRead, 0, lowLanes}, {opRead, 0, lowLanes}}, {{opZero, 0, lowLanes}, {opWrite, 0, lowLanes}}}},
	{"reader and an error", 3, [][]op{{{opRead, 0, lowLanes}, {opRead, 0, lowLanes}}, {{opError, 0, lowLanes}}}},
	{"writer and a zero", 3, [][]op{{{opWrite, 0, lowLanes}}, {{opZero, 0, lowLanes}}}},
	{"writer and an error", 3, [][]op{{{opWrite, 0, lowLanes}}, {{opError, 0, lowLanes}}}},
	{"two zeroes and a reader", 2, [][]op{{{opZeroes, 0, lowLanes}}, {{opError, 0, lowLanes}}, {{opRead, 0, lowLanes}}}},
	{"two groups", 3, [][]op{{{opGroup, 0, lowLanes}}, {{opGroup, 0, highLanes}}}},
	{"group and a write of its first block", 3, [][]op{{{opGroup, 0, lowLanes}}, {{opWrite, 0, highLanes}}}},
	{"group and zeroes", 3, [][]op{{{opGroup, 0, lowLanes}}, {{opZeroes, 0, lowLanes}}}},
	{"three groups, too few lanes", 1, [][]op{{{opGroup, 0, lowLanes}}, {{opGroup, 0, lowLanes}}, {{opGroup, 0, lowLanes}}}},
	{"reader and a second zero", 3, [][]op{{{opRead, 0, lowLanes}, {opRead, 0, lowLanes}}, {{opZero, 0, lowLanes}, {opWrite, 0, lowLanes}, {opZero, 0, lowLanes}}}},
	{"reader, a write and a part", 3, [][]op{{{opRead, 0, lowLanes}}, {{opWrite, 0, lowLanes}, {opPart, 0, lowLanes}}}},
	{"writer and a zero of its neighbour's line", 2, [][]op{{{opWrite, 1, lowLanes}}, {{opZero, 1, lowLanes}}}},
	{"writer behind and zeroes", 2, [][]op{{{opWrite, 2, highLanes}}, {{opZeroes, 0, lowLanes}}}},
	{"two writers, one lane word, two map lines", 2, [][]op{{{opWrite, 0, lowLanes}}, {{opWrite, 2, lowLanes}}}},
	{"two parts of one block", 3, [][]op{{{opPart, 0, lowLanes}}, {{opPart, 0, highLanes}}}},
	{"part and whole", 3, [][]op{{{opPart, 0, lowLanes}}, {{opWrite, 0, highLanes}}}},
	{"part, reader, writer", 2, [][]op{{{opPart, 0, lowLanes}}, {{opRead, 0, lowLanes}}, {{opWrite, 0, highLanes}, {opWrite, 0, highLanes}}}},
}

// Goal: whatever the order in which threads are scheduled, every block behaves as
// if operations happened one at a time, no thread waits for ever, nobody stores
// into what another is reading, and a crash keeps all promises. Method: every
// schedule with a bounded number of preemptions, at every access to the memory,
// every lock and every wait.
func TestSchedules(t *testing.T) {
	t.Parallel()
	var all struct{ schedules, images atomic.Int64 }
	try := func(name string, s scenario, e *explorer) {
		parent := t
		t.Run(name, func(t *testing.T) {
			if !beside(t, parent) {
				return
			}
			schedules, images := s.test(t, e)
			all.schedules.Add(int64(schedules))
			all.images.Add(int64(images))
		})
	}
	t.Cleanup(func() {
		t.Logf("in all %d schedules, %d images", all.schedules.Load(), all.images.Load())
		if wholeCampaign() {
			atLeast(t, "schedules", int(all.schedules.Load()), 100_000)
			atLeast(t, "images", int(all.images.Load()), 170_000)
		}
	})
	for _, s := range scenarios {
		if testing.Short() {
			s.preemptions = min(s.preemptions, 2)
		}
		try(s.name, s, &explorer{flavour: layout.UEFI})
		if s.reads() {
			try(s.name+", racing", s, &explorer{flavour: layout.UEFI, racing: true})
		}
		s.preemptions = min(s.preemptions, 1)
		try(s.name+", in a pool", s, &explorer{flavour: pmemblk})
	}
}

// reads reports whether a thread reads.
func (s *scenario) reads() bool {
	for _, ops := range s.threads {
		for _, o := range ops {
			if o.kind == opRead {
				return true
			}
		}
	}
	return false
}

func (s *scenario) test(t *testing.T, e *explorer) (schedules, images int) {
	start := time.Now()
	for o := new(pmemtest.Odometer); ; {
		schedules++
		if err := s.run(e, o); err != nil {
			t.Fatalf("schedule %d: %v", schedules, err)
		}
		if !o.Next() {
			break
		}
	}
	took := time.Since(start)
	t.Logf("%d schedules, %d moments of a crash, %d images, %.1f s, %.0f schedules/s", schedules, len(e.seen), e.images, took.Seconds(), float64(schedules)/took.Seconds())
	return schedules, e.images
}

// thread is a coroutine that carries operations out and stops at every access.
type thread struct {
	id      int
	ops     []op
	lanes   uint32                     // of the operation that it is at
	resume  func() (func() bool, bool) // runs until the next stop; what it waits for, if anything
	yield   func(func() bool) bool     // stops, until it is resumed
	ready   func() bool
	stopped bool
}

// run is one run of the scenario under one schedule.
type run struct {
	w       *world
	h       history
	clock   int
	current *thread
	err     error
	base    int  // numbers of operations begin here
	faulty  bool // an access fails: operations may
	inError bool // the arena is: it refuses writes
	unsure  bool // its error flag is being changed
}

func (s *scenario) run(e *explorer, c pmemtest.Chooser) error {
	_, err := s.runFailing(e, c, 0)
	return err
}

// runFailing is run with access number failing refused, if that is not 0, and
// reports whether it came to that.
func (s *scenario) runFailing(e *explorer, c pmemtest.Chooser, failing int) (met bool, err error) {
	left := failing
	r := &run{faulty: failing > 0, w: e.world()}
	m := r.w.m
	m.AllowRacing = e.racing
	at := reflect.ValueOf(m.Peek()).Pointer()
	threads, stop := r.start(s.threads, 0)
	defer stop()
	onCrash(m, func() error { return e.crash(m, r.w, r.h.promise(), 0) })
	crash := m.OnAccess
	m.OnAccess = func() {
		r.pause(nil)
		if crash != nil {
			crash()
		}
		if left--; left == 0 && r.current != nil {
			panic(&fault{at})
		}
	}
	m.OnAwait = r.pause
	if err := r.schedule(threads, s.preemptions, c); err != nil {
		return left <= 0, err
	}
	m.OnAccess, m.OnAwait, m.OnDrain = nil, nil, nil
	m.Switch(0)
	return failing > 0 && left <= 0, r.finish(e)
}

// start makes the threads, of which the first has the number given, and returns
// how to end those that are still under way.
func (r *run) start(all [][]op, first int) (threads []*thread, stop func()) {
	var stops []func()
	for i, ops := range all {
		th := &thread{id: first + i, ops: ops, lanes: ops[0].lanes}
		next, stop := iter.Pull(r.body(th))
		th.resume = next
		threads, stops = append(threads, th), append(stops, stop)
	}
	return threads, func() {
		for _, stop := range stops {
			stop()
		}
	}
}

// opID is the number of the k-th operation of a thread.
func opID(thread, k int) int { return 100*(thread+1) + k }

// finish checks the device after all threads are done.
func (r *run) finish(e *explorer) error {
	if r.w.m.Race != nil {
		return r.w.m.Race
	}
	if r.faulty {
		return r.finishFaulty(e)
	}
	if dirty := r.w.m.Undurable(); model() == full && len(dirty) > 0 {
		return fmt.Errorf("all is acknowledged, but the lines at %d are not durable", dirty)
	}
	if err := sound(r.w.m, e.flavour); err != nil {
		return err
	}
	r.w.now = r.h.promise()
	r.w.writes = 1000
	if err := r.w.readAll(); err != nil {
		return err
	}
	return e.goOn(r.w)
}

// finishFaulty is finish where the arena may have failed.
func (r *run) finishFaulty(e *explorer) error {
	r.w.now = r.h.promise()
	r.w.writes = 1000
	undecided := r.w.now
	if err := r.w.readAll(); err != nil {
		return err
	}
	if r.w.d.Stats().ArenasFailed > 0 {
		r.w.now = undecided // see readUndecided
	}
	if err := e.crash(r.w.m, r.w, r.w.now, 0); err != nil {
		return err
	}
	if err := r.w.open(); err != nil {
		return err
	}
	return e.goOn(r.w)
}

// body is what a thread does.
func (r *run) body(th *thread) iter.Seq[func() bool] {
	return func(yield func(func() bool) bool) {
		defer func() {
			if v := recover(); v != nil && v != errStopped {
				panic(v)
			}
		}()
		for k, o := range th.ops {
			if r.err != nil {
				return
			}
			th.yield = yield
			th.lanes, r.w.m.Lanes = o.lanes, o.lanes
			id := r.base + opID(th.id, k)
			if err := r.do(th, o, id); err != nil {
				r.err = fmt.Errorf("thread %d, %v: %w", th.id, o, err)
			}
		}
	}
}

// do carries one operation out and notes it in the history.
func (r *run) do(th *thread, o op, id int) error {
	if o.kind == opRead {
		r.h.events[o.block] = append(r.h.events[o.block], event{from: r.tick(), til: pending})
		at := len(r.h.events[o.block]) - 1
		c, err := r.w.read(o.block)
		if r.faulty && (err != nil || c.bad) {
			return nil
		}
		ev := &r.h.events[o.block][at]
		ev.saw, ev.til = c, r.tick()
		if err == nil && len(r.h.outcomes(o.block)) == 0 {
			err = fmt.Errorf("no order of events explains: %s", c.describe(lbas[o.block], []content{}))
		}
		return err
	}
	effects := o.effects(id)
	places := make([]int, len(effects))
	for k, ef := range effects {
		places[k] = len(r.h.events[ef.block])
		r.h.events[ef.block] = append(r.h.events[ef.block], event{apply: ef.apply, from: r.tick(), til: pending})
	}
	r.unsure = o.kind == opSetFlag || o.kind == opClearFlag
	err := r.w.call(o, id)
	if r.unsure && err == nil {
		r.inError, r.unsure = o.kind == opSetFlag, false
	}
	refused := errors.Is(err, syscall.EIO)
	switch {
	case r.inError && o.kind <= opError && !refused:
		return fmt.Errorf("the arena is in error, and it returned %v, want EIO", err)
	case refused && (r.faulty || r.inError || o.kind == opPart):
		return nil // done or not, nobody has been told
	}
	for k, ef := range effects {
		r.h.events[ef.block][places[k]].til = r.tick()
	}
	return err
}

func (r *run) tick() int {
	r.clock++
	return r.clock
}

// errStopped unwinds the threads that are under way when a run has failed.
var errStopped = errors.New("stopped")

// pause stops the current thread until the scheduler resumes it and ready holds.
func (r *run) pause(ready func() bool) {
	th := r.current
	if th == nil {
		return // the driver itself looks at the device
	}
	if !th.yield(ready) {
		panic(errStopped)
	}
}

// schedule runs the threads to their ends. c decides who goes on at each stop; to
// stop one that could go on counts against preemptions.
func (r *run) schedule(threads []*thread, preemptions int, c pmemtest.Chooser) error {
	var last *thread
	for {
		var options []*thread
		alive := 0
		for _, th := range threads {
			if !th.stopped {
				alive++
				if th.ready == nil || th.ready() {
					options = append(options, th)
				}
			}
		}
		switch {
		case r.err != nil:
			return r.err
		case alive == 0:
			return nil
		case len(options) == 0:
			return fmt.Errorf("deadlock: %d threads wait for each other", alive)
		}
		th := choose(options, last, &preemptions, c)
		r.w.m.Switch(th.id)
		r.w.m.Lanes = th.lanes
		r.current = th
		ready, ok := th.resume()
		r.current = nil
		th.ready, th.stopped = ready, !ok
		last = th
	}
}

// choose picks who runs next: the last one first, if it can.
func choose(options []*thread, last *thread, preemptions *int, c pmemtest.Chooser) *thread {
	for i, th := range options {
		if th == last {
			if *preemptions == 0 {
				return th
			}
			options[0], options[i] = options[i], options[0]
			k := 0
			if len(options) > 1 {
				k = c.Choose(len(options))
			}
			if k > 0 {
				*preemptions--
			}
			return options[k]
		}
	}
	if len(options) == 1 {
		return options[0]
	}
	return options[c.Choose(len(options))]
}
