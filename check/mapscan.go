package check

import (
	"context"
	"encoding/binary"
	"fmt"
	"maps"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/bttnbd/bttnbd/layout"
	"github.com/bttnbd/bttnbd/pmem"
)

// chunkEntries is how many map entries a goroutine takes up at once: 256 KiB, which
// stay in the cache.
const chunkEntries = 64 << 10

// mapScan goes through the map of one arena.
type mapScan struct {
	*reader
	c      *collector
	a      *Arena
	owners *owners   // nil: entries are counted, and nothing else
	count  [4]uint64 // by layout.EntryState
	oddCount
}

// oddEntry is a map entry that deserves a finding.
type oddEntry struct {
	kind  Kind
	lba   layout.PremapLBA
	entry layout.MapEntry
}

// oddCount is how many entries are odd, by the kinds MapRange to MapError.
type oddCount struct {
	n     [numKinds]uint64
	first []oddEntry // at most maxFindings of each kind
}

func (o *oddCount) add(k Kind, lba layout.PremapLBA, e layout.MapEntry) {
	if o.n[k]++; o.n[k] <= maxFindings {
		o.first = append(o.first, oddEntry{k, lba, e})
	}
}

// scan examines the whole map on several goroutines, which take up a chunk of it at
// a time. Where they keep the blocks that they come across: see claims.
func (s *mapScan) scan(ctx context.Context, p *progress) error {
	for _, way := range s.ways() {
		told, err := s.pass(ctx, way.list, p)
		if err != nil {
			return err
		}
		if told {
			way.join()
			break
		}
		clear(s.owners.bits)
	}
	p.add(uint64(s.a.Info.ExternalNLBA))
	s.reportOdd()
	return nil
}

// ways are how the claims can be kept, of which the first one counts that tells all.
func (s *mapScan) ways() []way {
	count := s.workers()
	if s.owners == nil {
		return []way{{make([]claims, count), func() {}}}
	}
	ways := []way{s.buckets(count)}
	if size := 8 * len(s.owners.bits); size <= maxOwnBits {
		ways = []way{s.ownBits(min(count, claimBudget/size)), ways[0]}
	}
	return ways
}

// chunks is how many there are to be taken up.
func (s *mapScan) chunks() uint32 { return (s.a.Info.ExternalNLBA + chunkEntries - 1) / chunkEntries }

// workers is on how many goroutines the map is examined.
func (s *mapScan) workers() int {
	if s.region.Traced() {
		return 1 // a simulation runs one goroutine at a time
	}
	return max(1, min(runtime.GOMAXPROCS(0), int(s.chunks())))
}

// pass goes through the map once, on a goroutine for each of list. It reports
// whether all that was claimed is told; if not, nothing is.
func (s *mapScan) pass(ctx context.Context, list []claims, p *progress) (told bool, err error) {
	workers := make([]mapWorker, len(list))
	errs := make([]error, len(workers))
	var next atomic.Uint32
	var wg sync.WaitGroup
	for i := range workers {
		w := &workers[i]
		w.mapScan, w.claims, w.next = s, list[i], &next
		if i > 0 {
			wg.Go(func() { errs[i] = w.run(ctx, nil) })
		}
	}
	errs[0] = workers[0].run(ctx, func() {
		p.reached(min(uint64(next.Load())*chunkEntries, uint64(s.a.Info.ExternalNLBA)))
	})
	wg.Wait()
	told = true
	for i := range workers {
		if errs[i] != nil {
			return false, errs[i]
		}
		told = told && workers[i].told
	}
	for i := range workers {
		if told {
			s.join(&workers[i])
		}
	}
	return told, nil
}

// join adds up what a worker has found.
func (s *mapScan) join(w *mapWorker) {
	for i, n := range w.count {
		s.count[i] += n
	}
	for k, n := range w.odd.n {
		s.n[k] += n
	}
	s.first = append(s.first, w.odd.first...)
}

