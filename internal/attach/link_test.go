package attach

import (
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"net"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"

	"github.com/bttnbd/bttnbd/nbd"
	"github.com/bttnbd/bttnbd/nbd/nbdtest"
)

func writeOf(cookie, offset uint64, data []byte) []byte {
	return nbdtest.Write(cookie, offset, data).Append(nil)
}

func commandOf(cmd uint16, cookie uint64) []byte {
	return nbdtest.Command(cmd, cookie, 0, 4096).Append(nil)
}

// Goal: the place in the stream is known after any number of bytes, in any pieces.
func TestRequestsFindTheirEnds(t *testing.T) {
	stream := writeOf(1, 0, make([]byte, 10))
	ends := map[int]bool{0: true, len(stream): true}
	for _, cmd := range []uint16{nbd.NBD_CMD_READ, nbd.NBD_CMD_FLUSH, nbd.NBD_CMD_TRIM, nbd.NBD_CMD_WRITE_ZEROES} {
		stream = append(stream, commandOf(cmd, 2)...)
		ends[len(stream)] = true
	}
	stream = append(stream, writeOf(3, 0, []byte("abc"))...)
	ends[len(stream)] = true
	for piece := 1; piece < 40; piece++ {
		var r requests
		for at := 0; at < len(stream); {
			n := min(piece, len(stream)-at)
			r.advance(stream[at : at+n])
			at += n
			missing := r.missing()
			if ends[at] != (missing == 0) {
				t.Fatalf("pieces of %d: at %d %d bytes are missing", piece, at, missing)
			}
		}
		if r.disc {
			t.Fatal("a goodbye that nobody said")
		}
	}
	var r requests
	fua := commandOf(nbd.NBD_CMD_WRITE_ZEROES, 5)
	fua[5] = nbd.NBD_CMD_FLAG_FUA
	r.advance(append(fua, commandOf(nbd.NBD_CMD_FLUSH, 6)...))
	if r.fua != 1 {
		t.Errorf("%d requests with FUA, want 1", r.fua)
	}
	r.advance(commandOf(nbd.NBD_CMD_DISC, 4))
	if !r.disc {
		t.Error("NBD_CMD_DISC was not seen")
	}
}

// slowBackend is a memory whose writes can be held up.
type slowBackend struct {
	*nbdtest.Memory
	entered chan struct{} // a value each write
	release chan struct{} // a write goes on with each value; closed: all do
	writes  atomic.Int64
}

func (b *slowBackend) WriteGroup(offs []int64, data [][]byte, errs []error) {
	b.entered <- struct{}{}
	<-b.release
	b.writes.Add(int64(len(offs)))
	b.Memory.WriteGroup(offs, data, errs)
}

const size = 1 << 20

func newSource(t *testing.T) (*imageSource, *slowBackend) {
	t.Helper()
	b := &slowBackend{Memory: nbdtest.NewMemory(size), entered: make(chan struct{}, 100), release: make(chan struct{}, 100)}
	s, err := newImageSource(func() (*Image, error) {
		return &Image{Export: nbd.Export{Size: size, Backend: b, MultiConn: true}, BlockSize: 4096, Closer: io.NopCloser(nil)}, nil
	}, zerolog.Nop())
	if err != nil {
		t.Fatal(err)
	}
	return s, b
}

// kernelEnd is what the kernel would have.
func kernelEnd(t *testing.T, s *imageSource) (*imageConn, net.Conn) {
	t.Helper()
	c, fd, err := s.connect()
	if err != nil {
		t.Fatal(err)
	}
	k, err := unixConn(fd)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { k.Close() })
	k.SetDeadline(time.Now().Add(30 * time.Second))
	return c.(*imageConn), k
}

// reply reads a simple reply without data, and fails unless it is a success.
func reply(t *testing.T, k io.Reader, cookie uint64) {
	t.Helper()
	var b [16]byte
	if _, err := io.ReadFull(k, b[:]); err != nil {
		t.Fatal(err)
	}
	if binary.BigEndian.Uint32(b[:]) != nbd.NBD_SIMPLE_REPLY_MAGIC || binary.BigEndian.Uint64(b[8:]) != cookie {
		t.Fatalf("not the reply to %d: % x", cookie, b)
	}
	if e := binary.BigEndian.Uint32(b[4:]); e != 0 {
		t.Fatalf("request %d: error %d", cookie, e)
	}
}

func write(t *testing.T, k io.Writer, b []byte) {
	t.Helper()
	if _, err := k.Write(b); err != nil {
		t.Fatal(err)
	}
}

