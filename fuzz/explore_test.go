package fuzz

import (
	"fmt"
	"hash/maphash"

	"github.com/bttnbd/bttnbd/layout"
	"github.com/bttnbd/bttnbd/pmem"
	"github.com/bttnbd/bttnbd/pmem/pmemtest"
)

// explorer looks at every image that a crash can leave.
type explorer struct {
	flavour layout.Flavour
	file    bool // the memory is a file behind the page cache
	racing  bool // readers copy first, and look afterwards whether that was right
	alone   bool // recovery by others is looked at elsewhere
	images  int  // crash images recovered and verified
	nested  int  // of them, from a crash in recovery or after it
	kills   int  // of them, from a kill with the power on
	choices int  // lines whose fate was decided
	states  map[promise0]struct{}
	spare   [4]*pmemtest.Machine // by depth
	seen    map[moment]struct{}  // see again
	used    map[moment]struct{}  // see use
	skipped int                  // images whose use it left out
	seed    maphash.Seed
}

// moment is all that the verdict on a crash depends on.
type moment struct {
	memory   uint64
	promised uint64
}

// again reports whether all that the verdict on a crash depends on has come by
// before: the memory, the promise, and how deep to look.
func (e *explorer) again(m *pmemtest.Machine, p promise, depth int) bool {
	if e.seen == nil {
		e.seen = map[moment]struct{}{}
	}
	at := moment{m.Fingerprint(e.hashSeed()), e.hashPromise(p, depth)}
	_, again := e.seen[at]
	e.seen[at] = struct{}{}
	return again
}

// use is goOn, unless a device has been used, from recovery on, that was in every way
// the one of w: its machine began with the same memory after the power cut, and the
// same was promised. A device follows from that memory, and what is done with it here
// from the promise, so all would end as it did. A failure ends everything: it was good.
func (e *explorer) use(w *world) error {
	origin, ok := w.m.Origin(e.hashSeed())
	at := moment{origin, e.hashPromise(w.now, w.writes)}
	if _, done := e.used[at]; done && ok {
		e.skipped++
		return nil
	}
	choices := w.m.Count.Choices
	err := e.goOn(w)
	if ok && w.m.Count.Choices == choices { // or there is another end for each choice
		if e.used == nil {
			e.used = map[moment]struct{}{}
		}
		e.used[at] = struct{}{}
	}
	return err
}

func (e *explorer) hashSeed() maphash.Seed {
	if e.seed == (maphash.Seed{}) {
		e.seed = maphash.MakeSeed()
	}
	return e.seed
}

func (e *explorer) hashPromise(p promise, n int) uint64 {
	var h maphash.Hash
	h.SetSeed(e.hashSeed())
	maphash.WriteComparable(&h, n)
	for i := range p {
		maphash.WriteComparable(&h, len(p[i]))
		for _, c := range p[i] {
			maphash.WriteComparable(&h, c)
		}
	}
	return h.Sum64()
}

// promise0 is a distinct state after recovery.
type promise0 [len(lbas)]content

// crash verifies all images of a power cut of m at this moment. depth is how many
// further crashes are tried on top of each.
func (e *explorer) crash(m *pmemtest.Machine, w *world, p promise, depth int) error {
	if e.again(m, p, depth) {
		return nil
	}
	for o := newFates(); ; {
		n := m.Crash(o, e.spare[depth])
		e.spare[depth] = n
		e.images++
		if err := e.verify(n, w, p, depth); err != nil {
			return err
		}
		e.choices += n.Count.Choices
		if !o.Next() {
			return nil
		}
	}
}

// kill verifies what a successor sees when the process is killed at this moment
// with the power on, and that a power cut later takes nothing of that back.
func (e *explorer) kill(m *pmemtest.Machine, w *world, p promise) error {
	if !model().exhaustive() {
		return nil
	}
	for o := new(pmemtest.Odometer); ; {
		e.kills++
		if err := e.verify(m.Kill(o), w, p, 1); err != nil {
			return fmt.Errorf("after a kill: %w", err)
		}
		if !o.Next() {
			return nil
		}
	}
}

