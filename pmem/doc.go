// Package pmem maps byte-addressable memory and makes stores to it durable. It is
// the only package of this module that touches the memory, and the only one with
// unsafe code and assembly. It knows nothing of what is stored.
//
// The words are those of libpmem: flush starts the write-back of a range, drain
// waits for it, persist does both.
//
// # Durability model
//
// A store first sits in a cache, from where it may reach the medium at any time or,
// after a power failure, not at all. What each operation promises:
//
//	operation      atomic to readers,     ordered before later    durable after
//	               untorn by power loss   stores, on media
//	Store32/64     whole value            to the same cache line  Flush, then Drain
//	Write, Zero    each aligned 8 bytes   no: any subset survives Drain
//	Flush          -                      no                      Drain
//	Drain          -                      yes: everything before  return
//
// Drain covers the calling goroutine's own operations. Those of others it may
// happen to cover too, but the engine must not rely on it: on a processor a fence
// completes the write-backs of one CPU only. Write is also not visible to readers
// until a Drain, so publish a pointer to written data after one.
//
// What durable means is a property of the medium, [Durability]:
//
//	           Flush              Write            Drain              survives
//	DAX        CLWB / DC CVAP     MOVNTDQ, or      SFENCE / DSB       power failure
//	           of each line       copy + DC CVAP
//	Msync      notes the range    copy + note      one msync(2) for   power failure
//	                                               all who wait
//	Process    nothing            MOVNTDQ or copy  SFENCE / DSB       kill -9 only
//
// MAP_SYNC decides between the first two. Without it a filesystem may keep the
// block map of a file in memory, and flushed lines would belong to no file after
// a power failure, so it is not enough that the memory is persistent.
//
// Msync mode is weaker in one respect: the kernel writes whole pages, whenever it
// likes, and pages in any order. Stores to one line are still prefixes of program
// order as long as the medium writes 512 bytes or more untorn.
//
// # Between Flush and Drain
//
// Go may move a goroutine to another CPU between Flush and Drain, and the fence of
// the second CPU does nothing for the write-backs of the first. This is safe:
//
// amd64: CLWB, CLFLUSHOPT and non-temporal stores are ordered by every instruction
// with a LOCK prefix (Intel SDM volume 2, CLWB; volume 3, "Buffering of write
// combining memory"). The scheduler cannot hand a goroutine over without one, on
// the CPU it leaves, nor can the kernel move a thread. Whatever was in flight is
// complete before the goroutine runs elsewhere.
//
// arm64: DC CVAP completes only by a DSB on the same PE. The kernel issues one when
// it moves a thread, the Go scheduler none when it moves a goroutine. So each flush
// routine ends in its own DSB. Go does not preempt assembly, so nothing comes
// between. Drain is one more DSB.
//
// # Bad memory
//
// A mapping can fail under a load or store: the file was truncated, the filesystem
// of a sparse file is full, the page is broken. [ArmFaults] and [Region.CatchFault]
// turn that into a [FaultError]. Locks held at that point must be released by defer.
//
// # Simulation
//
// A region made by [NewTraced] announces each operation to a [Tracer] just before
// it happens, on the same goroutine; the code that then runs is the code that
// ships. The Tracer is called outside any lock of this package. There is nothing
// between operations it could miss: no method stores twice, and no other package
// can store.
//
// # Race detector
//
// The race detector sees neither assembly nor memory outside the Go heap. Race
// builds therefore copy in Go, offer no DAX, and find races on [NewHeap] and
// [NewTraced] regions only.
package pmem
