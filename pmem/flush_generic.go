//go:build race || (!amd64 && !arm64)

package pmem

// Two builds have no assembly here. Other processors: their write-back
// instructions are not implemented, so DAX is not offered and Open takes Msync.
// Race builds: the detector does not see assembly, so they copy in Go.

const (
	hasFlush  = false
	hasStream = false
)

// Instructions names what this build and processor write cache lines back with.
func Instructions() string { return "no cache-line write-back" }

func flushLines([]byte) { panic("pmem: no cache-line write-back in this build") }

func streamCopy(dst, src []byte) { copy(dst, src) }

func streamZero(dst []byte) { clear(dst) }

func copyOut(dst, src []byte) { copy(dst, src) }

const hasLines = false // copyOut is all there is

func movLines(dst, src *byte, n uintptr) {}

func fetchAhead([]byte) {}

// ordersLoads: nobody knows, and the race detector would rightly complain. See
// Region.ReadRacing.
const ordersLoads = false

func orderLoads() {}

// fence does nothing: without write-back there is nothing to wait for, a killed
// process loses no executed store, and readers are ordered by sync/atomic.
func fence() {}