// verify recovers a machine after a crash and checks everything that can be.
func (e *explorer) verify(m *pmemtest.Machine, before *world, p promise, depth int) error {
	if !e.alone {
		if err := foreign(m.Region(), e.flavour, &p); err != nil {
			return fmt.Errorf("recovered by others: %w", err)
		}
		if _, err := checked(m); err != nil { // foreign has read, and so decided, flog and map
			return fmt.Errorf("before recovery: %w", err)
		}
	}
	w := &world{m: m, now: p, writes: before.writes + 1}
	if depth > 0 {
		onCrash(m, func() error {
			e.nested++
			return e.wrap("crash in recovery", e.crash(m, w, p, depth-1))
		})
	}
	err := w.open()
	onCrash(m, nil)
	if err != nil {
		return fmt.Errorf("open: %w", err)
	}
	if err := sound(m, e.flavour); err != nil {
		return err
	}
	if err := w.readAll(); err != nil {
		return err
	}
	e.note(w)
	if depth > 0 {
		// What has been read is now a promise.
		if err := e.wrap("crash after recovery and a read", e.crash(m, w, w.now, depth-1)); err != nil {
			return err
		}
		e.nested++
	}
	return e.use(w)
}

func (e *explorer) wrap(where string, err error) error {
	if err != nil {
		return fmt.Errorf("%s: %w", where, err)
	}
	return nil
}

func (e *explorer) note(w *world) {
	var s promise0
	for i := range s {
		s[i] = w.now[i][0]
	}
	if e.states == nil {
		e.states = map[promise0]struct{}{}
	}
	e.states[s] = struct{}{}
}

// goOn uses a recovered device: every lane writes, everything is read back, also
// after a reopen. A lane that recovery has left in a wrong state shows here.
func (e *explorer) goOn(w *world) error {
	if w.d.Stats().ArenasFailed > 0 {
		if err := w.do(op{kind: opClearFlag}); err != nil {
			return fmt.Errorf("after recovery: %w", err)
		}
	}
	for _, o := range []op{{opGroup, 0, lowLanes}, {opGroup, 0, highLanes}, {opWrite, 1, lowLanes}, {kind: opReopen}} {
		if err := w.do(o); err != nil {
			return fmt.Errorf("after recovery: %w", err)
		}
		if err := w.readAll(); err != nil {
			return fmt.Errorf("after recovery and %v: %w", o, err)
		}
	}
	return bijective(w.m.Region(), e.flavour)
}

// world is a freshly formatted device in the memory that is being explored.
func (e *explorer) world() *world {
	if e.file {
		return newWorldOn(pmemtest.NewFile(formatted[e.flavour.Name]))
	}
	return newWorld(e.flavour)
}

// run carries the operations out, the last one with a crash before each drain and
// after it is done.
func (e *explorer) run(ops []op, depth int) error {
	w := e.world()
	for i, o := range ops {
		last := i == len(ops)-1
		if last {
			during, _ := w.during(o)
			onCrash(w.m, func() error {
				if err := e.crash(w.m, w, during, depth); err != nil {
					return fmt.Errorf("crash in %v before drain %d: %w", o, w.m.Count.Drains, err)
				}
				if err := e.kill(w.m, w, during); err != nil {
					return fmt.Errorf("in %v before drain %d: %w", o, w.m.Count.Drains, err)
				}
				return nil
			})
		}
		if err := w.lint(o); err != nil {
			return err
		}
		onCrash(w.m, nil)
		if !last {
			continue
		}
		if err := e.crash(w.m, w, w.now, depth); err != nil {
			return fmt.Errorf("crash after %v: %w", o, err)
		}
		if err := e.kill(w.m, w, w.now); err != nil {
			return fmt.Errorf("after %v: %w", o, err)
		}
	}
	return w.readAll()
}

// drains is how many drains each operation takes: one more costs time, one less
// costs data.
var drains = map[opKind]int{
	opWrite: 3, opGroup: 3, opPart: 3, opZero: 1, opZeroes: 1, opError: 1, opReopen: 2, opSetFlag: 2, opClearFlag: 2,
}

// lint carries o out and checks that it does what it must and no more: nothing
// undurable is acknowledged, no drain is wasted or missing, no clean line flushed,
// and no block that the map owns is stored to.
func (w *world) lint(o op) (err error) {
	if model() != full {
		return w.do(o)
	}
	want, wantMended := w.drains(o)
	before := w.m.Count
	w.m.OnWrite = func(off, n uint64) {
		if lba, live := liveBlock(w.m, off); live && err == nil {
			err = fmt.Errorf("%v stores into the block of lba %d", o, lba)
		}
	}
	refused := w.refuses(o)
	if doErr := w.do(o); doErr != nil {
		return doErr
	}
	w.m.OnWrite = nil
	did := w.m.Count
	if err != nil {
		return err
	}
	if dirty := w.m.Undurable(); len(dirty) > 0 {
		return fmt.Errorf("%v is acknowledged, but the lines at %d are not durable", o, dirty)
	}
	if n := did.Drains - before.Drains; !refused && n != want && n != wantMended {
		return fmt.Errorf("%v took %d drains, want %d", o, n, want)
	}
	if o.kind != opReopen && (did.UselessDrains != before.UselessDrains || did.CleanFlushes != before.CleanFlushes) {
		return fmt.Errorf("%v: %d drains of nothing, %d flushes of clean lines", o,
			did.UselessDrains-before.UselessDrains, did.CleanFlushes-before.CleanFlushes)
	}
	return nil
}

