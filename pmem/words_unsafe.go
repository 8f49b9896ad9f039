package pmem

import (
	"fmt"
	"math/bits"
	"runtime"
	"sync/atomic"
	"unsafe"
)

// The only unsafe code: from an offset to a pointer and back.

// words is the memory of a region as naturally aligned words. One comparison
// checks both range and alignment: rotating an offset right by 2 (or 3) makes it a
// word number, and moves the bits a misaligned offset has into the top, where they
// exceed any count. A traced or closed region has no words, so that the very same
// comparison leads to the slow path. Together that fits the inliner's budget,
// which a nil check and two comparisons do not.
type words struct {
	base         unsafe.Pointer
	n8, n32, n64 uint64 // words, of a byte to 8, that may be reached without the slow path
}

func wordsOf(mem []byte, traced bool) words {
	w := words{base: unsafe.Pointer(unsafe.SliceData(mem))}
	if !traced {
		w.n8, w.n32, w.n64 = uint64(len(mem)), uint64(len(mem)/4), uint64(len(mem)/8)
	}
	return w
}

// Load32 reads 4 bytes atomically; off is a multiple of 4.
func (r *Region) Load32(off uint64) (v uint32) {
	if bits.RotateLeft64(off, -2) >= r.n32 {
		r.beforeLoad32(off)
	}
	v = atomic.LoadUint32((*uint32)(unsafe.Add(r.base, off)))
	if bigEndian {
		v = bits.ReverseBytes32(v)
	}
	return v
}

// Load64 reads 8 bytes atomically; off is a multiple of 8.
func (r *Region) Load64(off uint64) (v uint64) {
	if bits.RotateLeft64(off, -3) >= r.n64 {
		r.beforeLoad64(off)
	}
	v = atomic.LoadUint64((*uint64)(unsafe.Add(r.base, off)))
	if bigEndian {
		v = bits.ReverseBytes64(v)
	}
	return v
}

// Store32 writes 4 bytes atomically, for readers and for a power failure alike;
// off is a multiple of 4. The store is cached: it needs Flush and Drain. Stores of
// one goroutine to one cache line become durable in program order, because they are
// releases. They are no more than that, see [StoreRelease32].
func (r *Region) Store32(off uint64, v uint32) {
	if bits.RotateLeft64(off, -2) >= r.n32 {
		r.beforeStore32(off, v)
	}
	if bigEndian {
		v = bits.ReverseBytes32(v)
	}
	StoreRelease32((*uint32)(unsafe.Add(r.base, off)), v)
}

// Store64 is Store32 of 8 bytes; off is a multiple of 8.
func (r *Region) Store64(off uint64, v uint64) {
	if bits.RotateLeft64(off, -3) >= r.n64 {
		r.beforeStore64(off, v)
	}
	if bigEndian {
		v = bits.ReverseBytes64(v)
	}
	StoreRelease64((*uint64)(unsafe.Add(r.base, off)), v)
}

// copyRacing is copyOut of bytes that the caller has found to be in range. For small
// sectors it is short.
func (r *Region) copyRacing(p []byte, off uint64) {
	n := uintptr(len(p))
	if hasLines && n%256 == 0 && n-1 < 1024 { // not 0
		movLines(unsafe.SliceData(p), (*byte)(unsafe.Add(r.base, off)), n)
		return
	}
	copyOut(p, unsafe.Slice((*byte)(unsafe.Add(r.base, off)), n))
}

// addNothing stores what is there already, so that the page becomes writable. A
// concurrent store to the same word is not lost: the addition is atomic. The
// caller has checked that the page is part of the region.
func (r *Region) addNothing(off uint64) {
	atomic.AddUint32((*uint32)(unsafe.Add(r.base, off)), 0)
}

// StackHint is a number as of [Region.Hint], for what no simulation can see: a hash of
// the place of the caller's stack. A goroutine keeps its stack, of 8 KiB or more when it
// does I/O, until it needs a larger one.
func StackHint() uint32 {
	var here byte
	return uint32(uint64(uintptr(unsafe.Pointer(&here))) >> 13 * 0x9e3779b97f4a7c15 >> 40)
}

// bigEndian hosts swap on every load and store, so that media is little-endian.
const bigEndian = runtime.GOARCH == "s390x" || runtime.GOARCH == "ppc64" ||
	runtime.GOARCH == "mips" || runtime.GOARCH == "mips64"

// address is where b starts.
func address(b []byte) uintptr {
	return uintptr(unsafe.Pointer(unsafe.SliceData(b)))
}

// alignedHeap returns size zero bytes that start at a multiple of align, a power
// of two. Go's collector does not move heap objects, so the alignment lasts.
func alignedHeap(size uint64, align uintptr) []byte {
	if size > uint64(^uint(0)>>1)-uint64(align) {
		panic(fmt.Sprintf("pmem: heap region of %d bytes: too large for this machine", size))
	}
	b := make([]byte, size+uint64(align))
	skip := uint64(-address(b) & (align - 1))
	return b[skip:][:size:size]
}
