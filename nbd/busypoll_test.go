package nbd

import (
	"os"
	"path/filepath"
	"testing"
	"time"
)

const µs = time.Microsecond

// nobody is a machine on which nobody else runs.
func nobody() *crowd { return &crowd{limit: 256} }

// newPollers returns n connections of a server with two processors.
func newPollers(n int) (all *busyPoll, pollers []poller) {
	all = &busyPoll{time: 50 * µs, limit: 1, crowd: nobody()}
	for range n {
		pollers = append(pollers, poller{all: all})
	}
	return all, pollers
}

// wait is a wait that begins at now and takes d. It returns for how long it polled.
func (p *poller) wait(now, d time.Duration) (polled time.Duration) {
	p.begin(now)
	for polled < d && p.again(now+polled) {
		polled += µs
	}
	p.end(now + d)
	return polled
}

// Goal: a connection polls once its client has been quick four times in a row, for as
// long as it is, and no longer than it should; and the more often that is in vain, the
// longer it takes until it does so again.
func TestPollsForQuickClients(t *testing.T) {
	_, ps := newPollers(1)
	now := time.Second
	for i, c := range []struct {
		times        int
		takes, polls time.Duration
	}{
		{2, 99 * µs, 0}, {1, 101 * µs, 0}, // a long one: begin again
		{3, 10 * µs, 0}, {1, 100 * µs, 0},
		{1, 10 * µs, 10 * µs}, {1, 49 * µs, 49 * µs},
		{1, 51 * µs, 50 * µs}, {3, 10 * µs, 0}, // in vain, which was short as well
		{1, 51 * µs, 50 * µs}, {3, 10 * µs, 0},
		{1, 51 * µs, 50 * µs}, {3, 10 * µs, 0},
		{1, 51 * µs, 50 * µs}, {7, 10 * µs, 0}, // too often
		{1, 51 * µs, 50 * µs}, {15, 10 * µs, 0},
		{2, 10 * µs, 10 * µs}, // no longer
		{1, 51 * µs, 50 * µs}, {3, 10 * µs, 0},
		{1, 200 * µs, 50 * µs}, {4, 10 * µs, 0},
		{1, 10 * µs, 10 * µs},
	} {
		for range c.times {
			now += time.Millisecond
			if got := ps[0].wait(now, c.takes); got != c.polls {
				t.Errorf("wait %d of %v: polled for %v, want %v", i, c.takes, got, c.polls)
			}
		}
	}
}

// Goal: nobody polls while more are keen than may, or others want the processors. Those
// who have gone, or are still there and idle, do not count.
func TestNobodyPollsInACrowd(t *testing.T) {
	all, ps := newPollers(2)
	now := time.Second
	each := func(want time.Duration, what string) {
		t.Helper()
		for i := range ps {
			now += time.Millisecond
			if got := ps[i].wait(now, 10*µs); got != want {
				t.Errorf("%s: connection %d polled for %v, want %v", what, i, got, want)
			}
		}
	}
	for range eager {
		each(0, "at first")
	}
	for range 20 { // until both are known to be keen
		for i := range ps {
			now += time.Millisecond
			ps[i].wait(now, 10*µs)
		}
	}
	for range 50 {
		each(0, "two where one may")
	}
	ps = ps[:1] // the other one says nothing more
	for range 19 {
		now += time.Millisecond
		ps[0].wait(now, 10*µs)
	}
	each(10*µs, "one")
	now += time.Second
	each(10*µs, "after a second without anybody")
	all.crowd.average.Store(257)
	each(0, "others run")
	all.crowd.average.Store(256)
	each(10*µs, "others are gone")
}

