package nbd_test

import (
	"context"
	"io"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/bttnbd/bttnbd/nbd"
	"github.com/bttnbd/bttnbd/nbd/nbdtest"
)

// slow takes a while, of the fake time of a bubble, for everything.
type slow struct{ ram }

func (s slow) ReadAt(p []byte, off int64) (int, error) {
	<-time.After(time.Millisecond)
	return s.ram.ReadAt(p, off)
}

func (s slow) WriteGroup(offs []int64, data [][]byte, errs []error) {
	<-time.After(3 * time.Millisecond)
	s.ram.WriteGroup(offs, data, errs)
}

func (slow) Flush() error { <-time.After(5 * time.Millisecond); return nil }

// spoken is a connection whose client sends what each step has, and thinks for an
// hour before the next one.
type spoken struct {
	nbdtest.Script
	steps [][]byte
}

func (s *spoken) Read(p []byte) (int, error) {
	for len(s.In) == 0 {
		if len(s.steps) == 0 {
			return 0, io.EOF
		}
		s.In, s.steps = s.steps[0], s.steps[1:]
		<-time.After(time.Hour)
	}
	return s.Script.Read(p)
}

// Write is that of a client that takes its replies late.
func (s *spoken) Write(p []byte) (int, error) { <-time.After(time.Minute); return len(p), nil }

// latencies plays the steps to a server and returns what it has measured.
func latencies(t *testing.T, o nbd.Options, steps ...[]byte) nbd.Counters {
	t.Helper()
	s := newServerWith(t, o, full(slow{make(ram, 16*mib)}, 16*mib))
	s.ServeConn(context.Background(), &spoken{steps: append([][]byte{hello()}, steps...)})
	return s.Stats().Exports[0].Counters
}

// Goal: every request counts once, with the time from its arrival until its reply and
// those of all that arrived with it could be sent. Neither a client that thinks nor
// one that does not read adds to it.
func TestLatency(t *testing.T) {
	const ms = time.Millisecond
	read, write := nbdtest.Read(1, 0, 4096), nbdtest.Write(1, 0, make([]byte, 4096))
	flush := nbdtest.Command(nbd.NBD_CMD_FLUSH, 1, 0, 0)
	unknown := nbdtest.Command(99, 1, 0, 0)
	for _, c := range []struct {
		name  string
		steps [][]byte
		want  map[int][]time.Duration // by command
	}{
		{"one", [][]byte{requests(read)}, map[int][]time.Duration{nbd.NBD_CMD_READ: {ms}}},
		{"a batch", [][]byte{requests(read, read, write, write, flush)}, map[int][]time.Duration{
			nbd.NBD_CMD_READ: {10 * ms, 10 * ms}, nbd.NBD_CMD_WRITE: {10 * ms, 10 * ms}, nbd.NBD_CMD_FLUSH: {10 * ms}}},
		{"two batches", [][]byte{requests(read, read), requests(write)}, map[int][]time.Duration{
			nbd.NBD_CMD_READ: {2 * ms, 2 * ms}, nbd.NBD_CMD_WRITE: {3 * ms}}},
		{"an error", [][]byte{requests(read, unknown)}, map[int][]time.Duration{
			nbd.NBD_CMD_READ: {ms}, nbd.Commands - 1: {ms}}},
		{"a payload that comes late", [][]byte{requests(read, write)[:100], requests(read, write)[100:]}, map[int][]time.Duration{
			nbd.NBD_CMD_READ: {ms}, nbd.NBD_CMD_WRITE: {3 * ms}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				got := latencies(t, nbd.Options{Latency: true}, c.steps...)
				for cmd, l := range got.Latency {
					if want := measured(c.want[cmd]); l != want {
						t.Errorf("%s: %v, want %v", nbd.CommandName(cmd), l, want)
					}
				}
			})
		})
	}
}

// measured is what comes of requests that took so long.
func measured(times []time.Duration) (l nbd.Latency) {
	bounds := nbd.LatencyBounds()
	for _, d := range times {
		i := 0
		for i < len(bounds) && d > bounds[i] {
			i++
		}
		l.Buckets[i]++
		l.Sum += d
	}
	return l
}