// mapWorker is one goroutine of a scan.
type mapWorker struct {
	*mapScan
	claims claims         // nil: only count
	next   *atomic.Uint32 // chunk that nobody has taken yet
	count  [4]uint64
	odd    oddCount
	told   bool // see claims.end
}

// buffer has room for a chunk of the map.
func (s *mapScan) buffer() []byte { return make([]byte, 4*min(chunkEntries, s.a.Info.ExternalNLBA)) }

// read reads a chunk of the map, from first on, into the buffer buf.
func (s *mapScan) read(first uint32, buf []byte) []byte {
	b := buf[:4*min(chunkEntries, s.a.Info.ExternalNLBA-first)]
	s.region.ReadOnce(b, s.a.mapEntry(layout.PremapLBA(first)))
	return b
}

func (w *mapWorker) run(ctx context.Context, report func()) (err error) {
	defer w.region.CatchFault(&err)
	defer pmem.ArmFaults()()
	if w.claims != nil {
		w.claims.begin()
	}
	buf := w.buffer()
	for chunk := w.next.Add(1) - 1; chunk < w.chunks(); chunk = w.next.Add(1) - 1 {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		first := chunk * chunkEntries
		if b := w.read(first, buf); w.claims != nil {
			w.examine(layout.PremapLBA(first), b)
		} else {
			w.tally(b)
		}
		if report != nil {
			report()
		}
	}
	w.told = w.claims == nil || w.claims.end()
	return nil
}

// tally counts the entries of a chunk by their states. The counters, of 16 bits
// each, stand side by side in a word: so there is no branch to be mispredicted.
func (w *mapWorker) tally(b []byte) {
	var even, odd uint64
	for ; len(b) >= 8; b = b[8:] {
		two := binary.LittleEndian.Uint64(b)
		even += 1 << (two >> 30 & 3 * 16)
		odd += 1 << (two >> 62 * 16)
	}
	if len(b) > 0 {
		even += 1 << (binary.LittleEndian.Uint32(b) >> 30 * 16)
	}
	for state := range w.count {
		w.count[state] += even>>(16*state)&0xffff + odd>>(16*state)&0xffff
	}
}

// examine claims the blocks of the entries in b, counts the entries, and notes the
// odd ones. Most entries are normal, or were never written and are zeros: both go
// by the run.
func (w *mapWorker) examine(first layout.PremapLBA, b []byte) {
	for i := 0; i < len(b); {
		n := w.claims.normal(b[i:])
		w.count[layout.Normal] += uint64(n)
		if i += 4 * n; i == len(b) {
			return
		}
		lba := first + layout.PremapLBA(i/4)
		if run := zeros(b[i:]); run > 0 {
			w.count[layout.Initial] += uint64(run)
			w.claims.run(layout.PostmapLBA(lba), run)
			i += 4 * int(run)
			continue
		}
		w.other(lba, layout.MapEntry(binary.LittleEndian.Uint32(b[i:])))
		i += 4
	}
}

// other examines an entry that is neither normal nor zeros.
func (w *mapWorker) other(lba layout.PremapLBA, e layout.MapEntry) {
	state := e.State()
	w.count[state]++
	switch {
	case state == layout.Error:
		w.odd.add(MapError, lba, e)
	case strange(lba, e):
		w.odd.add(MapInitial, lba, e)
	}
	if block := e.Owned(lba); uint32(block) < w.a.Info.InternalNLBA {
		w.claims.one(block)
	} else {
		w.odd.add(MapRange, lba, e)
	}
}

// strange: an initial entry with a block number that is not its own. Nobody writes
// those, but a normal entry that has lost its flags looks like one.
func strange(lba layout.PremapLBA, e layout.MapEntry) bool {
	return e.State() == layout.Initial && e != 0 && e != layout.MapEntry(lba)
}

