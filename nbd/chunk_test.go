package nbd_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"runtime"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/bttnbd/bttnbd/nbd"
	"github.com/bttnbd/bttnbd/nbd/nbdtest"
)

// openForm is open in one of the forms of transmission, with all contexts.
func openForm(t testing.TB, s *nbd.Server, form int) *session {
	t.Helper()
	c := connect(t, s)
	if _, err := c.Greet(bothFlags); err != nil {
		t.Fatal(err)
	}
	var err error
	switch form {
	case structured:
		err = c.UseStructured()
	case extended:
		err = c.UseExtended()
	}
	if err == nil && form != simple {
		_, err = c.MetaContexts(nbd.NBD_OPT_SET_META_CONTEXT, "", "base:allocation", "x-btt:error")
	}
	if err == nil {
		_, err = c.Go("")
	}
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// chunkForms are the forms with chunks.
var chunkForms = map[string]int{"structured": structured, "extended": extended}

// Goal: a READ tells runs of zeros of 4 KiB and more as holes, and the rest as
// data in as few chunks as can be.
func TestReadHoles(t *testing.T) {
	m := nbdtest.NewMemory(4 * mib)
	for _, off := range []int64{10000, 2 * mib} {
		m.WriteGroup([]int64{off}, [][]byte{pattern(1, 1000)}, make([]error, 1))
	}
	for name, form := range chunkForms {
		c := openForm(t, newServer(t, full(m, 4*mib)), form)
		for _, tc := range []struct {
			off, n, holes uint64
			content       int
		}{
			{0, 4 * mib, 4*mib - 4096, 5}, // a hole, 1536 bytes of blocks with data, …
			{0, 4096, 4096, 1},
			{0, 4095, 0, 1}, // not worth a hole
			{9728, 1536, 0, 1},
			{8000, 9000, 5736, 2}, // zeros before the data that are too few, and after it
		} {
			a, err := c.Ask(nbdtest.Read(1, tc.off, uint32(tc.n)))
			if err != nil || a.Err != 0 {
				t.Fatalf("%s: %v, %v", name, a.Err, err)
			}
			if !bytes.Equal(a.Data, m.Bytes()[tc.off:][:tc.n]) {
				t.Errorf("%s: %d bytes at %d: other data", name, tc.n, tc.off)
			}
			if tc.n < mib && (a.Holes != tc.holes || a.Content != tc.content) || a.Content > tc.content {
				t.Errorf("%s: %d bytes at %d: %d in holes, %d chunks, want %d, %d", name, tc.n, tc.off, a.Holes, a.Content, tc.holes, tc.content)
			}
		}
	}
}

// Goal: a READ that meets a bad place fails with EIO and where, after what could
// be read; every other command's error has a message, too. The connection lives.
func TestErrorChunks(t *testing.T) {
	m := nbdtest.NewMemory(8 * mib)
	m.WriteGroup([]int64{0}, [][]byte{pattern(1, 8*mib)}, make([]error, 1))
	m.MarkBad(5*mib, 512)
	var fault error
	b := &nbdtest.Faulty{Backend: m, Fault: func(nbdtest.Op, int64, int64) error { return fault }}
	for name, form := range chunkForms {
		c := openForm(t, newServer(t, full(b, 8*mib)), form)
		fault = nil
		c.Send(nbdtest.Read(1, 1, 7*mib))
		var last nbdtest.Chunk
		chunks := 0
		for last.Flags == 0 {
			var err error
			if last, err = c.RecvChunk(); err != nil {
				t.Fatal(err)
			}
			chunks++
		}
		p := last.Payload
		if last.Type != nbd.NBD_REPLY_TYPE_ERROR_OFFSET || be.Uint32(p) != uint32(nbd.NBD_EIO) || be.Uint64(p[len(p)-8:]) != 5*mib || chunks != 4*5+2 {
			t.Errorf("%s: %d chunks, the last of type %#x: % x", name, chunks, last.Type, p)
		}
		df := nbdtest.Read(1, 4*mib, 2*mib)
		df.Flags = nbd.NBD_CMD_FLAG_DF
		if a, err := c.Ask(df); err != nil || a.Err != nbd.NBD_EIO || a.Message == "" {
			t.Errorf("%s: with DF: %+v, %v", name, a, err)
		}
		fault = syscall.EIO
		for _, r := range []nbdtest.Request{
			nbdtest.Read(2, 0, 512), nbdtest.Read(2, 0, mib), nbdtest.Write(3, 0, make([]byte, 512)),
			nbdtest.Write(3, 0, make([]byte, 2*mib)), nbdtest.Command(nbd.NBD_CMD_TRIM, 4, 0, 512),
			nbdtest.Command(nbd.NBD_CMD_WRITE_ZEROES, 5, 0, 512), nbdtest.Command(nbd.NBD_CMD_FLUSH, 6, 0, 0),
			nbdtest.Command(nbd.NBD_CMD_BLOCK_STATUS, 7, 0, 512),
		} {
			if form == extended {
				r = r.Extend()
			}
			if a, err := c.Ask(r); err != nil || a.Err != nbd.NBD_EIO || a.Message == "" || a.Simple {
				t.Errorf("%s: command %d: %+v, %v", name, r.Cmd, a, err)
			}
		}
		fault = nil
		if a, err := c.Ask(nbdtest.Read(8, 0, 512)); err != nil || a.Err != 0 {
			t.Errorf("%s: afterwards: %v, %v", name, a.Err, err)
		}
	}
}

// Goal: what a backend calls its error does not leave the machine.
func TestMessagesKeepSecrets(t *testing.T) {
	secret := errors.Join(errors.New("/srv/secret/path"), syscall.EIO)
	b := &nbdtest.Faulty{Backend: nbdtest.NewMemory(mib), Fault: func(nbdtest.Op, int64, int64) error { return secret }}
	c := openForm(t, newServer(t, full(b, mib)), structured)
	c.Send(nbdtest.Read(1, 0, 512))
	chunk, err := c.RecvChunk()
	if err != nil || bytes.Contains(chunk.Payload, []byte("secret")) || len(chunk.Payload) < 20 {
		t.Errorf("%q, %v", chunk.Payload, err)
	}
}

// Goal: each context tells its own states, merged for it alone; with REQ_ONE one
// extent; with a payload, of those contexts and that length.
func TestBlockStatus(t *testing.T) {
	type extents = [][2]uint64 // length and flags
	m := nbdtest.NewMemory(mib)
	m.WriteGroup([]int64{1024}, [][]byte{pattern(1, 1024)}, make([]error, 1))
	m.MarkBad(2048, 512)
	const zero = nbd.NBD_STATE_HOLE | nbd.NBD_STATE_ZERO
	for name, form := range chunkForms {
		c := openForm(t, newServer(t, full(m, mib)), form)
		status := nbdtest.Command(nbd.NBD_CMD_BLOCK_STATUS, 1, 100, 3000)
		one, filter := status, status
		one.Flags = nbd.NBD_CMD_FLAG_REQ_ONE
		filter.Flags, filter.Data = nbd.NBD_CMD_FLAG_PAYLOAD_LEN, statusFilter(2000, 2)
		filter.Length = uint64(len(filter.Data))
		for _, tc := range []struct {
			r                 nbdtest.Request
			allocation, error extents
		}{
			{status, extents{{924, zero}, {1536, 0}, {540, zero}}, extents{{1948, 0}, {512, 1}, {540, 0}}},
			{one, extents{{924, zero}}, extents{{1948, 0}}},
			{filter, nil, extents{{1948, 0}, {52, 1}}},
		} {
			if tc.r.Data != nil && form != extended {
				continue
			}
			a, err := c.Ask(tc.r)
			if err != nil || a.Err != 0 {
				t.Fatalf("%s: %v, %v", name, a.Err, err)
			}
			if !slices.Equal(told(a.Status[1]), tc.allocation) || !slices.Equal(told(a.Status[2]), tc.error) {
				t.Errorf("%s: %v", name, a.Status)
			}
		}
	}
}

func told(all []nbdtest.Extent) (pairs [][2]uint64) {
	for _, e := range all {
		pairs = append(pairs, [2]uint64{e.Length, e.Flags})
	}
	return pairs
}

// Goal: a block status of more extents than one reply may have is cut, and a
// client that goes on behind it gets all.
func TestBlockStatusLong(t *testing.T) {
	const size = 8 * mib // 16384 blocks, alternating
	m := nbdtest.NewMemory(size)
	for off := int64(0); off < size; off += 1024 {
		m.WriteGroup([]int64{off}, [][]byte{{1}}, make([]error, 1))
	}
	for name, form := range chunkForms {
		c := openForm(t, newServer(t, full(m, size)), form)
		count := 0
		for off := uint64(0); off < size; {
			a, err := c.Ask(nbdtest.Command(nbd.NBD_CMD_BLOCK_STATUS, 1, off, size-off))
			if err != nil || a.Err != 0 {
				t.Fatalf("%s: %v, %v", name, a.Err, err)
			}
			for _, e := range a.Status[1] {
				off += e.Length
				count++
			}
			if len(a.Status[1]) > 4096 {
				t.Errorf("%s: %d extents in a reply", name, len(a.Status[1]))
			}
		}
		if count != size/512 {
			t.Errorf("%s: %d extents, want %d", name, count, size/512)
		}
	}
}

// Goal: a client may hang up after any byte of a session with chunks; the
// connection ends, and neither goroutine nor descriptor is left.
func TestHangUpAnywhereInChunks(t *testing.T) {
	s := newServer(t, full(nbdtest.NewMemory(mib), mib))
	open(t, s).Close()
	goroutines, fds := runtime.NumGoroutine(), openFiles(t)
	for form := range forms {
		in := greeting(form)
		for _, r := range chunkRequests() {
			if form == extended {
				in = r.AppendExtended(in)
			} else if r.Flags&nbd.NBD_CMD_FLAG_PAYLOAD_LEN == 0 {
				in = r.Append(in)
			}
		}
		for i := range len(in) {
			c := connect(t, s)
			c.Write(in[:i])
			if i%2 == 0 {
				c.Conn.(*net.UnixConn).CloseWrite()
				io.Copy(io.Discard, c)
			}
			c.Close()
			c.end()
		}
	}
	if n := s.Stats().Connections; n != 0 {
		t.Errorf("%d connections left", n)
	}
	for deadline := time.Now().Add(patience); runtime.NumGoroutine() > goroutines+1; runtime.Gosched() {
		if time.Now().After(deadline) {
			t.Fatalf("%d goroutines, %d before", runtime.NumGoroutine(), goroutines)
		}
	}
	if n := openFiles(t); n > fds {
		t.Errorf("%d open files, %d before", n, fds)
	}
}

func openFiles(t *testing.T) int {
	t.Helper()
	all, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(all)
}

// Goal: after Shutdown, requests that had been sent but not received are answered
// ESHUTDOWN in whatever form, a payload among them skipped.
func TestShutdownRefuses(t *testing.T) {
	for form := range forms {
		entered, leave := make(chan struct{}), make(chan struct{})
		b := &nbdtest.Faulty{Backend: nbdtest.NewMemory(mib), Fault: func(op nbdtest.Op, _, _ int64) error {
			if op == nbdtest.OpFlush {
				close(entered)
				<-leave
			}
			return nil
		}}
		s := newServer(t, full(b, mib))
		c := openForm(t, s, form)
		first := nbdtest.Command(nbd.NBD_CMD_FLUSH, 1, 0, 0)
		c.Send(first)
		<-entered
		write := nbdtest.Write(2, 0, make([]byte, 4096))
		if form == extended {
			write = write.Extend()
		}
		late := []nbdtest.Request{write, nbdtest.Read(3, 0, 512), nbdtest.Command(nbd.NBD_CMD_FLUSH, 4, 0, 0)}
		c.Send(late...)
		over := make(chan error, 1)
		go func() { over <- s.Shutdown(context.Background()) }()
		for accepts(s) {
			runtime.Gosched()
		}
		close(leave)
		answers, err := c.AnswerAll(append([]nbdtest.Request{first}, late...))
		if err != nil {
			t.Fatal(err)
		}
		for i, want := range []nbd.Errno{0, nbd.NBD_ESHUTDOWN, nbd.NBD_ESHUTDOWN, nbd.NBD_ESHUTDOWN} {
			if answers[i].Err != want {
				t.Errorf("form %d, request %d: %v, want %v", form, i, answers[i].Err, want)
			}
		}
		if err := <-over; err != nil {
			t.Error(err)
		}
	}
}

// Goal: a payload beyond the maximum ends a connection with extended headers, one
// up to it is skipped.
func TestExtendedPayloadLimit(t *testing.T) {
	e := full(nbdtest.NewMemory(mib), mib)
	e.MaxPayload = 64 << 10
	s := newServer(t, e)
	c := openForm(t, s, extended)
	r := nbdtest.Command(nbd.NBD_CMD_TRIM, 1, 0, 64<<10)
	r.Flags, r.Data = nbd.NBD_CMD_FLAG_PAYLOAD_LEN, make([]byte, 64<<10)
	if a, err := c.Ask(r); err != nil || a.Err != nbd.NBD_EINVAL {
		t.Errorf("%v, %v", a.Err, err)
	}
	r.Length++
	r.Data = nil
	c.Send(r)
	c.closed("a payload of 64 KiB and 1")
}
