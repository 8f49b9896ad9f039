package nbd

import (
	"bytes"
	"io"
	"os"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

// crowd knows whether more threads want to run on the machine than it has processors.
// The kernel counts them in /proc/loadavg, at one moment (proc(5)):
//
//	0.35 0.21 0.17 3/104 2711
//	               ^
//
// Looked at every 10 ms, an average over the last 80.
type crowd struct {
	file    *os.File     // nil: nobody knows
	limit   int64        // in 1/256 of a thread
	average atomic.Int64 // likewise; above limit until it is known
	due     atomic.Int64 // when to look again, by clock
}

const sampleTime = 10 * time.Millisecond

// passers is how many threads above the number of processors are no crowd, in 1/256 of a
// thread: other threads of ours and of the client's, and of the kernel. Seen were, on two
// processors, 0.4 to 0.95 with nothing else to do, and 1.7 to 2.1 beside one thread that
// never sleeps.
const passers = 320

// machine is the one that we run on. Its file is open for as long as the process lives.
var machine = sync.OnceValue(func() *crowd {
	c := &crowd{limit: int64(runtime.NumCPU())*256 + passers}
	c.forget()
	if f, err := os.Open("/proc/loadavg"); err == nil {
		c.file = f
	}
	return c
})

// crowded is what the last looks came to. Where nobody knows, it is.
func (c *crowd) crowded() bool { return c.average.Load() > c.limit }

// forget is where a look tells nothing.
func (c *crowd) forget() { c.average.Store(c.limit + 256) }

// sample looks, if it is time to.
func (c *crowd) sample(now time.Duration) {
	due := c.due.Load()
	if c.file == nil || int64(now) < due || !c.due.CompareAndSwap(due, int64(now+sampleTime)) {
		return
	}
	var buf [64]byte
	n, err := c.file.ReadAt(buf[:], 0)
	threads, ok := runnable(buf[:n])
	if err != nil && err != io.EOF || !ok {
		c.forget()
		return
	}
	average := c.average.Load()
	c.average.Store(average + (int64(threads)*256-average)/8)
}

// runnable takes the number out of the text of /proc/loadavg.
func runnable(loadavg []byte) (threads int, ok bool) {
	for range 3 {
		_, loadavg, _ = bytes.Cut(loadavg, []byte(" "))
	}
	number, _, ok := bytes.Cut(loadavg, []byte("/"))
	threads, err := strconv.Atoi(string(number))
	return threads, ok && err == nil
}