// Goal: a link that is told to leave answers what it has begun to read, and no more:
// the rest stays in the socket, where the next server finds it. No request gets an
// error, none is lost.
func TestLinkLeavesBetweenRequests(t *testing.T) {
	s, b := newSource(t)
	c, k := kernelEnd(t, s)
	if e, blockSize := c.offered(); e.Size != size || blockSize != 4096 || e.Flags&nbd.NBD_FLAG_CAN_MULTI_CONN == 0 {
		t.Fatalf("offered %+v, blocks of %d", e, blockSize)
	}
	payload := bytes.Repeat([]byte{7}, 8192)
	second := writeOf(2, 8192, payload)
	write(t, k, append(writeOf(1, 0, payload), second[:100]...))
	<-b.entered // the first is being executed; the second has come in part
	c.leave()
	close(b.release)
	reply(t, k, 1)
	write(t, k, append(second[100:], writeOf(3, 0, payload)...))
	reply(t, k, 2)
	if goodbye, err := c.await(); goodbye || err != nil {
		t.Fatalf("ended with goodbye %v, %v", goodbye, err)
	}
	if n := b.writes.Load(); n != 2 {
		t.Fatalf("%d writes executed", n)
	}
	next, err := s.serve(c.socket)
	if err != nil {
		t.Fatal(err)
	}
	s.forget(c.link)
	reply(t, k, 3)
	write(t, k, commandOf(nbd.NBD_CMD_DISC, 4))
	if goodbye, err := next.await(); !goodbye || err != nil {
		t.Fatalf("ended with goodbye %v, %v", goodbye, err)
	}
}

// Goal: while a request of a connection that the kernel has given up is still being
// executed, nothing from other connections is: it may be the second copy of that
// request, or newer. What is on the dead connection itself is not executed at all.
func TestFence(t *testing.T) {
	s, b := newSource(t)
	first, k1 := kernelEnd(t, s)
	_, k2 := kernelEnd(t, s)
	old, young := bytes.Repeat([]byte{1}, 4096), bytes.Repeat([]byte{2}, 4096)
	write(t, k1, writeOf(1, 0, old))
	<-b.entered // … and stuck
	write(t, k1, writeOf(2, 0, old))
	k1.Close()
	write(t, k2, writeOf(3, 0, young))
	select {
	case <-b.entered:
		t.Fatal("a second request is executed beside one of a dead connection")
	case <-time.After(100 * time.Millisecond):
	}
	b.release <- struct{}{}
	<-b.entered
	b.release <- struct{}{}
	reply(t, k2, 3)
	first.await()
	got := make([]byte, 4096)
	if _, err := b.ReadAt(got, 0); err != nil || !bytes.Equal(got, young) {
		t.Errorf("the older write is there (%v)", err)
	}
	if n := b.writes.Load(); n != 2 {
		t.Errorf("%d writes executed, want the stuck one and the young one", n)
	}
	close(b.release)
}

// Goal: when all connections are dead nobody waits for anybody.
func TestFenceWithoutSurvivors(t *testing.T) {
	s, b := newSource(t)
	close(b.release)
	c1, k1 := kernelEnd(t, s)
	c2, k2 := kernelEnd(t, s)
	for i := range uint64(50) {
		write(t, k1, writeOf(i, 0, make([]byte, 4096)))
		write(t, k2, writeOf(i, 0, make([]byte, 4096)))
	}
	k1.Close()
	k2.Close()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for _, c := range []*imageConn{c1, c2} {
		select {
		case <-c.done:
		case <-ctx.Done():
			t.Fatal("a link waits for ever")
		}
	}
}

// Goal: connections that the kernel gives up while they wait for one that it had given
// up before, do not wait for each other. So it goes at each disconnect of a device in
// use: goodbye on every connection, then one after the other is shut.
func TestFenceOfTheDying(t *testing.T) {
	for range 20 { // whether both are waiting already when they are shut is a matter of luck
		s, b := newSource(t)
		first, k1 := kernelEnd(t, s)
		second, k2 := kernelEnd(t, s)
		third, k3 := kernelEnd(t, s)
		write(t, k1, writeOf(1, 0, make([]byte, 4096)))
		<-b.entered
		k1.Close()
		write(t, k2, writeOf(2, 0, make([]byte, 4096)))
		write(t, k3, writeOf(3, 0, make([]byte, 4096)))
		awaitRead(t, second)
		awaitRead(t, third)
		k2.Close()
		k3.Close()
		close(b.release)
		for _, c := range []*imageConn{first, second, third} {
			select {
			case <-c.done:
			case <-time.After(30 * time.Second):
				t.Fatal("a link waits for ever")
			}
		}
	}
}

// awaitRead returns when the link has read all that was sent to it.
func awaitRead(t *testing.T, c *imageConn) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); runtime.Gosched() {
		unread, err := unix.IoctlGetInt(c.fd, unix.TIOCINQ)
		if err != nil {
			t.Fatal(err)
		}
		if unread == 0 {
			return
		}
	}
	t.Fatal("nobody reads")
}
