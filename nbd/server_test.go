package nbd_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/bttnbd/bttnbd/nbd"
	"github.com/bttnbd/bttnbd/nbd/nbdtest"
	"github.com/rs/zerolog"
)

// Goal: a client may hang up after any byte of a session, having read its
// answers or not; the connection ends and the server goes on.
func TestHangUpAnywhere(t *testing.T) {
	in, _ := mixed()
	s := newServer(t, full(nbdtest.NewMemory(mib), mib))
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
	if n := s.Stats().Connections; n != 0 {
		t.Errorf("%d connections left", n)
	}
	open(t, s).inStep("all that")
}

// Goal: a client that hangs up in the middle of a large reply, or while it
// owes a large payload, costs nothing but its connection.
func TestHangUpMidPayload(t *testing.T) {
	s := newServer(t, full(nbdtest.NewMemory(32*mib), 32*mib))
	for _, r := range []nbdtest.Request{
		nbdtest.Read(1, 0, 32*mib),
		{Cmd: nbd.NBD_CMD_WRITE, Length: 32 * mib, Data: make([]byte, 3*mib)},
		{Cmd: nbd.NBD_CMD_WRITE, Offset: 1 << 40, Length: 32 * mib, Data: make([]byte, 3*mib)},
		{Cmd: nbd.NBD_CMD_WRITE, Length: 4096, Data: make([]byte, 4095)},
	} {
		c := open(t, s)
		if err := c.Send(r); err != nil {
			t.Fatal(err)
		}
		if r.Cmd == nbd.NBD_CMD_READ {
			io.ReadFull(c, make([]byte, 3*mib))
		}
		c.Close()
		if err := c.end(); err == nil || !strings.HasPrefix(err.Error(), `export "": `) {
			t.Errorf("error %v does not name the export", err)
		}
	}
}

// Goal: an orderly leave is no error: at once, after the handshake, after
// requests, with DISC and without.
func TestOrderlyEnds(t *testing.T) {
	s := newServer(t, full(nbdtest.NewMemory(mib), mib))
	flags := be.AppendUint32(nil, bothFlags)
	for name, in := range map[string][]byte{
		"nothing":       nil,
		"flags":         flags,
		"go":            hello(),
		"go and write":  append(hello(), requests(nbdtest.Write(1, 0, []byte("x")))...),
		"disc":          append(hello(), requests(nbdtest.Command(nbd.NBD_CMD_DISC, 0, 0, 0))...),
		"disc and more": append(append(hello(), requests(nbdtest.Command(nbd.NBD_CMD_DISC, 0, 0, 0))...), "rest"...),
	} {
		if err := s.ServeConn(t.Context(), &nbdtest.Script{In: in}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Goal: Shutdown ends idle connections in every phase, and no goroutine is
// left. In a synctest bubble a goroutine that stays behind fails the test.
func TestShutdownIdle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(t, full(nbdtest.NewMemory(mib), mib))
		fresh, greeted, going, midWrite := pipe(s), pipe(s), pipe(s), pipe(s)
		if _, err := greeted.Greet(bothFlags); err != nil {
			t.Fatal(err)
		}
		for _, c := range []piped{going, midWrite} {
			if _, err := c.Open(""); err != nil {
				t.Fatal(err)
			}
		}
		midWrite.Send(nbdtest.Request{Cmd: nbd.NBD_CMD_WRITE, Length: 4096, Data: make([]byte, 100)})
		go io.ReadFull(fresh, make([]byte, 18)) // a pipe has no buffer for the greeting
		synctest.Wait()

		if err := s.Shutdown(t.Context()); err != nil {
			t.Error(err)
		}
		for _, c := range []piped{fresh, greeted, going, midWrite} {
			if err := <-c.over; err != nil {
				t.Error(err)
			}
		}
		late := pipe(s)
		if _, err := late.Open(""); err == nil {
			t.Error("served after Shutdown")
		}
		if err := s.Serve(t.Context(), failing{}); err != nil {
			t.Error(err)
		}
	})
}

