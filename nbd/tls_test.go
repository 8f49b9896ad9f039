package nbd_test

import (
	"bytes"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/bttnbd/bttnbd/nbd"
	"github.com/bttnbd/bttnbd/nbd/nbdtest"
	"github.com/rs/zerolog"
)

// openTLS is open over TLS.
func openTLS(t testing.TB, s *nbd.Server, config *tls.Config) *session {
	t.Helper()
	c := connect(t, s)
	_, err := c.Greet(bothFlags)
	if err == nil {
		err = c.StartTLS(config)
	}
	if err == nil {
		_, err = c.Go("")
	}
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// Goal: a TLS server that is told to end says so to TLS, so that its client can
// tell that from an attack; also when it waits for a request, holding nothing.
func TestTLSShutdown(t *testing.T) {
	server, client := configs(t)
	s := newServerWith(t, nbd.Options{TLS: server}, full(nbdtest.NewMemory(mib), mib))
	c := connect(t, s)
	if _, err := c.Greet(bothFlags); err != nil {
		t.Fatal(err)
	}
	records, err := c.StartWatchedTLS(client)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Go(""); err != nil {
		t.Fatal(err)
	}
	c.inStep("the handshake")
	until(t, "it waits", func() bool { return s.MemoryInUse() == 0 })
	if err := s.Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
	if b, err := io.ReadAll(c); err != nil || len(b) > 0 || !records.EndInAlert() {
		t.Errorf("%q, %v, and an alert: %v", b, err, records.EndInAlert())
	}
	if err := c.end(); err != nil {
		t.Error(err)
	}
}

// gathered is a connection whose writes are sent together.
type gathered struct {
	net.Conn
	gather bool
	b      bytes.Buffer
}

func (g *gathered) Write(p []byte) (int, error) {
	if g.gather {
		return g.b.Write(p)
	}
	return g.Conn.Write(p)
}

// Goal: requests that arrive together make one group over TLS too, however many
// records they are.
func TestTLSGroups(t *testing.T) {
	server, client := configs(t)
	m := nbdtest.NewMemory(mib)
	s := newServerWith(t, nbd.Options{TLS: server}, full(m, mib))
	c := connect(t, s)
	g := &gathered{Conn: c.Conn}
	c.Conn = g
	if _, err := c.Greet(bothFlags); err != nil {
		t.Fatal(err)
	}
	if err := c.StartTLS(client); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Go(""); err != nil {
		t.Fatal(err)
	}
	const writes = 32
	g.gather = true
	for i := range uint64(writes) {
		w := nbdtest.Write(i, i*256, pattern(int(i), 256)).Append(nil)
		c.Write(w[:28])
		c.Write(w[28:])
	}
	g.gather = false
	g.Conn.Write(g.b.Bytes())
	for i := range uint64(writes) {
		if r, err := c.Recv(0); err != nil || r.Err != 0 || r.Cookie != i {
			t.Fatalf("%+v, %v", r, err)
		}
	}
	if got := m.Groups(); !slices.Equal(got, []int{writes}) {
		t.Errorf("groups %v, want one of %d", got, writes)
	}
}

// Goal: who is refused by the configuration gets nowhere, and the log names the
// reason; who is let in is in the log with version, cipher and subject.
func TestTLSPeers(t *testing.T) {
	server, client := configs(t)
	server.ClientAuth = tls.RequireAndVerifyClientCert
	log := make(logLines, 100)
	s := newServerWith(t, nbd.Options{TLS: server, Log: zerolog.New(log)}, full(nbdtest.NewMemory(mib), mib))
	openTLS(t, s, client).inStep("TLS")
	line := <-log
	for _, want := range []string{"TLS 1.3", "TLS_", "CN=client"} {
		if !strings.Contains(line, want) {
			t.Errorf("no %q in the log: %s", want, line)
		}
	}
	_, stranger := configs(t)
	stranger.RootCAs = client.RootCAs
	for name, config := range map[string]*tls.Config{
		"no certificate":    {RootCAs: client.RootCAs, ServerName: client.ServerName},
		"another authority": stranger,
	} {
		c := connect(t, s)
		if _, err := c.Greet(bothFlags); err != nil {
			t.Fatal(err)
		}
		err := c.StartTLS(config)
		if err == nil {
			_, err = c.Go("") // TLS 1.3 tells the client with its first read
		}
		if err == nil {
			t.Errorf("%s: served", name)
		}
		if err := c.end(); err == nil || !strings.Contains(err.Error(), "handshake: TLS: ") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// logLines is a log.
type logLines chan string

func (l logLines) Write(p []byte) (int, error) {
	l <- string(p)
	return len(p), nil
}

func TestTLSRefusalIsLogged(t *testing.T) {
	// Goal: the operator is told of clients that are refused because they do not use TLS,
	// once each, however they end; not of those that ask first, and then use it.
	server, client := configs(t)
	for name, c := range map[string]struct {
		talk func(c *session) error
		want int
	}{
		"it aborts":        {func(c *session) error { _, err := c.Haggle(nbd.NBD_OPT_ABORT, nil); return err }, 1},
		"it hangs up":      {func(*session) error { return nil }, 1},
		"it goes over TLS": {func(c *session) error { return c.StartTLS(client) }, 0},
	} {
		var log bytes.Buffer
		s := newServerWith(t, nbd.Options{TLS: server, TLSRequired: true, Log: zerolog.New(zerolog.SyncWriter(&log))}, full(nbdtest.NewMemory(mib), mib))
		conn := connect(t, s)
		if _, err := conn.Greet(bothFlags); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if _, err := conn.Go(""); err == nil {
				t.Fatalf("%s: let in without TLS", name)
			}
		}
		if err := c.talk(conn); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		conn.Client.Close()
		<-conn.over // the log is written by then
		if n := strings.Count(log.String(), `"message":"client refused: it does not use TLS"`); n != c.want {
			t.Errorf("%s: %d lines, want %d:\n%s", name, n, c.want, &log)
		}
	}
}

// Goal: TLS cannot be required without being there.
func TestTLSRequiredNeedsTLS(t *testing.T) {
	if _, err := nbd.NewServer(nil, nbd.Options{TLSRequired: true}); err == nil {
		t.Error("a server that nobody can use")
	}
}

// Goal: the handshake's deadline covers TLS.
func TestTLSHandshakeTimeout(t *testing.T) {
	server, _ := configs(t)
	s := newServerWith(t, nbd.Options{TLS: server, HandshakeTimeout: 2 * time.Second}, full(nbdtest.NewMemory(mib), mib))
	c := connect(t, s)
	if _, err := c.Greet(bothFlags); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Haggle(nbd.NBD_OPT_STARTTLS, nil); err != nil {
		t.Fatal(err)
	}
	if err := c.end(); err == nil || !strings.Contains(err.Error(), "not finished within 2s") {
		t.Errorf("%v", err)
	}
}

// BenchmarkTLS is BenchmarkServer over TLS.
func BenchmarkTLS(b *testing.B) {
	server, client := configs(b)
	s := newServerWith(b, nbd.Options{TLS: server}, full(make(ram, 16*mib), 16*mib))
	for _, bt := range batches() {
		b.Run(fmt.Sprint(bt.name), func(b *testing.B) {
			c := openTLS(b, s, client)
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
