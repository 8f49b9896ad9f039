package nbd

import (
	"slices"
	"sync/atomic"
	"time"
)

// How long requests take is measured a batch at a time, and only with
// Options.Latency: two looks at the clock, however many requests there are.
//
//	receive                          flush
//	  |  decode, execute, decode, … |  send
//	  +-----------------------------+
//	   of every request answered between them
//
// So it is the time from a request's arrival (its last byte, where it is longer than
// the read buffer) until its reply is ready to be sent, with the wait for those that
// arrived with it, for the rate limits and for the backend in it, and the network and
// a client that does not read left out.

// LatencyBuckets is the number of buckets of a [Latency].
const LatencyBuckets = 2*latencyOctaves + 2

const latencyOctaves = 24 // from 1 µs to 16.8 s

// latencyBounds are the upper bounds of all buckets but the last, which has none:
// 1 µs, 1.5, 2, 3, 4, 6, 8, …
var latencyBounds = func() (bounds [LatencyBuckets - 1]time.Duration) {
	for i := range bounds {
		bounds[i] = time.Microsecond << (i / 2)
		if i%2 == 1 {
			bounds[i] += bounds[i] / 2
		}
	}
	return bounds
}()

// LatencyBounds returns the upper bounds, which are inclusive, of all buckets of a
// [Latency] but the last.
func LatencyBounds() []time.Duration { return slices.Clone(latencyBounds[:]) }

// Latency counts requests by how long they took. The zero value is that of none.
type Latency struct {
	Buckets [LatencyBuckets]uint64 // by [LatencyBounds]; the last is for all that took longer
	Sum     time.Duration
}

// latencies are those of a connection: written by its goroutine alone, read by Stats.
type latencies [Commands]struct {
	buckets [LatencyBuckets]atomic.Uint64
	sum     atomic.Int64 // ns
}

// began is what clock counts from.
var began = time.Now()

// clock is a time that nothing sets back. It costs half of what time.Now does.
func clock() time.Duration { return time.Since(began) }

// measure begins to measure, if anybody wants to know. What has been received
// already, behind the handshake, arrives now.
func (c *conn) measure() {
	if c.s.o.Latency {
		c.n.latency = new(latencies)
		c.wire.timed, c.wire.arrived = true, clock()
	}
}

// replied notes that everything answered so far is ready to be sent.
func (c *conn) replied() {
	if c.n.latency == nil || c.n.answered == [Commands]uint32{} {
		return
	}
	took := clock() - c.wire.arrived
	bucket, _ := slices.BinarySearch(latencyBounds[:], took)
	for cmd, n := range c.n.answered {
		if n > 0 {
			l := &c.n.latency[cmd]
			l.buckets[bucket].Add(uint64(n))
			l.sum.Add(int64(n) * int64(took))
		}
	}
	c.n.answered = [Commands]uint32{}
}

// add adds m, which may be nil, to *to, which may be too.
func (m *latencies) add(to **latencies) {
	if m == nil {
		return
	}
	if *to == nil {
		*to = new(latencies)
	}
	for cmd := range m {
		for i := range m[cmd].buckets {
			(*to)[cmd].buckets[i].Add(m[cmd].buckets[i].Load())
		}
		(*to)[cmd].sum.Add(m[cmd].sum.Load())
	}
}

// snapshot returns the present values.
func (m *latencies) snapshot() (all [Commands]Latency) {
	if m == nil {
		return all
	}
	for cmd := range m {
		for i := range m[cmd].buckets {
			all[cmd].Buckets[i] = m[cmd].buckets[i].Load()
		}
		all[cmd].Sum = time.Duration(m[cmd].sum.Load())
	}
	return all
}
