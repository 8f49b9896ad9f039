package pmem

import (
	"path/filepath"
	"testing"
)

const benchSize, benchBlock = 256 << 20, 4096

// regions are measured over a working set larger than most caches. DAX is tmpfs
// treated as persistent memory: the instructions are real, the medium is DRAM.
func benchRegion(b *testing.B, m Mode) *Region {
	if m == ForceDAX && !hasFlush {
		b.Skip("this build has no cache-line write-back")
	}
	r, err := Create(filepath.Join(memoryDir(b), "f"), benchSize, Options{Durability: m})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { r.Close() })
	r.Zero(0, benchSize)
	return r
}

// scatter is a different block every time, in no order a prefetcher knows.
func scatter(i int) uint64 { return uint64(i) * 40503 % (benchSize / benchBlock) * benchBlock }

// One 4 KiB block made durable: as Write does it, and as copy, Flush would.
func BenchmarkWriteDrain(b *testing.B) {
	r, p := benchRegion(b, ForceDAX), make([]byte, benchBlock)
	b.SetBytes(benchBlock)
	for i := 0; b.Loop(); i++ {
		r.Write(scatter(i), p)
		_ = r.Drain()
	}
}

func BenchmarkCopyFlushDrain(b *testing.B) {
	r, p := benchRegion(b, ForceDAX), make([]byte, benchBlock)
	b.SetBytes(benchBlock)
	for i := 0; b.Loop(); i++ {
		off := scatter(i)
		copy(r.mem[off:], p)
		r.Flush(off, benchBlock)
		_ = r.Drain()
	}
}

func BenchmarkProcessWriteDrain(b *testing.B) {
	r, p := benchRegion(b, Auto), make([]byte, benchBlock)
	b.SetBytes(benchBlock)
	for i := 0; b.Loop(); i++ {
		r.Write(scatter(i), p)
		_ = r.Drain()
	}
}

func BenchmarkProcessCopyDrain(b *testing.B) {
	r, p := benchRegion(b, Auto), make([]byte, benchBlock)
	b.SetBytes(benchBlock)
	for i := 0; b.Loop(); i++ {
		copy(r.mem[scatter(i):], p)
		_ = r.Drain()
	}
}

// Eight bytes made durable: the cost of a map entry.
func BenchmarkStorePersist(b *testing.B) {
	r := benchRegion(b, ForceDAX)
	for i := 0; b.Loop(); i++ {
		off := scatter(i)
		r.Store64(off, uint64(i))
		_ = r.Persist(off, 8)
	}
}

func BenchmarkDrain(b *testing.B) {
	r := benchRegion(b, ForceDAX)
	for b.Loop() {
		_ = r.Drain()
	}
}

var sink uint32

func BenchmarkLoad32(b *testing.B) {
	r := NewHeap(4096)
	for b.Loop() {
		sink += r.Load32(64)
	}
}

// The guard of one request whose goroutine is armed already.
func BenchmarkCatchFault(b *testing.B) {
	r := NewHeap(4096)
	defer ArmFaults()()
	for b.Loop() {
		_ = catch(r, func() {})
	}
}
