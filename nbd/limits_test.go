package nbd_test

import (
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/bttnbd/bttnbd/nbd"
	"github.com/bttnbd/bttnbd/nbd/nbdtest"
)

// turnedAway fails unless c is closed without a greeting.
func (c *session) turnedAway(what string) {
	c.t.Helper()
	if n, err := c.Read(make([]byte, 1)); n > 0 || err == nil {
		c.t.Errorf("%s: it is served", what)
	}
	c.end()
}

// Goal: when all places are taken by clients in transmission a new one is turned
// away; one in its handshake has to give up its place; a place that is left is
// free again at once.
func TestMaxConnections(t *testing.T) {
	s := newServerWith(t, nbd.Options{MaxConnections: 2}, full(nbdtest.NewMemory(mib), mib))
	first := open(t, s)
	dallying := connect(t, s)
	if _, err := dallying.Greet(bothFlags); err != nil {
		t.Fatal(err)
	}
	second := open(t, s)
	dallying.turnedAway("the client that dallies")
	connect(t, s).turnedAway("the third")
	first.Close()
	first.end()
	open(t, s).inStep("a place became free")
	second.inStep("all that")
	if st := s.Stats(); st.Refused != 2 || st.Accepted != 5 {
		t.Errorf("%+v", st)
	}
}

// Goal: a peer's connections are counted by user over a unix socket and by
// address over TCP, and every end of one gives its place back.
func TestMaxConnectionsPerPeer(t *testing.T) {
	for _, network := range []string{"unix", "tcp"} {
		s := newServerWith(t, nbd.Options{MaxConnectionsPerPeer: 1, HandshakeTimeout: 2 * time.Second}, full(nbdtest.NewMemory(mib), mib))
		l := listen(t, network)
		go s.Serve(t.Context(), l)
		for _, leave := range []func(net.Conn){
			func(c net.Conn) { c.Close() },
			func(c net.Conn) { c.Write([]byte("no client flags, these")); io.Copy(io.Discard, c) },
			func(c net.Conn) { io.Copy(io.Discard, c) }, // the handshake's deadline
		} {
			c, served := dial(t, l)
			if !served {
				t.Errorf("%s: the place is not free again", network)
			}
			if _, served := dial(t, l); served {
				t.Errorf("%s: a second connection is served", network)
			}
			leave(c)
			until(t, "the place is free", func() bool { return s.Stats().Connections == 0 })
		}
		if err := s.Shutdown(t.Context()); err != nil {
			t.Error(err)
		}
	}
}

// listen opens a listener of the network, unix or tcp.
func listen(t *testing.T, network string) net.Listener {
	t.Helper()
	address := "127.0.0.1:0"
	if network == "unix" {
		address = t.TempDir() + "/s"
	}
	l, err := net.Listen(network, address)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// dial connects to l, and says whether the greeting's first byte has come.
func dial(t *testing.T, l net.Listener) (c net.Conn, served bool) {
	t.Helper()
	c, err := net.Dial(l.Addr().Network(), l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(patience))
	n, _ := c.Read(make([]byte, 1))
	return c, n > 0
}

// Goal: an idle client is disconnected after IdleTimeout, and never one that
// sends requests more often.
func TestIdleTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServerWith(t, nbd.Options{IdleTimeout: time.Minute}, full(nbdtest.NewMemory(mib), mib))
		c := pipe(s)
		if _, err := c.Open(""); err != nil {
			t.Fatal(err)
		}
		for range 10 {
			time.Sleep(59 * time.Second)
			if r, err := c.Do(nbdtest.Command(nbd.NBD_CMD_FLUSH, 1, 0, 0)); err != nil || r.Err != 0 {
				t.Fatalf("%v, %v", r.Err, err)
			}
		}
		start := time.Now()
		err := <-c.over
		if took := time.Since(start); took != time.Minute || err == nil || !strings.Contains(err.Error(), "no request within 1m0s") {
			t.Errorf("after %v: %v", took, err)
		}
	})
}

