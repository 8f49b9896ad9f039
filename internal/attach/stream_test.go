package attach

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"syscall"
	"testing"
	"time"
)

// newStream returns a stream over one end of a socket pair, and both ends.
func newStream(t *testing.T) (s *stream, socket, other *net.UnixConn) {
	t.Helper()
	socket, fd, err := socketPair()
	if err != nil {
		t.Fatal(err)
	}
	other, err = unixConn(fd)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { socket.Close(); other.Close() })
	raw, err := socket.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	s = new(stream)
	s.init(raw)
	return s, socket, other
}

// Goal: a stream carries everything, also more than the socket holds, and knows the end.
func TestStream(t *testing.T) {
	s, _, other := newStream(t)
	sent := make([]byte, 4<<20)
	for i := range sent {
		sent[i] = byte(i * 7)
	}
	go func() {
		received := make([]byte, len(sent))
		io.ReadFull(other, received)
		other.Write(received)
		other.CloseWrite()
	}()
	if n, err := s.Write(sent); n != len(sent) || err != nil {
		t.Fatalf("write: %d, %v", n, err)
	}
	back, err := io.ReadAll(s) // up to io.EOF
	if err != nil || !bytes.Equal(sent, back) {
		t.Fatalf("%d bytes came back, %v", len(back), err)
	}
}

// Goal: a stream ends as its socket does: by a deadline, with its peer, and by Close.
func TestStreamEnds(t *testing.T) {
	s, socket, other := newStream(t)
	var b [1]byte
	socket.SetReadDeadline(time.Unix(1, 0))
	if n, err := s.Read(b[:]); n != 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("read after the deadline: %d, %v", n, err)
	}
	socket.SetReadDeadline(time.Time{})
	other.Close()
	if _, err := s.Write(b[:]); !errors.Is(err, syscall.EPIPE) {
		t.Errorf("write to nobody: %v", err)
	}
	if n, err := s.Read(b[:]); n != 0 || err != io.EOF {
		t.Errorf("read from nobody: %d, %v", n, err)
	}
	socket.Close()
	if n, err := s.Read(b[:]); n != 0 || !errors.Is(err, net.ErrClosed) {
		t.Errorf("read after Close: %d, %v", n, err)
	}
}

// Goal: no call allocates.
func TestStreamAllocations(t *testing.T) {
	s, _, other := newStream(t)
	raw, err := other.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var peer stream
	peer.init(raw)
	p := make([]byte, 4096)
	if n := testing.AllocsPerRun(1000, func() {
		s.Write(p)
		peer.Read(p)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
