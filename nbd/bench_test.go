package nbd_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"testing"
	"time"

	"github.com/bttnbd/bttnbd/nbd"
	"github.com/bttnbd/bttnbd/nbd/nbdtest"
)

// ram is a backend that allocates nothing and keeps no counts.
type ram []byte

func (r ram) ReadAt(p []byte, off int64) (int, error) { return copy(p, r[off:]), nil }
func (r ram) WriteGroup(offs []int64, data [][]byte, _ []error) {
	for i, p := range data {
		copy(r[offs[i]:], p)
	}
}
func (r ram) ZeroAt(off, n int64) error { clear(r[off : off+n]); return nil }
func (ram) TrimAt(_, _ int64) error     { return nil }
func (ram) Flush() error                { return nil }
func (ram) Readable(_, _ int64) error   { return nil }

// batch is what a client sends at once, and how much comes back.
type batch struct {
	name  string
	send  []byte
	reply int
	bytes int // moved
}

// repeat makes a batch of depth requests like r.
func repeat(name string, depth int, r nbdtest.Request) batch {
	b := batch{name: fmt.Sprintf("%s/qd%d", name, depth)}
	for range depth {
		b.send = r.Append(b.send)
		b.reply += 16
		if r.Cmd == nbd.NBD_CMD_READ {
			b.reply += int(r.Length)
		}
		b.bytes += int(r.Length)
	}
	return b
}

func batches() []batch {
	return []batch{
		repeat("read4k", 1, nbdtest.Read(1, 4096, 4096)),
		repeat("read4k", 16, nbdtest.Read(1, 4096, 4096)),
		repeat("write4k", 1, nbdtest.Write(1, 4096, make([]byte, 4096))),
		repeat("write4k", 16, nbdtest.Write(1, 4096, make([]byte, 4096))),
		repeat("flush", 16, nbdtest.Command(nbd.NBD_CMD_FLUSH, 1, 0, 0)),
		repeat("read1m", 1, nbdtest.Read(1, 0, mib)),
		repeat("write1m", 1, nbdtest.Write(1, 0, make([]byte, mib))),
		repeat("read4m", 1, nbdtest.Read(1, 0, 4*mib)),
		repeat("write4m", 1, nbdtest.Write(1, 0, make([]byte, 4*mib))),
		repeat("pastEnd", 16, nbdtest.Write(1, 1<<40, make([]byte, 512))),
	}
}

// exchange returns a function that sends b and receives the replies.
func exchange(t testing.TB, c net.Conn, b batch) func() {
	got := make([]byte, b.reply)
	return func() {
		if _, err := c.Write(b.send); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(c, got); err != nil {
			t.Fatal(err)
		}
	}
}

// Goal: no request allocates, whichever way it takes. AllocsPerRun counts the
// allocations of all goroutines, the server's included.
func TestNoAllocation(t *testing.T) {
	if raceEnabled {
		t.Skip("sync.Pool drops buffers at random under the race detector")
	}
	c := open(t, newServer(t, full(make(ram, 16*mib), 16*mib)))
	for _, b := range batches() {
		once := exchange(t, c, b)
		once() // fills the pools
		if n := testing.AllocsPerRun(100, once); n != 0 {
			t.Errorf("%s: %v allocations", b.name, n)
		}
	}
}

// BenchmarkServer is the server with the cost of a unix socket and of this
// client.
func BenchmarkServer(b *testing.B) {
	s := newServer(b, full(make(ram, 16*mib), 16*mib))
	for _, bt := range batches() {
		b.Run(bt.name, func(b *testing.B) {
			c := open(b, s)
			c.SetDeadline(time.Time{})
			once := exchange(b, c, bt)
			b.SetBytes(int64(bt.bytes))
			b.ReportAllocs()
			for b.Loop() {
				once()
			}
		})
	}
}

// BenchmarkTransmission is the server alone: no socket, no other goroutine. An
// operation is a batch.
func BenchmarkTransmission(b *testing.B) {
	s := newServer(b, full(make(ram, 16*mib), 16*mib))
	for _, bt := range batches() {
		b.Run(bt.name, func(b *testing.B) {
			b.SetBytes(int64(bt.bytes))
			b.ReportAllocs()
			s.ServeConn(context.Background(), &looped{rest: hello(), batch: bt.send, n: b.N})
		})
	}
}

// looped is a connection whose client sends a batch n times, one a read.
type looped struct {
	nbdtest.Script
	rest, batch []byte
	n           int
}

func (l *looped) Read(p []byte) (int, error) {
	if len(l.rest) == 0 {
		if l.n == 0 {
			return 0, io.EOF
		}
		l.rest, l.n = l.batch, l.n-1
	}
	n := copy(p, l.rest)
	l.rest = l.rest[n:]
	return n, nil
}

func (l *looped) Write(p []byte) (int, error) { return len(p), nil }
