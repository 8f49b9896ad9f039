package nbd

import (
	"net"
	"testing"
)

// MemoryInUse is what of MaxMemory is taken.
func (s *Server) MemoryInUse() int64 { return s.memory.Load() }

// HandshakeMemory is the most of it that handshakes take together.
const HandshakeMemory = maxLongOptions * maxOptionData

// SocketPair returns two connected unix sockets.
func SocketPair(t testing.TB) (net.Conn, net.Conn) {
	t.Helper()
	l, err := net.Listen("unix", t.TempDir()+"/s")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	client, err := net.Dial("unix", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	server, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	return client, server
}