// zeros is the number of entries that are 0 at the beginning of b.
func zeros(b []byte) (n uint32) {
	for len(b) >= 8 && binary.LittleEndian.Uint64(b) == 0 {
		b, n = b[8:], n+2
	}
	for len(b) >= 4 && binary.LittleEndian.Uint32(b) == 0 {
		b, n = b[4:], n+1
	}
	return n
}

// reportOdd lists the first odd entries of each kind, in the order of the map.
func (s *mapScan) reportOdd() {
	slices.SortFunc(s.first, func(a, b oddEntry) int { return int(a.lba) - int(b.lba) })
	var listed [numKinds]uint64
	for _, o := range s.first {
		if listed[o.kind]++; listed[o.kind] <= maxFindings {
			s.c.add(s.finding(o))
		}
	}
	for k, n := range s.n {
		severity := map[Kind]Severity{MapError: Info, MapInitial: Warning, MapRange: Error}[Kind(k)]
		s.c.omit(Kind(k), severity, n-min(n, maxFindings))
	}
}

func (s *mapScan) finding(o oddEntry) Finding {
	f := Finding{Kind: o.kind, Offset: s.a.mapEntry(o.lba), LBA: s.a.lba(o.lba)}
	switch o.kind {
	case MapError:
		f.Message = fmt.Sprintf("lba %d is marked as an error: reads of it fail until it is written", *f.LBA)
	case MapInitial:
		f.Severity = Warning
		f.Message = fmt.Sprintf("lba %d: its map entry is %#x, which counts as never written, but nobody writes a block number without flags", *f.LBA, uint32(o.entry))
		f.Repair = "mark it as an error"
	default:
		f.Severity = Error
		f.Message = fmt.Sprintf("lba %d: its map entry names internal block %d of %d; its data cannot be read", *f.LBA, o.entry.Block(), s.a.Info.InternalNLBA)
		f.Repair = "point it at a block that nobody owns, marked as an error"
	}
	return f
}

// eachChunk reads the map piece by piece and hands each to fn as bytes. It stops
// when ctx is done, or when fn returns an error.
func (s *mapScan) eachChunk(ctx context.Context, fn func(first layout.PremapLBA, b []byte) error) error {
	n, buf := s.a.Info.ExternalNLBA, s.buffer()
	for first := uint32(0); first < n; first += min(chunkEntries, n-first) {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err := fn(layout.PremapLBA(first), s.read(first, buf)); err != nil {
			return err
		}
	}
	return nil
}

// nameHolders goes through lanes and map once more, to find out who owns the
// blocks of list. It sees lanes and map as the next open leaves them.
func (s *mapScan) nameHolders(ctx context.Context, list []layout.PostmapLBA, lanes []laneState, rolled entries) (map[layout.PostmapLBA]*holders, error) {
	if len(list) == 0 {
		return nil, nil
	}
	shared := make(map[layout.PostmapLBA]*holders, len(list))
	var maybe [1 << 12]bool // most entries have nothing to do with it: keep them away from the Go map
	for _, b := range list {
		shared[b] = new(holders)
		maybe[b%layout.PostmapLBA(len(maybe))] = true
	}
	for i := range lanes {
		if h := shared[lanes[i].block]; h != nil && lanes[i].owns {
			h.addLane(lanes[i].lane)
		}
	}
	for _, lba := range slices.Sorted(maps.Keys(rolled)) {
		if h := shared[rolled[lba]]; h != nil {
			h.addLBA(lba)
		}
	}
	err := s.eachChunk(ctx, func(first layout.PremapLBA, b []byte) error {
		for i := 0; i < len(b); i += 4 {
			lba := first + layout.PremapLBA(i/4)
			block := layout.MapEntry(binary.LittleEndian.Uint32(b[i:])).Owned(lba)
			if !maybe[block%layout.PostmapLBA(len(maybe))] {
				continue
			}
			if h := shared[block]; h != nil {
				if _, changes := rolled[lba]; !changes {
					h.addLBA(lba)
				}
			}
		}
		return nil
	})
	return shared, err
}
