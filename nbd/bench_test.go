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
func (ram) Extents(_, n int64, emit func(int64, uint8) bool) error {
	emit(n, 0)
	return nil
}

// batch is what a client sends at once, and how much comes back.
type batch struct {
	name  string
	send  []byte
	reply int
	bytes int // moved
	form  int
}

// inForm turns a batch of READs or WRITEs into one of the forms with chunks.
func inForm(form, depth int, name string, r nbdtest.Request) batch {
	b := batch{name: fmt.Sprintf("%s-%s/qd%d", [...]string{structured: "structured", extended: "extended"}[form], name, depth), form: form}
	head := []int{structured: 20, extended: 32}[form]
	for range depth {
		if form == extended {
			b.send = r.Extend().AppendExtended(b.send)
		} else {
			b.send = r.Append(b.send)
		}
		switch {
		case r.Cmd == nbd.NBD_CMD_READ:
			b.reply += head + 8 + int(r.Length)
		case form == structured:
			b.reply += 16
		default:
			b.reply += head
		}
		b.bytes += int(r.Length)
	}
	return b
}

// chunkBatches are batches in the forms with chunks, each over a backend that
// holds data.
func chunkBatches() []batch {
	var all []batch
	for _, form := range []int{structured, extended} {
		all = append(all,
			inForm(form, 1, "read4k", nbdtest.Read(1, 4096, 4096)),
			inForm(form, 16, "read4k", nbdtest.Read(1, 4096, 4096)),
			inForm(form, 16, "write4k", nbdtest.Write(1, 4096, make([]byte, 4096))),
			inForm(form, 1, "read1m", nbdtest.Read(1, 0, mib)),
		)
	}
	return all
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
	noAllocation(t, newServer(t, full(make(ram, 16*mib), 16*mib)))
}

func noAllocation(t *testing.T, s *nbd.Server) {
	t.Helper()
	for _, b := range append(batches(), chunkBatches()...) {
		c := openForm(t, s, b.form)
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

// BenchmarkTransmission is the server alone: no socket, no other goroutine, and no
// deadlines, which are set only where a socket would block. An operation is a batch.
func BenchmarkTransmission(b *testing.B) {
	s := newServerWith(b, nbd.Options{WriteTimeout: -1}, full(make(ram, 16*mib), 16*mib))
	for _, bt := range append(batches(), chunkBatches()...) {
		b.Run(bt.name, func(b *testing.B) {
			b.SetBytes(int64(bt.bytes))
			b.ReportAllocs()
			s.ServeConn(context.Background(), &looped{rest: greeting(bt.form), batch: bt.send, n: b.N})
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
