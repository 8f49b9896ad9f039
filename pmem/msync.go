package pmem

import (
	"fmt"
	"sync"

	"golang.org/x/sys/unix"
)

// Stats counts what the Msync mode did; all zero for other regions.
type Stats struct {
	Drains uint64 // calls of Drain
	Rounds uint64 // calls of msync(2) they shared
	Bytes  uint64 // bytes handed to msync(2), clean pages included
	Err    error  // why every Drain fails from now on; nil while they do not
}

// Stats returns the counts so far.
func (r *Region) Stats() Stats {
	if r.commit == nil {
		return Stats{}
	}
	r.commit.mu.Lock()
	defer r.commit.mu.Unlock()
	s := r.commit.stats
	s.Err = r.commit.err
	return s
}

// A committer turns many drains into few calls of msync: group commit, as in a
// database log.
//
//	goroutine A  note drain ─┬─ round 1 ──┬─ return
//	goroutine B    note drain┊·············├─┬─ round 2 ─┬─ return
//	goroutine C       note   drain ·······┊─┘           └─ return
//
// Noted ranges gather in one hull. The first to drain while no round runs leads
// one: it takes the hull and syncs it. Whoever drains meanwhile waits; B's and C's
// ranges were noted too late to be sure of round 1, so one of them leads round 2
// for both. The hull may span clean pages and pages of others; the kernel skips
// the former and needs no more for the latter than to write them a bit early.
type committer struct {
	path string
	sync func(lo, hi uint64) error // makes [lo, hi) durable

	mu       sync.Mutex
	ended    sync.Cond // a round ended
	lo, hi   uint64    // hull of what was noted since the last round started; empty if hi == 0
	started  uint64    // rounds
	finished uint64    // INVARIANT: finished is started, or one less while a round runs

	// err is sticky. After a failed write-back Linux marks the pages clean or drops
	// them and reports the error once, so a later msync that succeeds says nothing
	// about them. Only a restart, which reads the medium again, is honest.
	err   error
	stats Stats
}

func newCommitter(path string, sync func(lo, hi uint64) error) *committer {
	c := &committer{path: path, sync: sync}
	c.ended.L = &c.mu
	return c
}

// note adds [lo, hi), already stored, to what the next round makes durable.
func (c *committer) note(lo, hi uint64) {
	if lo == hi {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.hi == 0 {
		c.lo, c.hi = lo, hi
		return
	}
	c.lo, c.hi = min(c.lo, lo), max(c.hi, hi)
}

// drain returns when every range noted before the call is durable. With nothing
// noted and no round running that is at once.
func (c *committer) drain() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.stats.Drains++
	// The caller's ranges are in the hull, or in the round that runs, or durable.
	// Which one is not known, so wait for the latest they can be in.
	need := c.started
	if c.hi != 0 {
		need++
	}
	for c.finished < need && c.err == nil {
		if c.finished == c.started {
			c.lead()
		} else {
			c.ended.Wait()
		}
	}
	return c.err
}

// lead runs one round. It is called with mu held and releases it meanwhile.
func (c *committer) lead() {
	lo, hi := c.lo, c.hi
	c.lo, c.hi = 0, 0
	c.started++
	c.stats.Rounds++
	c.stats.Bytes += hi - lo

	c.mu.Unlock()
	err := c.sync(lo, hi)
	c.mu.Lock()

	if err != nil && c.err == nil {
		c.err = fmt.Errorf("%s: msync of bytes %d to %d: %w: the kernel may have dropped them, "+
			"so nothing more can be promised; repair the medium and restart", c.path, lo, hi, err)
	}
	c.finished++
	c.ended.Broadcast()
}

// msync makes [lo, hi) durable. The kernel wants a page-aligned start and rounds
// the end up itself; rounding the start inward would lose the first page.
func (r *Region) msync(lo, hi uint64) error {
	lo &^= uint64(unix.Getpagesize()) - 1
	for {
		err := r.syncPages(lo, hi)
		if err != unix.EINTR {
			return err
		}
	}
}

func (r *Region) syncPages(lo, hi uint64) error {
	if r.kernel != nil {
		return r.kernel(lo, hi)
	}
	return unix.Msync(r.mem[lo:hi], unix.MS_SYNC)
}
