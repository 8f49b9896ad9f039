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

const (
	// chunkEntries is how many map entries are read at once: 128 KiB, which stays in
	// the cache.
	chunkEntries = 32 << 10

	// bucketBudget is how many bytes the buckets of all goroutines take together.
	bucketBudget = 24 << 20
	maxBucket    = 64 << 10 // entries
	minBucket    = 1 << 10
)

// mapScan goes through the map of one arena.
type mapScan struct {
	*reader
	c      *collector
	a      *Arena
	owners *owners
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

// scan examines the whole map on several goroutines. Each sorts the blocks it comes
// across into buckets, one for a slice of the bitmap, and empties a bucket into its
// slice when it is full: so most of the claims find their word in the cache. Going
// straight to the bitmap costs a cache miss an entry, and with atomic operations it
// waits for each of them.
func (s *mapScan) scan(ctx context.Context, p *progress) error {
	n := s.a.Info.ExternalNLBA
	chunks := (n + chunkEntries - 1) / chunkEntries
	workers := make([]mapWorker, s.workers(chunks))
	size := min(max(bucketBudget/4/len(workers)/len(s.owners.locks), minBucket), maxBucket, int(n))
	errs := make([]error, len(workers))
	var next atomic.Uint32
	var wg sync.WaitGroup
	for i := range workers {
		w := &workers[i]
		w.mapScan, w.next, w.chunks, w.size = s, &next, chunks, size
		if i > 0 {
			wg.Go(func() { errs[i] = w.run(ctx, nil) })
		}
	}
	errs[0] = workers[0].run(ctx, func() { p.reached(min(uint64(next.Load())*chunkEntries, uint64(n))) })
	wg.Wait()
	for i := range workers {
		if errs[i] != nil {
			return errs[i]
		}
		s.join(&workers[i])
	}
	p.add(uint64(n))
	s.reportOdd()
	return nil
}

// workers is on how many goroutines a map of so many chunks is examined.
func (s *mapScan) workers(chunks uint32) int {
	if s.region.Traced() {
		return 1 // a simulation runs one goroutine at a time
	}
	return max(1, min(runtime.GOMAXPROCS(0), int(chunks)))
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
	next   *atomic.Uint32 // chunk that nobody has taken yet
	chunks uint32
	count  [4]uint64
	odd    oddCount

	buckets []layout.PostmapLBA // size of them for each slice
	fill    []int               // how many are in each
	size    int
}

func (w *mapWorker) run(ctx context.Context, report func()) (err error) {
	defer w.region.CatchFault(&err)
	defer pmem.ArmFaults()()
	buf := make([]byte, 4*min(chunkEntries, w.a.Info.ExternalNLBA))
	w.fill = make([]int, len(w.owners.locks))
	w.buckets = make([]layout.PostmapLBA, len(w.fill)*w.size)
	for {
		chunk := w.next.Add(1) - 1
		if chunk >= w.chunks {
			for slice := range w.fill {
				w.empty(layout.PostmapLBA(slice))
			}
			return nil
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		first := chunk * chunkEntries
		b := buf[:4*min(chunkEntries, w.a.Info.ExternalNLBA-first)]
		w.region.Read(b, w.a.mapEntry(layout.PremapLBA(first)))
		w.examine(layout.PremapLBA(first), b)
		if report != nil {
			report()
		}
	}
}

// examine claims the blocks of the entries in b, counts the entries, and notes the
// odd ones. The loop is for normal entries; a map that was never written is zeros,
// so those go by the run.
func (w *mapWorker) examine(first layout.PremapLBA, b []byte) {
	limit := layout.PostmapLBA(w.a.Info.InternalNLBA)
	buckets, fill, size := w.buckets, w.fill, w.size
	normal := uint64(0)
	for i := 0; i+4 <= len(b); i += 4 {
		e := layout.MapEntry(binary.LittleEndian.Uint32(b[i:]))
		if block := e.Block(); e.State() == layout.Normal && block < limit {
			normal++
			slice := block / sliceBlocks
			k := fill[slice]
			buckets[int(slice)*size+k] = block
			if fill[slice] = k + 1; k+1 == size {
				w.empty(slice)
			}
			continue
		}
		lba := first + layout.PremapLBA(i/4)
		if e == 0 {
			run := zeros(b[i:])
			w.count[layout.Initial] += uint64(run)
			w.owners.claimRange(layout.PostmapLBA(lba), run)
			i += 4 * int(run-1)
			continue
		}
		w.other(lba, e)
	}
	w.count[layout.Normal] += normal
}

// put adds a block to its bucket.
func (w *mapWorker) put(block layout.PostmapLBA) {
	slice := block / sliceBlocks
	w.buckets[int(slice)*w.size+w.fill[slice]] = block
	if w.fill[slice]++; w.fill[slice] == w.size {
		w.empty(slice)
	}
}

// empty claims what is in a bucket.
func (w *mapWorker) empty(slice layout.PostmapLBA) {
	from := int(slice) * w.size
	w.owners.claimAll(slice, w.buckets[from:from+w.fill[slice]])
	w.fill[slice] = 0
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
		w.put(block)
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
	n := s.a.Info.ExternalNLBA
	buf := make([]byte, 4*min(n, chunkEntries))
	for first := uint32(0); first < n; first += min(chunkEntries, n-first) {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		b := buf[:4*min(chunkEntries, n-first)]
		s.region.Read(b, s.a.mapEntry(layout.PremapLBA(first)))
		if err := fn(layout.PremapLBA(first), b); err != nil {
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
