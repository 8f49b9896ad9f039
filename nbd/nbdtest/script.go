package nbdtest

import (
	"bytes"
	"io"
	"net"
	"time"
)

// Script is a net.Conn whose other end has said everything in advance: reads
// take from In, at most Chunk bytes at a time, and then meet the end of the
// stream; writes go to Out. With it a whole session runs on one goroutine, and
// byte for byte the same every time.
type Script struct {
	In     []byte
	Chunk  int          // 0 means all at once
	First  int          // length of the first read, when not 0
	Out    bytes.Buffer // what the server sent
	Writes int          // in how many writes
}

var _ net.Conn = (*Script)(nil)

// Read takes from In.
func (s *Script) Read(p []byte) (int, error) {
	if len(s.In) == 0 {
		return 0, io.EOF
	}
	n := len(s.In)
	if s.Chunk > 0 {
		n = min(n, s.Chunk)
	}
	if s.First > 0 {
		n = min(n, s.First)
	}
	n = copy(p, s.In[:n])
	s.In = s.In[n:]
	s.First = max(0, s.First-n)
	return n, nil
}

// Write appends to Out.
func (s *Script) Write(p []byte) (int, error) {
	s.Writes++
	return s.Out.Write(p)
}

// Close does nothing.
func (s *Script) Close() error { return nil }

// LocalAddr returns an address of the network "script".
func (s *Script) LocalAddr() net.Addr { return scriptAddr{} }

// RemoteAddr returns an address of the network "script".
func (s *Script) RemoteAddr() net.Addr { return scriptAddr{} }

// SetDeadline does nothing: a script never waits.
func (s *Script) SetDeadline(time.Time) error { return nil }

// SetReadDeadline does nothing.
func (s *Script) SetReadDeadline(time.Time) error { return nil }

// SetWriteDeadline does nothing.
func (s *Script) SetWriteDeadline(time.Time) error { return nil }

type scriptAddr struct{}

func (scriptAddr) Network() string { return "script" }
func (scriptAddr) String() string  { return "script" }
