//go:build !race

package pmem

import "golang.org/x/sys/cpu"

const (
	hasFlush  = true
	hasStream = false // no usable non-temporal store: copy, then clean the lines
)

// lineSize is the smallest data cache line of all caches: CTR_EL0.DminLine is the
// logarithm of its size in 4-byte words.
var lineSize = uintptr(4) << (ctrEL0() >> 16 & 15)

// Instructions names what this build and processor write cache lines back with.
func Instructions() string {
	if cpu.ARM64.HasDCPOP {
		return "dc cvap"
	}
	return "dc cvac"
}

// batch bounds one call of assembly, which Go cannot preempt.
const batch = 1 << 20

// flushLines writes back every cache line that b touches and waits for it: see
// "Between Flush and Drain" in the package documentation. It cleans to the point of
// persistence (DC CVAP, Armv8.2) or, where the processor lacks that, to the point
// of coherency, as Linux does for its own persistent memory.
func flushLines(b []byte) {
	for len(b) > 0 {
		n := min(len(b), batch)
		if cpu.ARM64.HasDCPOP {
			cleanPersistence(&b[0], uintptr(n), lineSize)
		} else {
			cleanCoherency(&b[0], uintptr(n), lineSize)
		}
		b = b[n:]
	}
}

func streamCopy(dst, src []byte) { copy(dst, src) }

func streamZero(dst []byte) { clear(dst) }

func copyOut(dst, src []byte) { copy(dst, src) }

const hasLines = false // copyOut is all there is

func movLines(dst, src *byte, n uintptr) {}

func fetchAhead([]byte) {}

// fence waits for every earlier store and clean of this PE.
func fence() { dsb() }

// ordersLoads: see Region.ReadRacing.
const ordersLoads = true

// orderLoads lets no later load or store come before an earlier load.
func orderLoads() { dmbLoads() }

// Implemented in flush_arm64.s.

func ctrEL0() uint64

//go:noescape
func cleanPersistence(p *byte, n, line uintptr)

//go:noescape
func cleanCoherency(p *byte, n, line uintptr)

func dsb()

func dmbLoads()
