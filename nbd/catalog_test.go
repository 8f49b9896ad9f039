package nbd_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/bttnbd/bttnbd/nbd"
	"github.com/bttnbd/bttnbd/nbd/nbdtest"
)

// named is full under another name.
func named(name string, b nbd.Backend, size uint64) nbd.Export {
	e := full(b, size)
	e.Name = name
	return e
}

// enter is connect and GO with the named export.
func enter(t testing.TB, s *nbd.Server, name string) (*session, nbdtest.Info) {
	t.Helper()
	c := connect(t, s)
	info, err := c.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	return c, info
}

// Goal: a change of the exports adds, removes, describes and enlarges; clients of
// those that stay never notice, and may use what was added.
func TestSetExports(t *testing.T) {
	a, b := nbdtest.NewMemory(2*mib), nbdtest.NewMemory(mib)
	s := newServer(t, named("a", a, mib), named("b", b, mib))
	onA, _ := enter(t, s, "a")
	onB, _ := enter(t, s, "b")
	atB := connect(t, s)
	if _, err := atB.Greet(bothFlags); err != nil {
		t.Fatal(err)
	}
	onA.want(nbd.NBD_ENOSPC, nbdtest.Write(1, mib, []byte("new")), "past the old end")

	grown, c := named("a", a, 2*mib), named("c", nbdtest.NewMemory(512), 512)
	grown.Description = "larger"
	if err := s.SetExports(t.Context(), []nbd.Export{c, grown}); err != nil {
		t.Fatal(err)
	}
	onA.want(0, nbdtest.Write(2, mib, []byte("new")), "in what was added")
	onB.closed("the export was removed")
	if _, err := atB.Go("b"); err == nil {
		t.Error("b is still there for a client that was connected")
	}
	if _, err := atB.Go("c"); err != nil {
		t.Error(err)
	}
	if _, info := enter(t, s, "a"); info.Size != 2*mib || info.Description != "larger" {
		t.Errorf("a new client is told %+v", info)
	}
	st := s.Stats()
	if len(st.Exports) != 2 || st.Exports[0].Name != "a" || st.Exports[0].Requests[nbd.NBD_CMD_WRITE] != 2 || st.Exports[0].Connections != 2 {
		t.Errorf("%+v", st)
	}
}

// Goal: another backend, other promises or a smaller size end the clients of an
// export; a client that comes back is served; the counters go on.
func TestSetExportsReplaces(t *testing.T) {
	m := nbdtest.NewMemory(mib)
	smaller, readOnly, other := full(m, 4096), full(m, mib), full(nbdtest.NewMemory(mib), mib)
	readOnly.ReadOnly = true
	for name, next := range map[string]nbd.Export{"smaller": smaller, "read-only": readOnly, "other": other} {
		s := newServer(t, full(m, mib))
		c := open(t, s)
		c.inStep("the handshake")
		if err := s.SetExports(t.Context(), []nbd.Export{next}); err != nil {
			t.Fatal(err)
		}
		c.closed(name)
		if _, info := enter(t, s, ""); info.Size != next.Size {
			t.Errorf("%s: a new client is told %+v", name, info)
		}
		if n := s.Stats().Exports[0].Requests[nbd.NBD_CMD_FLUSH]; n != 1 {
			t.Errorf("%s: %d flushes counted, want 1", name, n)
		}
	}
}

// Goal: SetExports returns when the backend is left alone, and not before; what
// was in flight is answered.
func TestSetExportsWaits(t *testing.T) {
	entered, leave := make(chan struct{}), make(chan struct{})
	b := &nbdtest.Faulty{Backend: nbdtest.NewMemory(mib), Fault: func(op nbdtest.Op, _, _ int64) error {
		close(entered)
		<-leave
		return nil
	}}
	s := newServer(t, full(b, mib))
	c := open(t, s)
	c.Send(nbdtest.Command(nbd.NBD_CMD_FLUSH, 1, 0, 0))
	<-entered
	over := make(chan error, 1)
	go func() { over <- s.SetExports(context.Background(), nil) }()
	until(t, "the export has gone", func() bool { return len(s.Stats().Exports) == 0 })
	select {
	case err := <-over:
		over <- err
		t.Error("SetExports returned while the backend was at work")
	default:
	}
	close(leave)
	if r, err := c.Recv(0); err != nil || r.Err != 0 {
		t.Errorf("%v, %v", r.Err, err)
	}
	if err := <-over; err != nil {
		t.Error(err)
	}
	if err := c.end(); err != nil {
		t.Error(err)
	}
}

