package pmem

import "fmt"

// A Tracer watches a region made by [NewTraced]. Every method is called before the
// real operation, on the caller's goroutine, after the range was checked. It may
// block, to let another goroutine run first, and it may panic, to cut the power.
type Tracer interface {
	Load(off, n uint64)        // Load32, Load64, Read
	Racing(off, n uint64) bool // each half of ReadRacing; false: it must not happen
	Store(off, n, v uint64)    // Store32, Store64: n is 4 or 8; v's bytes are little-endian on media
	Bulk(off uint64, p []byte) // Write; p must not be kept or changed
	BulkZero(off, n uint64)    // Zero
	Flush(off, n uint64)       // also of Persist
	Drain() error              // an error is what the caller's Drain returns
	Await(ready func() bool)   // return when ready reports true, or when nobody can make it so
	Hint() uint32              // what Region.Hint returns
}

// NewTraced returns a region over buf, which starts 8-byte aligned, with every
// operation announced to t. The operations themselves are those of [NewHeap].
func NewTraced(buf []byte, t Tracer) *Region {
	if address(buf)%8 != 0 {
		panic("pmem: traced region: buffer is not 8-byte aligned")
	}
	return newRegion(buf, Process, t)
}

// What comes before an operation that is out of range or traced. These stand apart
// because the inliner's budget has room for one call; noinline, because what is
// inlined here would count there.

//go:noinline
func (r *Region) beforeLoad32(off uint64) { r.beforeLoad(off, 4, 4) }

//go:noinline
func (r *Region) beforeLoad64(off uint64) { r.beforeLoad(off, 8, 8) }

// readTorn is ReadRacing where it is traced or not possible.
func (r *Region) readTorn(p []byte, off uint64) bool {
	r.check("read", off, uint64(len(p)), 1)
	if r.tr == nil {
		return false
	}
	half := len(p) / 2
	for _, part := range [...][]byte{p[:half], p[half:]} {
		if !r.tr.Racing(off, uint64(len(part))) {
			return false
		}
		copy(part, r.mem[off:])
		off += uint64(len(part))
	}
	return true
}

func (r *Region) beforeLoad(off, n, align uint64) {
	r.check("load", off, n, align)
	if r.tr != nil {
		r.tr.Load(off, n)
	}
}

//go:noinline
func (r *Region) beforeStore32(off uint64, v uint32) { r.beforeStore(off, 4, uint64(v)) }

//go:noinline
func (r *Region) beforeStore64(off uint64, v uint64) { r.beforeStore(off, 8, v) }

func (r *Region) beforeStore(off, n, v uint64) {
	r.check("store", off, n, n)
	if r.tr != nil {
		r.tr.Store(off, n, v)
	}
}

func (r *Region) beforeBulk(off uint64, p []byte) {
	r.checkBulk("write", off, uint64(len(p)))
	if r.tr != nil {
		r.tr.Bulk(off, p)
	}
}

func (r *Region) beforeBulkZero(off, n uint64) {
	r.checkBulk("zero", off, n)
	if r.tr != nil {
		r.tr.BulkZero(off, n)
	}
}

func (r *Region) beforeFlush(off, n uint64) {
	r.check("flush", off, n, 1)
	if r.tr != nil {
		r.tr.Flush(off, n)
	}
}

func (r *Region) checkBulk(op string, off, n uint64) {
	r.check(op, off, n, 8)
	if n%8 != 0 {
		panic(fmt.Sprintf("pmem: %s of %d bytes at offset %d of %s: length is not a multiple of 8",
			op, n, off, r.name()))
	}
}

// NewTracedFile is [NewTraced] for a file behind the page cache: durability is
// [Msync], and msync stands for msync(2) of bytes lo to hi. Like the kernel's it may
// insist on a lo that is a multiple of 4096, and it takes whole pages.
func NewTracedFile(buf []byte, t Tracer, msync func(lo, hi uint64) error) *Region {
	r := NewTraced(buf, t)
	r.dur, r.kernel = Msync, msync
	r.commit = newCommitter("simulated file", r.msync)
	return r
}