// Goal: bounds rise by less than two thirds, from 1 µs to more than 10 s, and nothing
// is longer than the last bucket.
func TestLatencyBounds(t *testing.T) {
	bounds := nbd.LatencyBounds()
	if len(bounds) != nbd.LatencyBuckets-1 || bounds[0] != time.Microsecond || bounds[len(bounds)-1] < 10*time.Second {
		t.Errorf("%d bounds from %v to %v", len(bounds), bounds[0], bounds[len(bounds)-1])
	}
	for i, b := range bounds[1:] {
		if b <= bounds[i] || 3*b > 5*bounds[i] {
			t.Errorf("%v follows %v", b, bounds[i])
		}
	}
}

// Goal: nobody looks at the clock whom nobody has asked to.
func TestLatencyNotAsked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		got := latencies(t, nbd.Options{}, requests(nbdtest.Read(1, 0, 4096)))
		if got.Requests[nbd.NBD_CMD_READ] != 1 || got.Latency != ([nbd.Commands]nbd.Latency{}) {
			t.Errorf("%d reads, measured: %v", got.Requests[nbd.NBD_CMD_READ], got.Latency)
		}
	})
}

// Goal: Clients tells of a connection in its handshake and of one in transmission, over
// TLS, with what it has done; and whoever asks disturbs nobody.
func TestClients(t *testing.T) {
	serverTLS, clientTLS := configs(t)
	s := newServerWith(t, nbd.Options{TLS: serverTLS, Latency: true}, full(make(ram, mib), mib))
	began := time.Now()
	waiting := connect(t, s)
	if _, err := waiting.Greet(bothFlags); err != nil {
		t.Fatal(err)
	}
	c := connect(t, s)
	if _, err := c.Greet(bothFlags); err != nil {
		t.Fatal(err)
	}
	if err := c.StartTLS(clientTLS); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Go(""); err != nil {
		t.Fatal(err)
	}
	var asking sync.WaitGroup
	stop := make(chan struct{})
	asking.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				s.Clients()
				s.Stats()
			}
		}
	})
	for range 100 {
		c.want(0, nbdtest.Read(1, 0, 512), "read")
	}
	c.want(nbd.NBD_EINVAL, nbdtest.Read(1, 2*mib, 512), "read beyond the end")
	close(stop)
	asking.Wait()

	all := s.Clients()
	if len(all) != 2 {
		t.Fatalf("%d clients: %+v", len(all), all)
	}
	if first := all[0]; first.Chosen || first.Requests != 0 || first.Peer == "" {
		t.Errorf("in its handshake: %+v", first)
	}
	got := all[1]
	if !got.Chosen || got.TLS != "TLS 1.3" || got.Requests != 101 || got.Bytes != 100*512 || got.Errors != 1 {
		t.Errorf("in transmission: %+v", got)
	}
	if got.Since.Before(began) || got.Since.After(time.Now()) || got.ID <= all[0].ID {
		t.Errorf("%v, after %v", got, all[0])
	}
}

// Goal: no request allocates, also where it is measured.
func TestNoAllocationMeasured(t *testing.T) {
	if raceEnabled {
		t.Skip("sync.Pool drops buffers at random under the race detector")
	}
	noAllocation(t, newServerWith(t, nbd.Options{Latency: true}, full(make(ram, 16*mib), 16*mib)))
}

// BenchmarkLatency is what measuring costs a batch: BenchmarkTransmission with and
// without.
func BenchmarkLatency(b *testing.B) {
	for name, latency := range map[string]bool{"off": false, "on": true} {
		s := newServerWith(b, nbd.Options{WriteTimeout: -1, Latency: latency}, full(make(ram, 16*mib), 16*mib))
		for _, bt := range batches()[:4] {
			b.Run(name+"/"+bt.name, func(b *testing.B) {
				b.ReportAllocs()
				s.ServeConn(context.Background(), &looped{rest: greeting(bt.form), batch: bt.send, n: b.N})
			})
		}
	}
}
