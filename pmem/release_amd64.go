//go:build !race

package pmem

// StoreRelease32 stores v: who sees it sees all that this goroutine stored before.
// A later load of this goroutine may come before it, other than with sync/atomic; if
// that matters there has to be a locked operation in between, such as one of a mutex.
// On amd64 every aligned store is such a one, and the compiler keeps stores in
// order. An atomic store would be an XCHG, which waits until every write-back and
// cache miss before it is over: a group of 32 would meet them one after the other.
func StoreRelease32(p *uint32, v uint32) { *p = v }

// StoreRelease64 is StoreRelease32 of 8 bytes.
func StoreRelease64(p *uint64, v uint64) { *p = v }