// Goal: with a socket, too; and without IdleTimeout nothing but the memory that a
// client holds has a time limit.
func TestStallTimeout(t *testing.T) {
	const limit = 50 * time.Millisecond
	m := nbdtest.NewMemory(32 * mib)
	stall := nbd.Options{WriteTimeout: limit}
	for _, tc := range []struct {
		name string
		o    nbd.Options
		send []nbdtest.Request
		want string
	}{
		{"idle", nbd.Options{IdleTimeout: limit}, nil, "no request within"},
		{"takes no answer", stall, []nbdtest.Request{nbdtest.Read(1, 0, 32*mib)}, "did not go on"},
		{"stops in a payload", stall, []nbdtest.Request{{Cmd: nbd.NBD_CMD_WRITE, Length: 4096, Data: make([]byte, 100)}}, "did not go on"},
		{"stops before a payload", stall, []nbdtest.Request{{Cmd: nbd.NBD_CMD_WRITE, Length: 4096}}, "did not go on"},
		{"stops in a large payload", stall, []nbdtest.Request{{Cmd: nbd.NBD_CMD_WRITE, Length: mib, Data: make([]byte, 100)}}, "did not go on"},
		{"stops in a payload to skip", stall, []nbdtest.Request{{Cmd: nbd.NBD_CMD_WRITE, Offset: 1 << 40, Length: mib}}, "did not go on"},
	} {
		for _, small := range []int64{0, -1} {
			tc.o.MaxMemory = small
			s := newServerWith(t, tc.o, full(m, 32*mib))
			c := open(t, s)
			c.Send(tc.send...)
			if err := c.end(); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("%s: %v", tc.name, err)
			}
			if n := s.MemoryInUse(); n != 0 {
				t.Errorf("%s: %d bytes in use", tc.name, n)
			}
		}
	}

	s := newServerWith(t, stall, full(m, 32*mib))
	c := open(t, s)
	c.inStep("the handshake")
	select {
	case err := <-c.over:
		t.Errorf("an idle client is disconnected: %v", err)
	case <-time.After(3 * limit):
	}
	c.inStep("a while")
}

// Goal: clients that take no answers hold no more than MaxMemory together, an idle
// one holds nothing, and none keeps another from being served.
func TestMaxMemory(t *testing.T) {
	const most, stalled = 2 * mib, 40
	m := nbdtest.NewMemory(32 * mib)
	s := newServerWith(t, nbd.Options{MaxMemory: most}, full(m, 32*mib))
	idle := open(t, s)
	idle.inStep("the handshake")
	var all []*session
	for range stalled {
		c := open(t, s)
		c.Send(nbdtest.Read(1, 0, 32*mib))
		if _, err := io.ReadFull(c, make([]byte, 16)); err != nil { // it has begun
			t.Fatal(err)
		}
		all = append(all, c)
	}
	if n := s.MemoryInUse(); n > most || n < most/2 {
		t.Errorf("%d bytes in use, want up to %d", n, most)
	}
	good := open(t, s)
	p := pattern(5, mib+5000)
	good.want(0, nbdtest.Write(1, 4000, p), "large write")
	if r := good.want(0, nbdtest.Read(2, 4000, uint32(len(p))), "large read"); string(r.Data) != string(p) {
		t.Error("other data")
	}
	for _, c := range all {
		c.Close()
		c.end()
	}
	good.inStep("all that")
	idle.inStep("all that")
	until(t, "idle clients hold nothing", func() bool { return s.MemoryInUse() == 0 })
}

// Goal: clients that leave long options unfinished hold no more than a small part of
// the memory, and nothing where they have yet to do TLS; who finishes is answered,
// and gives the memory back.
func TestMemoryOfHandshakes(t *testing.T) {
	server, _ := configs(t)
	for _, required := range []bool{false, true} {
		s := newServerWith(t, nbd.Options{TLS: server, TLSRequired: required}, full(nbdtest.NewMemory(mib), mib))
		option := nbdtest.Option(nbd.NBD_OPT_LIST_META_CONTEXT, make([]byte, 100_000))
		half := len(option) / 2
		var all []piped
		for range 20 {
			c := pipe(s)
			if _, err := c.Greet(bothFlags); err != nil {
				t.Fatal(err)
			}
			c.Write(option[:half]) // all of it is read when this returns
			all = append(all, c)
		}
		most, first, last := int64(nbd.HandshakeMemory), uint32(nbd.NBD_REP_ERR_INVALID), uint32(nbd.NBD_REP_ERR_TOO_BIG)
		if required {
			most, first, last = 0, nbd.NBD_REP_ERR_TLS_REQD, nbd.NBD_REP_ERR_TLS_REQD
		}
		if n := s.MemoryInUse(); n > most {
			t.Errorf("TLS required %v: %d bytes in use, want up to %d", required, n, most)
		}
		for i, want := range map[int]uint32{0: first, 19: last} {
			all[i].Write(option[half:])
			if r, err := all[i].RecvOption(); err != nil || r.Type != want {
				t.Errorf("TLS required %v: client %d: %+v, %v, want %#x", required, i, r, err, want)
			}
		}
		for _, c := range all {
			c.Close()
			<-c.over
		}
		if n := s.MemoryInUse(); n != 0 {
			t.Errorf("TLS required %v: %d bytes are lost", required, n)
		}
	}
}

