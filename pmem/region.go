package pmem

import "fmt"

// Durability is what a completed [Region.Drain] has made the caller's stores
// survive. It follows from the medium and is fixed when a region is opened.
type Durability int

const (
	// DAX: persistent memory mapped with MAP_SYNC. Flush writes cache lines back,
	// Drain is a fence. Survives a power failure.
	DAX Durability = iota
	// Msync: a file in the page cache. Flush notes a range, Drain is one msync(2)
	// shared by everyone who waits for it. Survives a power failure.
	Msync
	// Process: tmpfs, heap, a read-only region, or asked for. Flush is nothing,
	// Drain is a fence. Survives kill -9 of this process, not a power failure.
	Process
)

// String is the name used in logs and JSON: "dax", "msync" or "process".
func (d Durability) String() string {
	switch d {
	case DAX:
		return "dax"
	case Msync:
		return "msync"
	case Process:
		return "process"
	}
	return fmt.Sprintf("durability(%d)", int(d))
}

// A Region is a range of byte-addressable memory, starting at offset 0. All
// methods but Close may be called from many goroutines at once. An offset out of
// range or not aligned as stated is a bug of the caller and panics.
type Region struct {
	words            // mem as 4 and 8 byte words: Load32, Load64, Store32, Store64
	mem   []byte     // INVARIANT: starts 8-byte aligned; nil once closed
	tr    Tracer     // nil in production
	dur   Durability // which flush and drain to use
	touch bool       // a store may have to allocate a block first; see Touch

	commit *committer                // Msync only
	kernel func(lo, hi uint64) error // what stands for msync(2) in a simulation; else nil
	file   *file                     // nil for heap memory
}

// NewHeap returns size bytes of zeroed, 4096-aligned heap memory. Durability is
// [Process]; nothing is left of it when the process ends.
func NewHeap(size uint64) *Region {
	return newRegion(alignedHeap(size, 4096), Process, nil)
}

func newRegion(mem []byte, dur Durability, tr Tracer) *Region {
	return &Region{words: wordsOf(mem, tr != nil), mem: mem, dur: dur, tr: tr}
}

// Size is the number of bytes of the region; 0 once it is closed.
func (r *Region) Size() uint64 { return uint64(len(r.mem)) }

// Durability is what Drain promises. It is [Process] for a read-only region,
// where there is nothing to make durable, and [DAX] for a traced one that is not a
// file, which is what its tracer stands for.
func (r *Region) Durability() Durability {
	if r.tr != nil && r.commit == nil {
		return DAX
	}
	return r.dur
}

// Traced reports whether a [Tracer] watches the region.
func (r *Region) Traced() bool { return r.tr != nil }

// Path is the path the region was opened by; "" for heap memory.
func (r *Region) Path() string {
	if r.file == nil {
		return ""
	}
	return r.file.path
}

// Sized reports whether the file was empty when it was opened, and has its size from
// [Options].SizeIfEmpty.
func (r *Region) Sized() bool { return r.file != nil && r.file.sized }

// ReadOnly reports whether stores stay private to this process and are lost when
// it ends.
func (r *Region) ReadOnly() bool { return r.file != nil && r.file.readOnly }

// Read copies len(p) bytes at off into p; any alignment. It is not atomic: the
// caller keeps writers away, or checks afterwards.
func (r *Region) Read(p []byte, off uint64) {
	n := uint64(len(p))
	if r.tr != nil || off > r.Size() || n > r.Size()-off {
		r.beforeLoad(off, n, 1)
	}
	copyOut(p, r.mem[off:off+n])
}

// ReadRacing is Read while others may be storing to the range: what it copies is worth
// something only if loads that come after it find that nobody was. They really do come
// after it. It reports false, having copied nothing of worth, where that order cannot be
// had: in race builds, on processors that we do not know, and where a [Tracer] says so.
// A simulation lets others run in the middle of the copy.
func (r *Region) ReadRacing(p []byte, off uint64) bool {
	n := uint64(len(p))
	if !ordersLoads || n > r.n8 || off > r.n8-n {
		return r.readTorn(p, off)
	}
	r.copyRacing(p, off)
	orderLoads()
	return true
}

// ReadOnce is Read for those who go through a lot of bytes once: it does not map
// their pages, which costs more than copying them. What a read-only region keeps to
// itself it does not see (see [Region.ReadOnly]).
func (r *Region) ReadOnce(p []byte, off uint64) {
	if r.tr == nil && r.file != nil && r.file.readAt(p, off) {
		return
	}
	r.Read(p, off)
}