// drains is how many drains o takes: none if there is nothing to change, and one
// more if it may meet a lane whose free block was bad.
func (w *world) drains(o op) (want, wantMended int) {
	want = drains[o.kind]
	mem := pmem.NewTraced(w.m.Peek(), nil)
	geo := parts(mem, w.d.Flavour())
	base := mem.Size() - arena
	if w.d.Flavour().InitialZero && (o.kind == opZero || o.kind == opZeroes) {
		first, last := lbas[o.block], lbas[o.block]
		if o.kind == opZeroes {
			first, last = lbas[0], lbas[2]
		}
		idle := true
		for lba := first; lba <= last; lba++ {
			e := layout.MapEntry(mem.Load32(base + geo.MapOff + uint64(lba)*4))
			idle = idle && e.State() == layout.Initial
		}
		if idle {
			want = 0
		}
	}
	for off := geo.FlogOff; off < geo.FlogOff+nfree*layout.FlogGroupSize; off += layout.FlogRecordSize {
		if layout.MapEntry(mem.Load32(base+off+4)).State() == layout.Error {
			return want, want + 1
		}
	}
	return want, want
}

// parts finds the arena of a world's region, which holds just one.
func parts(r *pmem.Region, f layout.Flavour) layout.Geometry {
	geo, err := layout.NewGeometry(arena, layout.Params{ExternalLBASize: sector, Nfree: nfree, Align: layout.Kernel.Align})
	if err != nil {
		panic(err)
	}
	return geo
}

// liveBlock reports which lba owns the internal block at off, if off is data.
func liveBlock(m *pmemtest.Machine, off uint64) (lba uint32, live bool) {
	r := m.Region()
	base := r.Size() - arena
	geo := parts(r, layout.Kernel)
	if off < base+geo.DataOff || off >= base+geo.MapOff {
		return 0, false
	}
	block := layout.PostmapLBA((off - base - geo.DataOff) / uint64(geo.InternalLBASize))
	mem := pmem.NewTraced(m.Peek(), nil)
	for lba := range geo.ExternalNLBA {
		e := layout.MapEntry(mem.Load32(base + geo.MapOff + uint64(lba)*4))
		if e.Owned(layout.PremapLBA(lba)) == block {
			return lba, true
		}
	}
	return 0, false
}

// bijective checks invariant I1 with a reader of its own: after recovery every
// internal block is owned once, by a map entry or by a lane.
func bijective(r *pmem.Region, f layout.Flavour) error {
	geo := parts(r, f)
	base := r.Size() - arena
	var owner [64]string
	own := func(block layout.PostmapLBA, who string, n uint32) error {
		if uint32(block) >= geo.InternalNLBA {
			return fmt.Errorf("%s %d owns block %d of %d", who, n, block, geo.InternalNLBA)
		}
		if owner[block] != "" {
			return fmt.Errorf("block %d is owned by %s and by %s %d", block, owner[block], who, n)
		}
		owner[block] = who
		return nil
	}
	for lba := range geo.ExternalNLBA {
		e := layout.MapEntry(r.Load32(base + geo.MapOff + uint64(lba)*4))
		if err := own(e.Owned(layout.PremapLBA(lba)), "lba", lba); err != nil {
			return err
		}
	}
	for lane := range geo.Nfree {
		var b [layout.FlogGroupSize]byte
		r.Read(b[:], base+geo.FlogOff+uint64(lane)*layout.FlogGroupSize)
		g := layout.DecodeFlogGroup(b[:])
		cur, err := g.Current(paddingOf(f))
		if err != nil {
			return fmt.Errorf("lane %d: %w", lane, err)
		}
		if err := own(g[cur].Old.Block(), "lane", lane); err != nil {
			return err
		}
	}
	return nil
}
