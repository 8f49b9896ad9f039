//go:build !race

package pmem

import "golang.org/x/sys/cpu"

const (
	hasFlush  = true
	hasStream = true // non-temporal stores, which go around the cache
)

// The best write-back this processor has. All three write a dirty line back; CLWB
// may keep it cached, CLFLUSHOPT drops it, and CLFLUSH, part of every amd64, also
// waits its turn after every earlier CLFLUSH.
var (
	hasCLFLUSHOPT = cpuid7()&(1<<23) != 0
	hasCLWB       = cpuid7()&(1<<24) != 0
	hasERMS       = cpuid7()&(1<<9) != 0
	hasAVX512     = cpu.X86.HasAVX512F // and the kernel saves its registers
	hasLines      = hasAVX512          // movLines may be called
)

// Instructions names what this build and processor write cache lines back with.
func Instructions() string {
	switch {
	case hasCLWB:
		return "clwb"
	case hasCLFLUSHOPT:
		return "clflushopt"
	}
	return "clflush"
}

// batch bounds one call of assembly, which Go cannot preempt: 1 MiB takes some
// 100 µs, and for no longer is a garbage collection held up.
const batch = 1 << 20

// flushLines writes back every cache line that b touches. It does not wait.
func flushLines(b []byte) {
	for len(b) > 0 {
		n := min(len(b), batch)
		switch {
		case hasCLWB:
			clwb(&b[0], uintptr(n))
		case hasCLFLUSHOPT:
			clflushopt(&b[0], uintptr(n))
		default:
			clflush(&b[0], uintptr(n))
		}
		b = b[n:]
	}
}

// streamCopy copies src to dst with non-temporal stores; both have one length,
// which is a multiple of 8, as is the address of dst. It does not wait. Blocks of
// whole lines, which is what sectors are, go a line a store where the processor
// can: that keeps no write-combining buffer half full, and 4 KiB take 0.3 µs
// instead of 0.45 (AMD Zen 4; BenchmarkWriteDrain).
func streamCopy(dst, src []byte) {
	for len(src) > 0 {
		n := min(len(dst), len(src), batch)
		if hasAVX512 && n%64 == 0 && address(dst)%64 == 0 {
			movntLines(&dst[0], &src[0], uintptr(n))
		} else {
			movntCopy(&dst[0], &src[0], uintptr(n))
		}
		dst, src = dst[n:], src[n:]
	}
}

// streamZero is streamCopy of zero bytes.
func streamZero(dst []byte) {
	for len(dst) > 0 {
		n := min(len(dst), batch)
		movntZero(&dst[0], uintptr(n))
		dst = dst[n:]
	}
}

// copyOut copies src, which is seldom cached, to dst of the same length. Where the
// processor has a fast REP MOVSB, that fetches ahead better than the loop of Go's
// memmove: blocks of 4 KiB out of 1 GiB come 1.3 times as fast, streams 1.5 times
// (AMD Zen 4; BenchmarkRead4K and BenchmarkRead128K of package btt).
func copyOut(dst, src []byte) {
	const worthIt = 1024
	for hasERMS && len(src) >= worthIt {
		n := min(len(src), batch)
		movsb(&dst[0], &src[0], uintptr(n))
		dst, src = dst[n:], src[n:]
	}
	copy(dst, src)
}

// fetchAhead starts to load the lines of b into the cache.
func fetchAhead(b []byte) {
	if len(b) > 0 {
		prefetch(&b[0], uintptr(len(b)))
	}
}

// fence waits until this CPU's write-backs and non-temporal stores have reached
// the persistence domain.
func fence() { sfence() }

// ordersLoads: see Region.ReadRacing.
const ordersLoads = true

// orderLoads is nothing: loads are never seen out of order here, those of REP MOVSB
// included (Intel SDM volume 3, 9.2.4: of string operations only stores may be).
func orderLoads() {}

// Implemented in flush_amd64.s.

// cpuid7 is EBX of CPUID leaf 7, or 0 where that leaf does not exist.
func cpuid7() uint32

//go:noescape
func clwb(p *byte, n uintptr)

//go:noescape
func clflushopt(p *byte, n uintptr)

//go:noescape
func clflush(p *byte, n uintptr)

//go:noescape
func movntCopy(dst, src *byte, n uintptr)

//go:noescape
func movntLines(dst, src *byte, n uintptr)

//go:noescape
func movntZero(dst *byte, n uintptr)

//go:noescape
func movLines(dst, src *byte, n uintptr)

//go:noescape
func movsb(dst, src *byte, n uintptr)

//go:noescape
func prefetch(p *byte, n uintptr)

func sfence()