// Goal: requests that have been received when Shutdown comes are executed and
// answered, and Shutdown waits for them.
func TestShutdownFinishes(t *testing.T) {
	entered, leave := make(chan struct{}), make(chan struct{})
	m := nbdtest.NewMemory(mib)
	b := &nbdtest.Faulty{Backend: m, Fault: func(op nbdtest.Op, _, _ int64) error {
		if op == nbdtest.OpFlush {
			close(entered)
			<-leave
		}
		return nil
	}}
	s := newServer(t, full(b, mib))
	c := open(t, s)
	c.Send(nbdtest.Write(1, 0, []byte("one")), nbdtest.Command(nbd.NBD_CMD_FLUSH, 2, 0, 0), nbdtest.Write(3, 3, []byte("two")), nbdtest.Read(4, 0, 6))
	<-entered
	over := make(chan error, 1)
	go func() { over <- s.Shutdown(context.Background()) }()
	for accepts(s) { // not any more once Shutdown is under way
		runtime.Gosched()
	}
	select {
	case <-over:
		t.Error("Shutdown does not wait for a request in flight")
	default:
	}
	close(leave)
	for i := uint64(1); i <= 4; i++ {
		var n uint32
		if i == 4 {
			n = 6
		}
		r, err := c.Recv(n)
		if err != nil || r.Err != 0 || r.Cookie != i {
			t.Fatalf("reply %d: %+v, %v", i, r, err)
		}
		if i == 4 && string(r.Data) != "onetwo" {
			t.Errorf("read %q", r.Data)
		}
	}
	if err := <-over; err != nil {
		t.Error(err)
	}
	if err := c.end(); err != nil {
		t.Error(err)
	}
}

// accepts says whether s still takes connections.
func accepts(s *nbd.Server) bool {
	script := &nbdtest.Script{}
	s.ServeConn(context.Background(), script)
	return script.Out.Len() > 0
}

// Goal: a client that does not read its replies cannot hold up Shutdown for
// longer than its context.
func TestShutdownDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(t, full(nbdtest.NewMemory(mib), mib))
		c := pipe(s)
		if _, err := c.Open(""); err != nil {
			t.Fatal(err)
		}
		c.Send(nbdtest.Read(1, 0, 1000)) // the answer blocks in the pipe
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		start := time.Now()
		if err := s.Shutdown(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("error %v", err)
		}
		if took := time.Since(start); took != 5*time.Second {
			t.Errorf("took %v", took)
		}
		<-c.over
		if err := s.Shutdown(t.Context()); err != nil {
			t.Errorf("second Shutdown: %v", err)
		}
	})
}

// Goal: Shutdown does not return while a backend call is under way, even when
// its context has ended: the caller is about to unmap the memory.
func TestShutdownWaitsForBackend(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		leave := make(chan struct{})
		b := &nbdtest.Faulty{Backend: nbdtest.NewMemory(mib), Fault: func(nbdtest.Op, int64, int64) error {
			<-leave
			return nil
		}}
		s := newServer(t, full(b, mib))
		c := pipe(s)
		if _, err := c.Open(""); err != nil {
			t.Fatal(err)
		}
		c.Send(nbdtest.Command(nbd.NBD_CMD_FLUSH, 1, 0, 0))
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		over := make(chan error, 1)
		go func() { over <- s.Shutdown(ctx) }()
		time.Sleep(time.Minute)
		select {
		case err := <-over:
			t.Errorf("Shutdown returned: %v", err)
		default:
		}
		close(leave)
		if err := <-over; !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
		<-c.over
	})
}