// Goal: threads that want to run are counted, one look every 10 ms, and a moment is not
// enough to count as a crowd.
func TestCrowd(t *testing.T) {
	name := filepath.Join(t.TempDir(), "loadavg")
	says := func(text string) {
		t.Helper()
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	says("0.35 0.21 0.17 5/104 2711\n")
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	c := &crowd{file: f, limit: 4 * 256}
	c.average.Store(256)
	looks := func(until bool) (n int) {
		for now := time.Duration(c.due.Load()); c.crowded() != until && n < 100; now += sampleTime {
			c.sample(now)
			c.sample(now + sampleTime - 1) // too early
			n++
		}
		return n
	}
	if n := looks(true); n != 11 { // 5−4×(7/8)^11 > 4
		t.Errorf("five threads for four processors were a crowd after %d looks, want 11", n)
	}
	says("0.35 0.21 0.17 1/104 2711\n")
	if n := looks(false); n != 1 {
		t.Errorf("one was none after %d looks, want 1", n)
	}
	for text, want := range map[string]int{"1 2 3 17/4 5": 17, "1 2 3 17": -1, "": -1, "1 2 3 x/4": -1} {
		if n, ok := runnable([]byte(text)); ok != (want >= 0) || ok && n != want {
			t.Errorf("%q: %d, %v", text, n, ok)
		}
	}
	says("no number here")
	if n := looks(true); n != 1 {
		t.Errorf("what nobody knows was a crowd after %d looks, want 1", n)
	}
	if m := machine(); m.file == nil || m.limit < 256 || m.average.Load() == 0 {
		t.Errorf("this machine: %+v", m)
	}
}

// Goal: who polls finds what comes without having slept, who does not sleeps; and a
// server without busy polling has nobody poll.
func TestPollingReads(t *testing.T) {
	for _, polls := range []bool{true, false} {
		client, server := SocketPair(t)
		send := func() { client.Write([]byte("x")) }
		to := &sleeper{wake: send}
		if polls {
			time.AfterFunc(20*time.Millisecond, send)
		}
		var w wire
		w.init(server)
		w.poll = poller{all: &busyPoll{time: time.Hour, limit: 1, crowd: nobody()}, keen: polls}
		if n, err := w.receive(to); n != 1 || err != nil {
			t.Fatalf("received %d, %v", n, err)
		}
		if to.slept == polls {
			t.Errorf("polls %v: slept %v", polls, to.slept)
		}
	}
	s, err := NewServer(nil, Options{BusyPoll: -1})
	if err != nil || s.busyPoll != nil {
		t.Errorf("switched off: %+v, %v", s.busyPoll, err)
	}
	if s, _ := NewServer(nil, Options{BusyPoll: time.Hour}); s.busyPoll != nil && s.busyPoll.time != MaxBusyPoll {
		t.Errorf("an hour: %v", s.busyPoll.time)
	}
}

// Goal: a client that has a processor gets the first replies of a batch of small reads
// while the server is at the rest; large ones are kept together, and so are all where
// there is no processor.
func TestEarlyReplies(t *testing.T) {
	const small, large = 4096, 64 << 10
	s, err := NewServer([]Export{{Size: 1 << 20, Backend: null{}}}, Options{})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		keen, structured  bool
		size, reads, kept int
	}{
		{true, false, small, 7, 7},
		{true, false, small, 8, 0},
		{true, false, small, 9, 1},
		{true, true, small, 8, 0},
		{true, false, large, 3, 3},
		{true, true, large, 3, 3},
		{false, false, small, 20, 20},
		{false, true, small, 20, 20},
	} {
		client, server := SocketPair(t)
		defer client.Close()
		conn := newConn(s, server)
		defer conn.close()
		conn.exp = s.catalog.Load().byName[""]
		conn.grow(true)
		conn.wire.poll = poller{all: &busyPoll{limit: 1, crowd: nobody()}, keen: c.keen}
		conn.agreed.structured = c.structured
		for range c.reads {
			if err := conn.read(&request{cmd: NBD_CMD_READ, length: uint64(c.size)}); err != nil {
				t.Fatal(err)
			}
		}
		if got := len(conn.out) / c.size; got != c.kept {
			t.Errorf("%+v: %d are not sent yet", c, got)
		}
	}
}

// sleeper is a read that has somebody send something when it would have to wait.
type sleeper struct {
	b     [1]byte
	slept bool
	wake  func()
}

func (s *sleeper) space() []byte { return s.b[:] }
func (s *sleeper) park()         { s.slept = true; s.wake() }
