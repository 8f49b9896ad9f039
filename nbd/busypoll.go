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
// connections are keen than half of the processors (their clients need some as well),
// and where more threads want to run on the machine than it has processors (crowd.go).

// busyPoll is what the connections of a server have in common.
type busyPoll struct {
	time  time.Duration // for how long one polls at most
	keen  atomic.Int32  // connections that are
	limit int32         // if there are more, none polls
	crowd *crowd
}

// maxBusyPoll bounds how long a connection that polls is blind to its end.
const maxBusyPoll = time.Millisecond

// newBusyPoll returns nil where nobody is to poll.
func newBusyPoll(d time.Duration) *busyPoll {
	limit := int32(runtime.GOMAXPROCS(0) / 2)
	if d <= 0 || limit == 0 {
		return nil
	}
	return &busyPoll{time: min(d, maxBusyPoll), limit: limit, crowd: machine()}
}

// poller is the part of one connection.
type poller struct {
	all   *busyPoll     // nil: never polls
	keen  bool          // counted in all
	short int           // short waits in a row of one that is not keen
	began time.Duration // when the present wait did, by clock; 0: there is none
}

// eager is how many short waits in a row make a connection keen.
const eager = 4

// begin is called when there is nothing to read.
func (p *poller) begin(now time.Duration) {
	if p.began != 0 {
		return
	}
	p.began = now
	if p.keen {
		p.all.crowd.sample(now) // now, as our answers have just made our client want to run
	}
}

// again reports whether to look again instead of to sleep.
func (p *poller) again(now time.Duration) bool {
	if !p.alone() {
		return false
	}
	if now-p.began < p.all.time {
		return true
	}
	p.leave()
	return false
}

// alone reports whether the connection has a processor to itself.
func (p *poller) alone() bool {
	return p.keen && p.all.keen.Load() <= p.all.limit && !p.all.crowd.crowded()
}

// end is called when something was read.
func (p *poller) end(now time.Duration) {
	// Who slept was woken late: what took twice the time may have been a short wait.
	if now-p.began > 2*p.all.time {
		p.leave()
	} else if !p.keen {
		p.short++
		if p.short == eager {
			p.keen = true
			p.all.keen.Add(1)
		}
	}
	p.began = 0
}

// leave has the connection sleep from now on.
func (p *poller) leave() {
	p.short = 0
	if p.keen {
		p.keen = false
		p.all.keen.Add(-1)
	}
}
