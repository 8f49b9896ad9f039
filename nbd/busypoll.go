package nbd

import (
	"runtime"
	"sync/atomic"
	"time"
)

// To put a thread to sleep and to wake it again takes longer than to serve a request of
// 4 KiB. So a connection whose client goes on quickly does not sleep at once when there
// is nothing to read, but looks again for a while (busy polling, ADR 0012).
//
//	          4 short waits in a row
//	sleeps  <------------------------>  keen: polls, unless it is crowded
//	          a long wait, or a vain poll
//
// That takes a processor, which must be nobody else's. It is crowded where more
// connections have been keen of late than half of the processors (their clients need
// some as well), and where more threads want to run on the machine than it has
// processors (crowd.go).

// busyPoll is what the connections of a server have in common.
type busyPoll struct {
	time  time.Duration // for how long one polls at most
	limit int32         // if more connections are keen, none polls
	crowd *crowd

	// Each keen connection is counted in each window of time in which it waits, so that
	// nobody has to be taken off the count: who has gone, or sleeps, is not in the next.
	window     atomic.Int64 // number of the present one
	keen, were atomic.Int32 // connections that were keen in it so far, and in the one before
}

const windowTime = 10 * time.Millisecond

// newBusyPoll returns nil where nobody is to poll.
func newBusyPoll(d time.Duration) *busyPoll {
	limit := int32(runtime.GOMAXPROCS(0) / 2)
	if d <= 0 || limit == 0 {
		return nil
	}
	return &busyPoll{time: min(d, MaxBusyPoll), limit: limit, crowd: machine()}
}

// turn makes the window of now the present one and returns its number.
func (b *busyPoll) turn(now time.Duration) int64 {
	number := int64(now / windowTime)
	if before := b.window.Load(); before < number && b.window.CompareAndSwap(before, number) {
		were := b.keen.Swap(0)
		if before+1 < number {
			were = 0 // nobody, in the windows between
		}
		b.were.Store(were)
	}
	return number
}

// crowded reports whether the processors are needed by others.
func (b *busyPoll) crowded() bool {
	return max(b.keen.Load(), b.were.Load()) > b.limit || b.crowd.crowded()
}

// poller is the part of one connection.
type poller struct {
	all     *busyPoll     // nil: never polls
	keen    bool          // its client is quick
	short   int           // short waits in a row of one that is not keen
	vain    int           // vain polls since the last that was not, at most maxVain
	counted int64         // the last window in which it was
	began   time.Duration // when the present wait did, by clock; 0: there is none
}

// eager is how many short waits in a row make a connection keen. After fewVain vain
// polls in a row, none of which found anything, each further one doubles them, up to
// maxVain.
const (
	eager   = 4
	fewVain = 3
	maxVain = 8
)

// begin is called when there is nothing to read.
func (p *poller) begin(now time.Duration) {
	if p.began != 0 {
		return
	}
	p.began = now
	if !p.keen {
		return
	}
	if window := p.all.turn(now); p.counted != window {
		p.counted = window
		p.all.keen.Add(1)
	}
	p.all.crowd.sample(now) // now, as our answers have just made our client want to run
}

// again reports whether to look again instead of to sleep.
func (p *poller) again(now time.Duration) bool {
	if !p.alone() {
		return false
	}
	if now-p.began < p.all.time {
		return true
	}
	p.vain = min(p.vain+1, maxVain)
	p.keen, p.short = false, 0
	return false
}

// alone reports whether the connection has a processor to itself.
func (p *poller) alone() bool { return p.keen && !p.all.crowded() }

// end is called when something was read.
func (p *poller) end(now time.Duration) {
	// Who slept was woken late: what took twice the time may have been a short wait.
	long := now-p.began > 2*p.all.time
	p.began = 0
	switch {
	case long:
		p.keen, p.short = false, 0
	case p.keen:
		p.vain = 0
	default:
		p.short++
		p.keen = p.short >= eager<<max(0, p.vain-fewVain)
	}
}