// Goal: a client that takes no answers does not hold a removed export for longer
// than the context says.
func TestSetExportsCutsOff(t *testing.T) {
	s := newServer(t, full(nbdtest.NewMemory(32*mib), 32*mib))
	c := open(t, s)
	c.Send(nbdtest.Read(1, 0, 32*mib))
	io.ReadFull(c, make([]byte, mib))
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if err := s.SetExports(ctx, nil); err != nil {
		t.Error(err)
	}
	c.end()
}

// Goal: what is wrong is told, all of it, and changes nothing.
func TestSetExportsRefuses(t *testing.T) {
	s := newServer(t, full(nbdtest.NewMemory(mib), mib))
	c := open(t, s)
	bad := named("bad", nbdtest.NewMemory(mib), mib)
	bad.MinBlock = 3
	err := s.SetExports(t.Context(), []nbd.Export{bad, named("x", nil, 1)})
	if err == nil || !strings.Contains(err.Error(), `"bad"`) || !strings.Contains(err.Error(), `"x"`) {
		t.Errorf("error %v", err)
	}
	c.inStep("a failed change")
	open(t, s)
	if err := s.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := s.SetExports(t.Context(), nil); err == nil {
		t.Error("exports changed after Shutdown")
	}
}

// Goal: exports come and go, many times, beside clients of one that stays and of
// others that go, and no backend is called after it was given up.
func TestSetExportsUnderLoad(t *testing.T) {
	stays := nbdtest.NewMemory(mib)
	s := newServer(t, named("stays", stays, mib))
	c, _ := enter(t, s, "stays")
	stop, over := make(chan struct{}), make(chan error, 3)
	for range 2 {
		go func() {
			for {
				select {
				case <-stop:
					over <- nil
					return
				default:
				}
				c := connect(t, s)
				if _, err := c.Open("goes"); err == nil {
					for c.Send(nbdtest.Write(1, 0, pattern(1, 9000))) == nil {
						if r, err := c.Recv(0); err != nil || r.Err != 0 {
							break
						}
					}
				}
				c.Close()
			}
		}()
	}
	go func() {
		for i := 0; ; i++ {
			select {
			case <-stop:
				over <- nil
				return
			default:
			}
			p := pattern(i, 4096)
			w, err := c.Do(nbdtest.Write(1, 4096, p))
			r, err2 := c.Do(nbdtest.Read(2, 4096, 4096))
			if err != nil || err2 != nil || w.Err != 0 || r.Err != 0 || !bytes.Equal(r.Data, p) {
				over <- errors.Join(errors.New("the client of the export that stays is disturbed"), err, err2)
				return
			}
		}
	}()
	rounds := 300
	if testing.Short() {
		rounds = 50
	}
	for range rounds {
		closed := make(chan struct{})
		b := &nbdtest.Faulty{Backend: nbdtest.NewMemory(mib), Fault: func(op nbdtest.Op, _, _ int64) error {
			select {
			case <-closed:
				t.Error("a backend is called that was given up")
			default:
			}
			return nil
		}}
		for _, exports := range [][]nbd.Export{{named("stays", stays, mib), named("goes", b, mib)}, {named("stays", stays, mib)}} {
			if err := s.SetExports(t.Context(), exports); err != nil {
				t.Fatal(err)
			}
		}
		close(closed)
	}
	close(stop)
	for range 3 {
		if err := <-over; err != nil {
			t.Error(err)
		}
	}
}
