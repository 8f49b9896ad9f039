package pmem

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// Goal: a drain syncs one hull of all that was flushed since the last one, rounded
// outward to pages, and a drain with nothing to do does nothing.
func TestDrainSyncsHull(t *testing.T) {
	var synced [][2]uint64
	c := newCommitter("f", func(lo, hi uint64) error {
		synced = append(synced, [2]uint64{lo, hi})
		return nil
	})
	drain := func() {
		if err := c.drain(); err != nil {
			t.Fatal(err)
		}
	}
	drain()
	c.note(5000, 5000) // an empty flush
	drain()
	c.note(5000, 5008)
	c.note(100, 108)
	c.note(300, 400)
	drain()
	drain()
	c.note(0, 1)
	drain()
	want := [][2]uint64{{100, 5008}, {0, 1}}
	if len(synced) != 2 || synced[0] != want[0] || synced[1] != want[1] {
		t.Errorf("synced %v, want %v", synced, want)
	}
	if want := (Stats{Drains: 5, Rounds: 2, Bytes: 4909}); c.stats != want {
		t.Errorf("stats %+v, want %+v", c.stats, want)
	}
}

// Goal: every operation that stores durably through a real file takes part in the
// rounds, and only those.
func TestMsyncNotesEveryOperation(t *testing.T) {
	page := uint64(os.Getpagesize())
	r := create(t, filepath.Join(diskDir(t), "f"), 4*page, Options{})
	for i, op := range []func(){
		func() { r.Write(page+8, make([]byte, 16)) },
		func() { r.Zero(page+8, 16) },
		func() { r.Store64(3*page+8, 1); r.Flush(3*page+8, 16) },
	} {
		before := r.Stats()
		op()
		if err := r.Drain(); err != nil {
			t.Fatal(err)
		}
		if got := r.Stats(); got.Rounds != before.Rounds+1 || got.Bytes != before.Bytes+16 {
			t.Errorf("operation %d: %+v after %+v", i, got, before)
		}
	}
	before := r.Stats().Rounds
	r.Store64(0, 1)
	r.Load64(0)
	if err := r.Drain(); err != nil || r.Stats().Rounds != before {
		t.Errorf("a drain without a flush ran a round (%v)", err)
	}
	if s := NewHeap(8).Stats(); s != (Stats{}) {
		t.Errorf("heap stats %+v", s)
	}
}

// Goal: drains that arrive while a round runs share the next one, exactly one.
func TestGroupCommitShares(t *testing.T) {
	const waiters = 16
	running, proceed := make(chan struct{}), make(chan struct{})
	c := newCommitter("f", func(lo, hi uint64) error {
		running <- struct{}{}
		<-proceed
		return nil
	})
	var wg sync.WaitGroup
	commit := func(i uint64) {
		wg.Go(func() {
			c.note(i*8, i*8+8)
			if err := c.drain(); err != nil {
				t.Error(err)
			}
		})
	}
	commit(0)
	<-running
	for i := range uint64(waiters) {
		commit(1 + i)
	}
	for drains := uint64(0); drains < 1+waiters; runtime.Gosched() {
		c.mu.Lock()
		drains = c.stats.Drains // counted and then waiting: both under one lock
		c.mu.Unlock()
	}
	proceed <- struct{}{}
	<-running
	proceed <- struct{}{}
	wg.Wait()
	if want := (Stats{Drains: 17, Rounds: 2, Bytes: 17 * 8}); c.stats != want {
		t.Errorf("stats %+v, want %+v", c.stats, want)
	}
}

