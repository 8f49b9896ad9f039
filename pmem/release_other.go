//go:build race || !amd64

package pmem

import "sync/atomic"

// StoreRelease32 stores v: who sees it sees all that this goroutine stored before.
// Callers may rely on no more than that, see the build for amd64.
func StoreRelease32(p *uint32, v uint32) { atomic.StoreUint32(p, v) }

// StoreRelease64 is StoreRelease32 of 8 bytes.
func StoreRelease64(p *uint64, v uint64) { atomic.StoreUint64(p, v) }