// Prefetch hints that the n bytes at off will be read soon. It is worth its few
// nanoseconds when there is something else to do before the read. A range that is
// not all there is ignored.
func (r *Region) Prefetch(off, n uint64) {
	if off <= r.Size() && n <= r.Size()-off {
		fetchAhead(r.mem[off : off+n])
	}
}

// Write copies p to off; off and len(p) are multiples of 8. No part of it is
// ordered with any other until the next Drain, which also makes it durable and
// visible to readers on other CPUs; it needs no Flush. Each aligned 8 bytes land
// whole or not at all.
func (r *Region) Write(off uint64, p []byte) {
	n := uint64(len(p))
	if r.tr != nil || (off|n)%8 != 0 || off > r.Size() || n > r.Size()-off {
		r.beforeBulk(off, p)
	}
	dst := r.mem[off : off+n]
	if hasStream && r.dur != Msync {
		streamCopy(dst, p)
		return
	}
	copy(dst, p)
	r.flush(off, n)
}

// Zero is Write of n zero bytes.
func (r *Region) Zero(off, n uint64) {
	if r.tr != nil || (off|n)%8 != 0 || off > r.Size() || n > r.Size()-off {
		r.beforeBulkZero(off, n)
	}
	dst := r.mem[off : off+n]
	if hasStream && r.dur != Msync {
		streamZero(dst)
		return
	}
	clear(dst)
	r.flush(off, n)
}

// Touch makes the page of off writable now, so that a full disk faults here (see
// [Region.CatchFault]) and not in the middle of something. It changes no byte. It
// does nothing where no store can need a new block: heap and read-only memory, and
// DAX or Process files that had no holes when they were opened. In Msync mode it
// always acts, because a page that was written back is write-protected again and
// a copy-on-write filesystem then allocates anew.
func (r *Region) Touch(off uint64) {
	if off >= r.Size() {
		r.check("touch", off, 1, 1)
	}
	if r.touch {
		r.addNothing(off &^ 3)
	}
}

// Flush starts making the n bytes at off durable, as they are now; any alignment.
// They are durable when the next Drain by the caller returns.
func (r *Region) Flush(off, n uint64) {
	if r.tr != nil || off > r.Size() || n > r.Size()-off {
		r.beforeFlush(off, n)
	}
	r.flush(off, n)
}

func (r *Region) flush(off, n uint64) {
	switch r.dur {
	case DAX:
		flushLines(r.mem[off : off+n])
	case Msync:
		// Noted after the stores, never before: a round that took the range in
		// between would have written the old bytes.
		r.commit.note(off, off+n)
	}
}

// Drain returns when everything the caller wrote with Write or Zero, or flushed,
// is as durable as Durability says. Only Msync can fail, and then for good: the
// kernel may have dropped the pages it could not write, so every later Drain
// returns the same error.
func (r *Region) Drain() error {
	if r.tr != nil {
		if err := r.tr.Drain(); err != nil {
			return err
		}
	}
	if r.dur == Msync {
		return r.commit.drain()
	}
	fence()
	return nil
}

// Persist is Flush and Drain.
func (r *Region) Persist(off, n uint64) error {
	r.Flush(off, n)
	return r.Drain()
}

// Await is where a simulator may run other goroutines until ready reports true.
// It returns at once when the region is not traced; the caller then waits in its
// own way. A closure passed here is allocated, so guard the call with Traced.
func (r *Region) Await(ready func() bool) {
	if r.tr != nil {
		r.tr.Await(ready)
	}
}

// Hint is a number for spreading callers over things of which any will do: mostly
// the same for one goroutine, so that it finds again what is in its CPU's cache, and
// another for the next. In a simulation, which must be repeatable, it is the tracer's.
func (r *Region) Hint() uint32 {
	if r.tr != nil {
		return r.tr.Hint()
	}
	return StackHint()
}

// check panics unless [off, off+n) is in range and off is a multiple of align.
func (r *Region) check(op string, off, n, align uint64) {
	if off > r.Size() || n > r.Size()-off {
		panic(fmt.Sprintf("pmem: %s of %d bytes at offset %d: out of range, %s has %d bytes",
			op, n, off, r.name(), r.Size()))
	}
	if off%align != 0 {
		panic(fmt.Sprintf("pmem: %s at offset %d of %s: not a multiple of %d", op, off, r.name(), align))
	}
}

func (r *Region) name() string {
	if r.file == nil {
		return "heap region"
	}
	return r.file.path
}