// Goal: requests and bytes go at the rate of the export, all connections of it
// together, after what a second allows at once; others go as they like.
func TestRates(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := nbdtest.NewMemory(4 * mib)
		ops, bytes := named("ops", m, 4*mib), named("bytes", m, 4*mib)
		ops.OpsPerSecond, bytes.BytesPerSecond = 10, mib
		s := newServer(t, ops, bytes, full(m, 4*mib))
		one, two, free, large := pipe(s), pipe(s), pipe(s), pipe(s)
		for c, name := range map[piped]string{one: "ops", two: "ops", free: "", large: "bytes"} {
			if _, err := c.Open(name); err != nil {
				t.Fatal(err)
			}
		}
		elapsed := func(what string, want time.Duration, c piped, n int, r nbdtest.Request) {
			start := time.Now()
			for range n {
				if reply, err := c.Do(r); err != nil || reply.Err != 0 && r.Offset == 0 {
					t.Fatalf("%s: %v, %v", what, reply.Err, err)
				}
			}
			if took := time.Since(start); (took - want).Abs() > time.Millisecond {
				t.Errorf("%s took %v, want %v", what, took, want)
			}
		}
		flush := nbdtest.Command(nbd.NBD_CMD_FLUSH, 1, 0, 0)
		elapsed("10 requests", 0, one, 10, flush)
		elapsed("5 more on another connection", time.Second/2, two, 5, flush)
		elapsed("a free one", 0, free, 1000, flush)
		elapsed("1 MiB", 0, large, 1, nbdtest.Read(1, 0, mib))
		elapsed("3 MiB more", 3*time.Second, large, 1, nbdtest.Write(1, 0, make([]byte, 3*mib)))
		elapsed("what moves no bytes", 0, large, 10, nbdtest.Command(nbd.NBD_CMD_WRITE_ZEROES, 1, 0, 4*mib))
		elapsed("what is refused", 0, large, 1, nbdtest.Read(1, 1<<40, 1<<30))

		bytes.BytesPerSecond = 2 * mib
		if err := s.SetExports(t.Context(), []nbd.Export{ops, bytes, full(m, 4*mib)}); err != nil {
			t.Fatal(err)
		}
		elapsed("2 MiB at the new rate", 0, large, 1, nbdtest.Read(1, 0, 2*mib))
		elapsed("4 MiB more", 2*time.Second, large, 1, nbdtest.Read(1, 0, 4*mib))

		// Shutdown does not wait for what a rate holds back.
		large.Send(nbdtest.Read(1, 0, 4*mib))
		go io.Copy(io.Discard, large)
		synctest.Wait()
		start := time.Now()
		if err := s.Shutdown(t.Context()); err != nil || time.Since(start) > time.Second {
			t.Errorf("Shutdown took %v: %v", time.Since(start), err)
		}
	})
}

// Goal: a long WRITE_ZEROES or TRIM ends with the server, after the slice at
// which it is.
func TestShutdownCutsLongRequests(t *testing.T) {
	const size = 1 << 40
	for _, cmd := range []uint16{nbd.NBD_CMD_WRITE_ZEROES, nbd.NBD_CMD_TRIM} {
		entered, leave := make(chan struct{}, 1), make(chan struct{})
		slices := 0
		b := &nbdtest.Faulty{Backend: nowhere{}, Fault: func(_ nbdtest.Op, off, n int64) error {
			if slices++; slices == 2 {
				entered <- struct{}{}
				<-leave
			}
			if n > 64*mib || off%mib != 512 && off%(64*mib) != 0 {
				return errors.New("not a slice")
			}
			return nil
		}}
		s := newServer(t, full(b, size))
		c := open(t, s)
		c.Send(nbdtest.Command(cmd, 1, 512, 1<<32-512))
		<-entered
		over := make(chan error, 1)
		go func() { over <- s.Shutdown(context.Background()) }()
		until(t, "Shutdown is under way", func() bool { return !accepts(s) })
		close(leave)
		if r, err := c.Recv(0); err != nil || r.Err != nbd.NBD_ESHUTDOWN {
			t.Errorf("%v, %v", r.Err, err)
		}
		if err := <-over; err != nil {
			t.Error(err)
		}
		if slices != 2 {
			t.Errorf("%d slices", slices)
		}
	}
}

// nowhere is a backend that does nothing.
type nowhere struct{ nbd.Backend }

func (nowhere) ZeroAt(_, _ int64) error { return nil }
func (nowhere) TrimAt(_, _ int64) error { return nil }
