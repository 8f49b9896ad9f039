package fuzz

import (
	"fmt"
	"hash/crc64"
	"math/rand/v2"
	"os"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"github.com/bttnbd/bttnbd/layout"
	"github.com/bttnbd/bttnbd/pmem/pmemtest"
)

// The first sample of a run has the seed of this variable, the next one the next
// number; and the samples go on for the duration in the other, as make soak has it.
const (
	seedVariable = "BTTNBD_SEED"
	timeVariable = "BTTNBD_SAMPLE_TIME"
)

// samples of each flavour are taken if no duration is given.
const samples = 1500

// Goal: what short sequences and schedules show to hold goes on to hold in long
// lives. Method: samples of several epochs, in each of which one to three threads
// under a random schedule carry out random operations until the power fails or the
// process is killed, at a random access; then recovery, in which the same may
// happen again; then every block must be what an order of the operations explains.
// All of it follows from a seed.
func TestSampled(t *testing.T) {
	t.Parallel()
	first, err := strconv.ParseUint(os.Getenv(seedVariable), 10, 63)
	if err != nil {
		first = rand.Uint64() >> 1
	}
	duration, err := time.ParseDuration(os.Getenv(timeVariable))
	if err != nil {
		duration = 0
	}
	t.Logf("%s=%d", seedVariable, first)
	var all sampled
	for _, f := range flavours {
		t.Run(f.Name, func(t *testing.T) {
			t.Parallel()
			var sum sampled
			start, count := time.Now(), uint64(samples)
			if testing.Short() {
				count /= 3
			}
			for i := uint64(0); i < count && duration == 0 || time.Since(start) < duration; i++ {
				s := newSample(f, first+i)
				if err := s.run(); err != nil {
					t.Fatalf("%s=%d, epoch %d: %v", seedVariable, first+i, s.epochs, err)
				}
				sum.add(&s.sampled)
			}
			t.Logf("%v, %.1f s", &sum, time.Since(start).Seconds())
			all.add(&sum)
		})
	}
	t.Cleanup(func() {
		if model() != full || !wholeCampaign() {
			return
		}
		const n = samples * 4
		atLeast(t, "epochs", int(all.epochs), 3*n)
		atLeast(t, "operations on blocks", int(all.ops), 20*n)
		atLeast(t, "kills", int(all.kills), n/2)
		atLeast(t, "crashes in recovery", int(all.nested), n)
		atLeast(t, "writes completed by recovery", int(all.rolled), n/4)
	})
}

// Goal: a seed gives the same images again. Method: the same seeds twice.
func TestSampledReplays(t *testing.T) {
	for seed := range uint64(20) {
		var prints [2]uint64
		for i := range prints {
			s := newSample(layout.UEFI, seed)
			if err := s.run(); err != nil {
				t.Fatal(err)
			}
			prints[i] = s.print
		}
		if prints[0] != prints[1] {
			t.Errorf("seed %d: images %016x and %016x", seed, prints[0], prints[1])
		}
	}
}

// sampled counts what samples have gone through.
type sampled struct{ epochs, ops, kills, nested, rolled int64 }

func (a *sampled) add(b *sampled) {
	atomic.AddInt64(&a.epochs, b.epochs)
	atomic.AddInt64(&a.ops, b.ops)
	atomic.AddInt64(&a.kills, b.kills)
	atomic.AddInt64(&a.nested, b.nested)
	atomic.AddInt64(&a.rolled, b.rolled)
}

func (a *sampled) String() string {
	return fmt.Sprintf("%d epochs, %d operations on blocks, %d kills, %d crashes in recovery, %d writes completed by recovery", a.epochs, a.ops, a.kills, a.nested, a.rolled)
}

// sample is one life of a device.
type sample struct {
	sampled
	flavour layout.Flavour
	rng     *rand.Rand
	w       *world
	unsure  bool   // the crash came while the error flag was being changed
	print   uint64 // of all images recovered
}

func newSample(f layout.Flavour, seed uint64) *sample {
	return &sample{flavour: f, rng: rand.New(rand.NewPCG(seed, uint64(len(f.Name)))), w: newWorld(f)}
}

func (s *sample) run() error {
	for range 2 + s.rng.IntN(6) {
		s.epochs++
		m, p, err := s.epoch()
		if err != nil {
			return err
		}
		if err := s.recover(m, p); err != nil {
			return err
		}
	}
	s.w.writes = int(s.epochs+1) * 1000
	return (&explorer{flavour: s.flavour}).goOn(s.w)
}

