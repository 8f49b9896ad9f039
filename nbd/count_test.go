package nbd_test

import (
	"context"
	"testing"

	"github.com/bttnbd/bttnbd/nbd/nbdtest"
)

// counted counts the calls that would be system calls on a socket.
type counted struct {
	looped
	reads, writes int
}

func (c *counted) Read(p []byte) (int, error)  { c.reads++; return c.looped.Read(p) }
func (c *counted) Write(p []byte) (int, error) { c.writes++; return c.looped.Write(p) }

// groups counts the commits that a backend is asked for.
type groups struct {
	ram
	n *int
}

func (g groups) WriteGroup(offs []int64, data [][]byte, errs []error) {
	*g.n++
	g.ram.WriteGroup(offs, data, errs)
}

// Goal: what a batch costs is pinned as counts, which no busy machine changes: how
// often the socket is read and written, and how many groups are committed.
func TestCallsPerBatch(t *testing.T) {
	const batches, warm = 100, 10
	write := nbdtest.Write(1, 4096, make([]byte, 4096))
	for _, c := range []struct {
		batch                 batch
		reads, writes, groups int // a batch, at most
	}{
		{repeat("read4k", 1, nbdtest.Read(1, 4096, 4096)), 1, 1, 0},
		{repeat("read4k", 16, nbdtest.Read(1, 4096, 4096)), 1, 1, 0},
		{repeat("write4k", 1, write), 1, 1, 1},
		{repeat("write4k", 16, write), 1, 1, 1},
		{repeat("write4k", 64, write), 1, 1, 1},
		{repeat("write1m", 1, nbdtest.Write(1, 0, make([]byte, mib))), 2, 1, 1}, // the head, then the payload
	} {
		n := 0
		s := newServer(t, full(groups{make(ram, 16*mib), &n}, 16*mib))
		conn := &counted{looped: looped{rest: greeting(c.batch.form), batch: c.batch.send, n: batches}}
		s.ServeConn(context.Background(), conn)
		// The handshake and the end of the connection take a few calls of their own.
		if conn.reads > batches*c.reads+warm || conn.writes > batches*c.writes+warm || n > batches*c.groups {
			t.Errorf("%s: %d batches took %d reads, %d writes, %d groups; want %d, %d, %d a batch",
				c.batch.name, batches, conn.reads, conn.writes, n, c.reads, c.writes, c.groups)
		}
	}
}