// Goal: options that come during Shutdown are answered as the document wants.
func TestShutdownOptions(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	in := be.AppendUint32(nil, bothFlags)
	in = append(in, nbdtest.Option(nbd.NBD_OPT_LIST, nil)...)
	in = append(in, nbdtest.Option(nbd.NBD_OPT_GO, nbdtest.InfoData(""))...)
	in = append(in, nbdtest.Option(nbd.NBD_OPT_ABORT, nil)...)
	// The end of ctx interrupts from another goroutine, and a Script answers
	// its reads all the same: so wait for it before the options come.
	interrupted := &gated{Script: nbdtest.Script{In: in, First: 4}, gate: make(chan struct{})}
	newServer(t, full(nbdtest.NewMemory(mib), mib)).ServeConn(ctx, interrupted)
	c := &nbdtest.Client{Conn: &nbdtest.Script{In: interrupted.Out.Bytes()}}
	if _, err := c.Greet(0); err != nil {
		t.Fatal(err)
	}
	for _, want := range []uint32{nbd.NBD_REP_ERR_SHUTDOWN, nbd.NBD_REP_ERR_SHUTDOWN, nbd.NBD_REP_ACK} {
		if r, err := c.RecvOption(); err != nil || r.Type != want {
			t.Errorf("reply %#x, %v, want %#x", r.Type, err, want)
		}
	}
}

// gated is a Script that gives nothing until it is interrupted.
type gated struct {
	nbdtest.Script
	gate chan struct{}
}

func (g *gated) SetReadDeadline(t time.Time) error {
	if !t.IsZero() && t.Before(time.Now()) {
		close(g.gate)
	}
	return nil
}
func (g *gated) Read(p []byte) (int, error) { <-g.gate; return g.Script.Read(p) }

// Goal: Serve takes clients from a listener, ends them not with ctx but with
// Shutdown, and closes the listener.
func TestServe(t *testing.T) {
	s := newServer(t, full(nbdtest.NewMemory(mib), mib))
	l, err := net.Listen("unix", t.TempDir()+"/s")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	over := make(chan error, 1)
	go func() { over <- s.Serve(ctx, l) }()
	c, info, err := nbdtest.Dial("unix", l.Addr().String(), "")
	if err != nil || info.Size != mib {
		t.Fatalf("%+v, %v", info, err)
	}
	defer c.Close()
	cancel()
	if err := <-over; err != nil {
		t.Error(err)
	}
	if _, err := net.Dial("unix", l.Addr().String()); err == nil {
		t.Error("the listener is open")
	}
	if r, err := c.Do(nbdtest.Read(1, 0, 1)); err != nil || r.Err != 0 {
		t.Errorf("the end of ctx ended a connection: %v, %v", r.Err, err)
	}
	if err := s.Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
	if _, err := c.Conn.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("after Shutdown: %v", err)
	}
}

// Goal: errors of Accept neither end Serve nor let it spin, are logged once,
// and a connection that can be accepted again is served.
func TestAcceptErrors(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		s, err := nbd.NewServer([]nbd.Export{full(nbdtest.NewMemory(mib), mib)}, nbd.Options{Log: zerolog.New(zerolog.SyncWriter(&log))})
		if err != nil {
			t.Fatal(err)
		}
		var calls atomic.Int64
		client, server := net.Pipe()
		l := failing{func() (net.Conn, error) {
			if calls.Add(1) == 10 {
				return server, nil
			}
			return nil, &net.OpError{Op: "accept", Err: syscall.EMFILE}
		}}
		over := make(chan error, 1)
		go func() { over <- s.Serve(t.Context(), l) }()
		c := &nbdtest.Client{Conn: client}
		if _, err := c.Open(""); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		if got := strings.Count(log.String(), "cannot accept"); got != 2 {
			t.Errorf("%d log lines for two runs of errors:\n%s", got, &log)
		}
		if n := calls.Load(); n > 90 {
			t.Errorf("%d calls of Accept in a minute", n)
		}
		client.Close()
		if err := s.Shutdown(t.Context()); err != nil {
			t.Error(err)
		}
		if err := <-over; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
}