// epoch has threads work on the device until it crashes, and returns what is left
// and what is promised of it.
func (s *sample) epoch() (left *pmemtest.Machine, p promise, err error) {
	m := s.w.m
	m.AllowRacing = s.rng.IntN(2) == 0
	r := &run{w: s.w, base: int(s.epochs) * 1000, inError: s.w.inError}
	for i := range r.h.start {
		r.h.start[i] = s.w.now[i][0]
	}
	work := s.work(r)
	ops := 0
	for _, th := range work {
		ops += len(th)
	}
	cut := s.rng.IntN(ops * 25)
	threads, stop := r.start(work, 1) // not the opener, whose drains do not cover theirs
	defer stop()
	m.OnAwait = r.pause
	m.OnAccess = func() {
		r.pause(nil)
		if cut--; cut == 0 {
			left, p, r.err = s.crash(m), r.h.promise(), errPowerCut
			r.pause(nil)
		}
	}
	err = r.schedule(threads, len(work)*1000, restless{s.rng})
	m.OnAwait, m.OnAccess = nil, nil
	s.ops += int64(r.clock / 2)
	s.w.inError, s.unsure = r.inError, r.unsure
	switch {
	case m.Race != nil:
		return nil, p, m.Race
	case left != nil:
		return left, p, p.possible()
	case err != nil:
		return nil, p, err
	}
	if dirty := m.Undurable(); len(dirty) > 0 && model() == full {
		return nil, p, fmt.Errorf("all is acknowledged, but the lines at %d are not durable", dirty)
	}
	p = r.h.promise()
	return s.crash(m), p, p.possible()
}

// possible reports a block that nothing explains.
func (p *promise) possible() error {
	for i := range p {
		if len(p[i]) == 0 {
			return fmt.Errorf("block %d: no order of events explains what was read", lbas[i])
		}
	}
	return nil
}

// work is what the threads of an epoch are to do: two or three threads what any
// number may do at once, or a single one all there is.
func (s *sample) work(r *run) (threads [][]op) {
	n := s.rng.IntN(4)
	if n < 2 || r.inError {
		ops := make([]op, 2+s.rng.IntN(9))
		for i := range ops {
			ops[i] = alphabet[s.rng.IntN(len(alphabet))]
		}
		if r.inError { // or little will happen from now on
			ops[s.rng.IntN(len(ops))] = op{kind: opClearFlag}
		}
		return [][]op{ops}
	}
	for range n {
		ops := make([]op, 1+s.rng.IntN(4))
		for i := range ops {
			kinds := [...]opKind{opWrite, opWrite, opGroup, opPart, opZero, opZeroes, opError, opRead, opRead, opRead}
			ops[i] = op{kinds[s.rng.IntN(len(kinds))], s.rng.IntN(len(lbas)), uint32(s.rng.IntN(2))}
		}
		threads = append(threads, ops)
	}
	return threads
}

// crash is what a power cut or a kill leaves of m.
func (s *sample) crash(m *pmemtest.Machine) *pmemtest.Machine {
	luck := luck{s.rng, s.rng.IntN(12), s.rng.IntN(12)}
	if s.rng.IntN(3) == 0 && model().exhaustive() {
		s.kills++
		return m.Kill(luck)
	}
	return m.Crash(luck, nil)
}

// recover opens what is left, perhaps only after crashes while it was being
// opened, and looks at everything.
func (s *sample) recover(m *pmemtest.Machine, p promise) error {
	for s.rng.IntN(3) == 0 {
		m = s.crashInRecovery(m)
	}
	if s.rng.IntN(2) == 0 { // the others see flog and map before recovery does
		if err := foreign(m.Region(), s.flavour, &p); err != nil {
			return fmt.Errorf("recovered by others: %w", err)
		}
	}
	w := &world{m: m, now: p}
	if err := w.open(); err != nil {
		return fmt.Errorf("open: %w", err)
	}
	s.rolled += int64(w.d.Stats().LanesRecovered)
	if err := sound(m, s.flavour); err != nil {
		return err
	}
	if err := w.readAll(); err != nil {
		return err
	}
	s.print = crc64.Update(s.print, crc64.MakeTable(crc64.ECMA), m.Glance())
	w.inError = w.d.Stats().ArenasFailed > 0
	if !s.unsure && w.inError != s.w.inError {
		return fmt.Errorf("the error flag of the arena is %v, want %v", w.inError, s.w.inError)
	}
	s.w = w
	return nil
}

// crashInRecovery crashes m at a random access of an open, or after it.
func (s *sample) crashInRecovery(m *pmemtest.Machine) (left *pmemtest.Machine) {
	s.nested++
	cut := s.rng.IntN(100)
	m.OnAccess = func() {
		if cut--; cut == 0 {
			left = s.crash(m)
			panic(errPowerCut)
		}
	}
	defer func() {
		m.OnAccess = nil
		if v := recover(); v != nil && v != errPowerCut {
			panic(v)
		}
		if left == nil {
			left = s.crash(m)
		}
	}()
	open(m) // whether it can be opened is for the last one to say
	return nil
}

// luck is a [pmemtest.Chooser] that decides in so many of 16 cases for all, in so
// many for none, and in the others as it comes.
type luck struct {
	*rand.Rand
	all, none int
}

// Choose implements [pmemtest.Chooser].
func (l luck) Choose(n int) int {
	switch k := l.IntN(16); {
	case k < l.all:
		return 0
	case k < l.all+l.none:
		return min(1, n-1)
	}
	return l.IntN(n)
}

// restless is a [pmemtest.Chooser] for schedules: it mostly lets a thread go on.
type restless struct{ *rand.Rand }

// Choose implements [pmemtest.Chooser].
func (r restless) Choose(n int) int {
	if r.IntN(6) > 0 {
		return 0
	}
	return r.IntN(n)
}
