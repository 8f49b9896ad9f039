package nbd_test

import (
	"crypto/tls"
	"net"
	"os"
	"runtime"
	"strconv"
	"testing"
	"time"

	"github.com/bttnbd/bttnbd/nbd"
	"github.com/bttnbd/bttnbd/nbd/nbdtest"
)

// Goal: whatever clients do to the server, one that behaves sees no error, over a
// unix socket, TCP or TLS; and when they have gone, every goroutine, file
// descriptor, connection and buffer has, too. BTTNBD_ABUSE=10 makes ten times as
// many connections as the 10,000 of the whole run; -short, a tenth.
func TestAbuse(t *testing.T) {
	scale := 1.0
	if s := os.Getenv("BTTNBD_ABUSE"); s != "" {
		var err error
		if scale, err = strconv.ParseFloat(s, 64); err != nil {
			t.Fatal(err)
		}
	} else if testing.Short() {
		scale = 0.1
	}
	server, client := configs(t)
	m := nbdtest.NewMemory(64 * mib)
	s := newServerWith(t, nbd.Options{
		TLS: server, HandshakeTimeout: time.Second, WriteTimeout: time.Second,
		MaxConnections: 400, MaxMemory: 16 * mib,
	}, full(m, 64*mib))
	for _, network := range []string{"unix", "tcp"} {
		abused(t, s, network, client, scale)
	}
	if err := s.Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
}

func abused(t *testing.T, s *nbd.Server, network string, client *tls.Config, scale float64) {
	l := listen(t, network)
	go s.Serve(t.Context(), l)
	dial := func() (net.Conn, error) { return net.Dial(network, l.Addr().String()) }

	clear, overTLS := neighbour(t, dial, nil, 40*mib), neighbour(t, dial, client, 41*mib)
	until(t, "the neighbours are at work", func() bool { return s.Stats().Connections == 2 })
	before := countResources(t)
	a := &nbdtest.Abuse{Dial: dial, TLS: client, Seed: 1}
	for _, k := range nbdtest.Attacks {
		n := map[string]int{
			"stops at each byte of the handshake": 5000,
			"hangs up with requests in flight":    1000,
			"reads slowly, or not at all":         100,
			"storms of options":                   50,
		}[k.Name]
		if n == 0 {
			n = 200
		}
		clear.Lap()
		overTLS.Lap()
		start, was := time.Now(), s.Stats()
		k.Run(a, max(4, int(float64(n)*scale)))
		until(t, "the attackers have gone after "+k.Name, func() bool { return s.Stats().Connections == 2 })
		is := s.Stats()
		t.Logf("%s, %s: %d connections, %d refused, %v; good client %v, over TLS %v", network, k.Name,
			is.Accepted-was.Accepted, is.Refused-was.Refused, time.Since(start).Round(time.Millisecond), clear.Lap(), overTLS.Lap())
	}
	until(t, "all resources are back", func() bool { return countResources(t).atMost(before) })
	for _, n := range []*nbdtest.Neighbour{clear, overTLS} {
		if err := n.Stop(); err != nil {
			t.Errorf("%s: a good client: %v", network, err)
		}
	}
	until(t, "the neighbours have gone", func() bool { return s.Stats().Connections == 0 })
	if n := s.MemoryInUse(); n != 0 {
		t.Errorf("%s: %d bytes of buffers are lost", network, n)
	}
}

// neighbour starts a good client.
func neighbour(t *testing.T, dial func() (net.Conn, error), over *tls.Config, off uint64) *nbdtest.Neighbour {
	t.Helper()
	nc, err := dial()
	if err != nil {
		t.Fatal(err)
	}
	c := &nbdtest.Client{Conn: nc}
	if _, err = c.Greet(bothFlags); err == nil && over != nil {
		err = c.StartTLS(over)
	}
	if err == nil {
		_, err = c.Go("")
	}
	if err != nil {
		t.Fatal(err)
	}
	return nbdtest.NewNeighbour(c, off)
}

// resources are what connections must give back.
type resources struct{ goroutines, files int }

func countResources(t *testing.T) resources {
	t.Helper()
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return resources{runtime.NumGoroutine(), len(fds)}
}

func (r resources) atMost(other resources) bool {
	return r.goroutines <= other.goroutines && r.files <= other.files
}

// until waits for a state that no event announces, and fails after patience.
func until(t testing.TB, what string, there func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !there(); runtime.Gosched() {
		if time.Now().After(end) {
			t.Fatalf("waited %v until %s", patience, what)
		}
	}
}
