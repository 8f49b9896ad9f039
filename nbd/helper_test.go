package nbd_test

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"net"
	"testing"
	"time"

	"github.com/bttnbd/bttnbd/nbd"
	"github.com/bttnbd/bttnbd/nbd/nbdtest"
)

var be = binary.BigEndian

const (
	bothFlags = nbd.NBD_FLAG_C_FIXED_NEWSTYLE | nbd.NBD_FLAG_C_NO_ZEROES
	mib       = 1 << 20

	// Bounds a test that would otherwise hang; nothing waits for it to pass.
	patience = time.Minute
)

// newServer returns a server of exports.
func newServer(t testing.TB, exports ...nbd.Export) *nbd.Server {
	t.Helper()
	return newServerWith(t, nbd.Options{}, exports...)
}

func newServerWith(t testing.TB, o nbd.Options, exports ...nbd.Export) *nbd.Server {
	t.Helper()
	s, err := nbd.NewServer(exports, o)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// configs returns the two sides of TLS.
func configs(t testing.TB) (server, client *tls.Config) {
	t.Helper()
	a, err := nbdtest.NewAuthority()
	if err == nil {
		server, client, err = a.Configs()
	}
	if err != nil {
		t.Fatal(err)
	}
	return server, client
}

// full returns an export of b that offers everything.
func full(b nbd.Backend, size uint64) nbd.Export {
	return nbd.Export{Size: size, Trim: true, Zero: true, FastZero: true, MultiConn: true, Backend: b}
}

// session is a connection to a server under test.
type session struct {
	*nbdtest.Client
	t    testing.TB
	over chan error // what ServeConn returned
}

// connect starts s on one end of a socket and returns the other, before the
// greeting.
func connect(t testing.TB, s *nbd.Server) *session {
	t.Helper()
	client, server := socketpair(t)
	client.SetDeadline(time.Now().Add(patience))
	c := &session{&nbdtest.Client{Conn: client}, t, make(chan error, 1)}
	go func() { c.over <- s.ServeConn(context.Background(), server) }()
	t.Cleanup(func() { client.Close() })
	return c
}

// open is connect and GO with the default export.
func open(t testing.TB, s *nbd.Server) *session {
	t.Helper()
	c := connect(t, s)
	if _, err := c.Open(""); err != nil {
		t.Fatal(err)
	}
	return c
}

// socketpair returns two connected unix sockets.
func socketpair(t testing.TB) (net.Conn, net.Conn) { return nbd.SocketPair(t) }

// end waits for the server to be done with c and returns its error.
func (c *session) end() error {
	c.t.Helper()
	select {
	case err := <-c.over:
		return err
	case <-time.After(patience):
		c.t.Fatal("the server does not end the connection")
		return nil
	}
}

// closed fails unless the server hangs up without another byte.
func (c *session) closed(what string) {
	c.t.Helper()
	if n, err := c.Read(make([]byte, 1)); n > 0 || err == nil {
		c.t.Errorf("%s: the server goes on talking", what)
	} else if ne, ok := err.(net.Error); ok && ne.Timeout() {
		c.t.Errorf("%s: the connection stays open", what)
	}
	c.end()
}

// want sends r and fails unless the reply's error is e.
func (c *session) want(e nbd.Errno, r nbdtest.Request, what string) nbdtest.Reply {
	c.t.Helper()
	reply, err := c.Do(r)
	if err != nil {
		c.t.Fatalf("%s: %v", what, err)
	}
	if reply.Err != e {
		c.t.Errorf("%s: %v, want %v", what, reply.Err, e)
	}
	return reply
}

// inStep fails unless c still answers as it should.
func (c *session) inStep(what string) {
	c.t.Helper()
	c.want(0, nbdtest.Command(nbd.NBD_CMD_FLUSH, 0xfeed, 0, 0), "flush after "+what)
}

// run plays in to s as one connection and returns all it said.
func run(t testing.TB, s *nbd.Server, script *nbdtest.Script) []byte {
	t.Helper()
	s.ServeConn(context.Background(), script)
	return script.Out.Bytes()
}

// hello is the client's side of a handshake that ends in GO.
func hello() []byte {
	b := be.AppendUint32(nil, bothFlags)
	return append(b, nbdtest.Option(nbd.NBD_OPT_GO, nbdtest.InfoData(""))...)
}

// requests encodes rs.
func requests(rs ...nbdtest.Request) []byte {
	var b []byte
	for _, r := range rs {
		b = r.Append(b)
	}
	return b
}

// pattern returns n bytes that differ with seed and position.
func pattern(seed, n int) []byte {
	p := make([]byte, n)
	for i := range p {
		p[i] = byte(seed*131 + i*7 + i>>8)
	}
	return p
}