// Goal: when drain returns, a round that began after the caller's flush has ended
// and covered its range, whatever others do meanwhile. A round here copies what
// was stored in its range at its start to what counts as durable at its end.
func TestDrainCoversOwnFlush(t *testing.T) {
	const workers, rounds = 16, 300
	var stored, durable [workers]atomic.Uint64
	c := newCommitter("f", func(lo, hi uint64) error {
		var seen [workers]uint64
		for i := lo; i < hi; i++ {
			seen[i] = stored[i].Load()
		}
		runtime.Gosched()
		for i := lo; i < hi; i++ {
			durable[i].Store(seen[i])
		}
		return nil
	})
	var wg sync.WaitGroup
	for w := range uint64(workers) {
		wg.Go(func() {
			for n := uint64(1); n <= rounds; n++ {
				stored[w].Store(n)
				c.note(w, w+1)
				if err := c.drain(); err != nil {
					t.Error(err)
				}
				if got := durable[w].Load(); got < n {
					t.Errorf("worker %d: value %d durable after the drain of %d", w, got, n)
					return
				}
			}
		})
	}
	wg.Wait()
	if c.stats.Drains != workers*rounds || c.stats.Rounds >= c.stats.Drains {
		t.Errorf("nothing was shared: %+v", c.stats)
	}
}

// Goal: on a real file, many goroutines need fewer rounds than drains.
func TestGroupCommitOnFile(t *testing.T) {
	const workers, each = 8, 20
	r := create(t, filepath.Join(diskDir(t), "f"), workers*65536, Options{})
	var wg sync.WaitGroup
	for w := range uint64(workers) {
		wg.Go(func() {
			for n := range uint64(each) {
				r.Store64(w*65536+n*8, n)
				if err := r.Persist(w*65536+n*8, 8); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	s := r.Stats()
	t.Logf("%d drains shared %d rounds", s.Drains, s.Rounds)
	if s.Drains != workers*each || s.Rounds >= s.Drains {
		t.Errorf("nothing was shared: %+v", s)
	}
}

// Goal: an error of msync reaches everyone who waits for its round and every later
// drain, although a later msync would succeed.
func TestMsyncErrorIsSticky(t *testing.T) {
	fail := true
	c := newCommitter("/a/file", func(lo, hi uint64) error {
		if fail {
			fail = false
			return unix.EIO
		}
		return nil
	})
	c.note(0, 8)
	for range 3 {
		err := c.drain()
		if !errors.Is(err, syscall.EIO) || !strings.HasPrefix(err.Error(), "/a/file: msync of bytes 0 to 8: ") {
			t.Errorf("drain = %v", err)
		}
		c.note(8, 16)
	}
	if c.stats.Rounds != 1 {
		t.Errorf("%d rounds after an error, want none after the first", c.stats.Rounds-1)
	}
}

// Goal: after a drain no page that was stored to is dirty any more, wherever in a
// page the stores began and ended: a range rounded inward loses a page. Method: the
// kernel's own count of dirty pages of the mapping.
func TestDrainCleansPages(t *testing.T) {
	page := uint64(os.Getpagesize())
	path := filepath.Join(diskDir(t), "f")
	r := create(t, path, 8*page, Options{})
	if r.Durability() != Msync {
		t.Skipf("%s is not behind the page cache", path)
	}
	dirty := func() (kB int) {
		smaps, err := os.ReadFile("/proc/self/smaps")
		if err != nil {
			t.Skipf("this kernel does not tell which pages are dirty: %v", err)
		}
		_, of, found := strings.Cut(string(smaps), path)
		if !found {
			t.Fatal("the mapping is not in smaps")
		}
		for _, kind := range []string{"Shared_Dirty:", "Private_Dirty:"} {
			_, rest, _ := strings.Cut(of, kind)
			n, err := strconv.Atoi(strings.Fields(rest)[0])
			if err != nil {
				t.Fatal(err)
			}
			kB += n
		}
		return kB
	}
	seen := false
	for _, c := range [][2]uint64{{8, 8}, {page - 8, 8}, {page - 8, 16}, {2 * page, page}, {3*page + 8, 2*page - 16}, {3*page - 8, 3*page + 16}} {
		r.Write(c[0], make([]byte, c[1]))
		seen = seen || dirty() > 0
		if err := r.Drain(); err != nil {
			t.Fatal(err)
		}
		if kB := dirty(); kB > 0 {
			t.Errorf("%d kB are dirty after a drain of %d bytes at %d", kB, c[1], c[0])
		}
	}
	if !seen {
		t.Skip("this filesystem shows no page as dirty")
	}
}
