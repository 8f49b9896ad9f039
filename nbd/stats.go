package nbd

import (
	"math/bits"
	"strconv"
	"sync/atomic"
)

// Stats is what a server has counted since it was made.
type Stats struct {
	Connections int           // open now
	Accepted    uint64        // connections ever
	Refused     uint64        // of them, how many were closed for a limit on connections
	Negotiated  uint64        // of them, how many reached transmission
	Memory      int64         // bytes of large buffers in use, of Options.MaxMemory
	Exports     []ExportStats // sorted by name
}

// ExportStats is the part of one export.
type ExportStats struct {
	Name        string
	Connections int // in transmission now
	Counters
}

// Counters of requests. A request is in Requests as soon as its header is
// decoded, and in Bytes or Errors when it is answered.
type Counters struct {
	Requests [Commands]uint64 // by NBD_CMD_ number
	Bytes    [Commands]uint64 // the lengths of those that succeeded
	Errors   map[Errno]uint64 // error replies; every number has an entry

	Groups     uint64             // WriteGroup calls
	GroupSizes [GroupSizes]uint64 // of them, those of 2^i to 2^(i+1)-1 requests

	Latency [Commands]Latency // of what was answered, as Bytes; of none without Options.Latency
}

// Lengths of the arrays in [Counters].
const (
	Commands   = NBD_CMD_BLOCK_STATUS + 2 // the last stands for all unknown ones
	GroupSizes = 9                        // 1 … maxGroup
)

// CommandName returns the name, as in "write_zeroes", of index i of the
// arrays in [Counters].
func CommandName(i int) string {
	switch i {
	case NBD_CMD_READ:
		return "read"
	case NBD_CMD_WRITE:
		return "write"
	case NBD_CMD_DISC:
		return "disc"
	case NBD_CMD_FLUSH:
		return "flush"
	case NBD_CMD_TRIM:
		return "trim"
	case NBD_CMD_CACHE:
		return "cache"
	case NBD_CMD_WRITE_ZEROES:
		return "write_zeroes"
	case NBD_CMD_BLOCK_STATUS:
		return "block_status"
	case Commands - 1:
		return "unknown"
	}
	return strconv.Itoa(i)
}

// counters is Counters as a connection keeps them: written by its goroutine
// alone, read by Stats.
type counters struct {
	requests   [Commands]atomic.Uint64
	bytes      [Commands]atomic.Uint64
	errors     [len(errnos)]atomic.Uint64
	groupSizes [GroupSizes]atomic.Uint64

	answered [Commands]uint32 // since the last look at the clock; of the connection's goroutine alone
	latency  *latencies       // nil: nobody wants to know
}

// request counts a decoded request.
func (n *counters) request(cmd uint16) { n.requests[min(cmd, Commands-1)].Add(1) }

// success counts a request of known command that did what it asked.
func (n *counters) success(req *request) {
	n.bytes[req.cmd].Add(req.length)
	n.answered[req.cmd]++
}

// failure counts an error reply to req.
func (n *counters) failure(req *request, e Errno) {
	n.answered[min(req.cmd, Commands-1)]++
	for i := range errnos {
		if errnos[i] == e {
			n.errors[i].Add(1)
		}
	}
}

// commit counts a WriteGroup of size requests.
func (n *counters) commit(size int) { n.groupSizes[bits.Len(uint(size))-1].Add(1) }

// add adds m to n.
func (n *counters) add(m *counters) {
	for i := range n.requests {
		n.requests[i].Add(m.requests[i].Load())
		n.bytes[i].Add(m.bytes[i].Load())
	}
	for i := range n.errors {
		n.errors[i].Add(m.errors[i].Load())
	}
	for i := range n.groupSizes {
		n.groupSizes[i].Add(m.groupSizes[i].Load())
	}
	m.latency.add(&n.latency)
}

// snapshot returns the present values.
func (n *counters) snapshot() Counters {
	s := Counters{Errors: make(map[Errno]uint64, len(errnos)), Latency: n.latency.snapshot()}
	for i := range n.requests {
		s.Requests[i] = n.requests[i].Load()
		s.Bytes[i] = n.bytes[i].Load()
	}
	for i, e := range errnos {
		s.Errors[e] = n.errors[i].Load()
	}
	for i := range n.groupSizes {
		s.GroupSizes[i] = n.groupSizes[i].Load()
		s.Groups += s.GroupSizes[i]
	}
	return s
}