// Goal: a listener that someone else closed is an error of Serve.
func TestAcceptClosed(t *testing.T) {
	s := newServer(t)
	err := s.Serve(t.Context(), failing{func() (net.Conn, error) { return nil, net.ErrClosed }})
	if !errors.Is(err, net.ErrClosed) {
		t.Errorf("Serve: %v", err)
	}
}

// failing is a listener whose Accept is a function.
type failing struct{ accept func() (net.Conn, error) }

func (l failing) Accept() (net.Conn, error) { return l.accept() }
func (failing) Close() error                { return nil }
func (failing) Addr() net.Addr              { return &net.UnixAddr{Name: "failing", Net: "unix"} }

// Goal: one client that does not read holds up no other.
func TestSlowClient(t *testing.T) {
	s := newServer(t, full(nbdtest.NewMemory(32*mib), 32*mib))
	slow, quick := open(t, s), open(t, s)
	slow.Send(nbdtest.Read(1, 0, 32*mib))
	io.ReadFull(slow, make([]byte, 16)) // the reply has begun
	for i := range 100 {
		quick.want(0, nbdtest.Write(uint64(i), 0, make([]byte, 4096)), "write")
	}
	if _, err := io.ReadFull(slow, make([]byte, 32*mib)); err != nil {
		t.Error(err)
	}
}

// Goal: the counters count, by export, while connections live and after.
func TestStats(t *testing.T) {
	b := nbdtest.NewMemory(mib)
	s := newServer(t, full(b, mib), nbd.Export{Name: "ro", Size: mib, ReadOnly: true, Backend: b})
	run(t, s, &nbdtest.Script{In: be.AppendUint32(nil, bothFlags)}) // no further than the greeting
	in, _ := mixed()
	run(t, s, &nbdtest.Script{In: in})

	ro := connect(t, s)
	if _, err := ro.Open("ro"); err != nil {
		t.Fatal(err)
	}
	ro.want(nbd.NBD_EPERM, nbdtest.Write(1, 0, []byte("x")), "write")
	ro.want(0, nbdtest.Read(2, 0, 100), "read")

	st := s.Stats()
	if st.Connections != 1 || st.Accepted != 3 || st.Negotiated != 2 || len(st.Exports) != 2 {
		t.Errorf("%+v", st)
	}
	rw := st.Exports[0]
	if want := [nbd.Commands]uint64{3, 5, 1, 1, 1, 0, 0, 0, 1}; rw.Requests != want {
		t.Errorf("requests %v, want %v", rw.Requests, want)
	}
	if want := [nbd.Commands]uint64{153, 150, 0, 0, 10}; rw.Bytes != want {
		t.Errorf("bytes %v, want %v", rw.Bytes, want)
	}
	if rw.Errors[nbd.NBD_EINVAL] != 2 || rw.Errors[nbd.NBD_ENOSPC] != 1 || rw.Errors[nbd.NBD_EIO] != 0 {
		t.Errorf("errors %v", rw.Errors)
	}
	if rw.Groups != 2 || !slices.Equal(rw.GroupSizes[:3], []uint64{1, 1, 0}) {
		t.Errorf("%d groups, of sizes %v", rw.Groups, rw.GroupSizes)
	}
	if e := st.Exports[1]; e.Name != "ro" || e.Connections != 1 || e.Errors[nbd.NBD_EPERM] != 1 || e.Bytes[nbd.NBD_CMD_READ] != 100 {
		t.Errorf("%+v", e)
	}
	ro.Disconnect()
	ro.end()
	if e := s.Stats().Exports[1]; e.Connections != 0 || e.Bytes[nbd.NBD_CMD_READ] != 100 || e.Requests[nbd.NBD_CMD_DISC] != 1 {
		t.Errorf("after the end: %+v", e)
	}
	names := map[string]bool{}
	for i := range nbd.Commands {
		names[nbd.CommandName(i)] = true
	}
	if len(names) != nbd.Commands {
		t.Errorf("command names %v", names)
	}
}
