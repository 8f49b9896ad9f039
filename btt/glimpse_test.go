package btt

import (
	"errors"
	"syscall"
	"testing"

	"github.com/bttnbd/bttnbd/layout"
	"github.com/bttnbd/bttnbd/pmem"
)

// Goal: who reads blocks with data stores nothing, so that readers never wait for one
// another; and each block is counted once, in a request that has to go both ways too.
func TestReadsAreNotAnnounced(t *testing.T) {
	d, r := newDevice(t, layout.UEFI, 1)
	a := d.arenas[0]
	mustWrite(t, d, 0, fill(1, 3*testSector))
	p := make([]byte, 3*testSector)
	read := func(blocks int) {
		t.Helper()
		if n, err := d.ReadAt(p[:blocks*testSector], 0); err != nil || n != blocks*testSector {
			t.Fatalf("read of %d blocks: %d, %v", blocks, n, err)
		}
	}
	used := func() (any uint64) {
		for i := range a.rtt.used {
			any |= a.rtt.used[i].Load()
		}
		return any
	}
	read(3)
	read(1)
	if used() != 0 && r.ReadRacing(p[:8], 0) {
		t.Error("a reader has announced itself without need")
	}
	a.rtt.used[0].Store(0)
	if err := d.SetError(2); err != nil {
		t.Fatal(err)
	}
	if n, err := d.ReadAt(p, 0); n != 2*testSector || !errors.Is(err, syscall.EIO) {
		t.Errorf("a bad block behind two good ones: %d, %v", n, err)
	}
	if n := d.Stats().BlocksRead; n != 3+1+2 && r.ReadRacing(p[:8], 0) {
		t.Errorf("%d blocks read, want 6", n)
	}
}

// Goal: a swing that a reader has not seen makes it look again, also when the entry is
// the old one by then. Method: while the reader is in the middle of its copy the block
// is written twice with one lane, so that the second write gets the block back that the
// reader copies.
func TestReaderSeesThatBlockCameBack(t *testing.T) {
	buf := make([]byte, testArena)
	m := &meddler{}
	r := pmem.NewTraced(buf, m)
	p := testParams(layout.UEFI)
	if err := Format(r, p); err != nil {
		t.Fatal(err)
	}
	d := reopen(t, r)
	mustWrite(t, d, 0, fill(1, testSector))
	before := d.arenas[0].entry(0)
	halves := 0
	m.racing = func() {
		if halves++; halves == 2 {
			mustWrite(t, d, 0, fill(2, testSector))
			mustWrite(t, d, 0, fill(3, testSector))
			if d.arenas[0].entry(0) != before {
				t.Error("the block has not come back: this shows nothing")
			}
		}
	}
	got := make([]byte, testSector)
	if _, err := d.ReadAt(got, 0); err != nil {
		t.Fatal(err)
	}
	for i, b := range got {
		if b != 3 {
			t.Fatalf("byte %d is of write %d, want all of write 3", i, b)
		}
	}
}

// meddler is called before each half of a racing read.
type meddler struct{ racing func() }

func (m *meddler) Load(off, n uint64)        {}
func (m *meddler) Store(off, n, v uint64)    {}
func (m *meddler) Bulk(off uint64, p []byte) {}
func (m *meddler) BulkZero(off, n uint64)    {}
func (m *meddler) Flush(off, n uint64)       {}
func (m *meddler) Drain() error              { return nil }
func (m *meddler) Await(func() bool)         {}
func (m *meddler) Hint() uint32              { return 0 }
func (m *meddler) Racing(off, n uint64) bool {
	if m.racing != nil {
		m.racing()
	}
	return true
}

// Goal: a fault while a block may have become another's says nothing about ours; one
// that is there when the block is announced does.
func TestFaultOfRacingRead(t *testing.T) {
	d, _, m := newBadMemory(t)
	m.racing, m.once = true, true
	mustWrite(t, d, 0, fill(1, testSector))
	p := make([]byte, testSector)
	m.spoil(d.arenas[0], ownedBlock(d.arenas[0], 0))
	if _, err := d.ReadAt(p, 0); err != nil || p[0] != 1 {
		t.Errorf("a fault that passed: %v, byte %d", err, p[0])
	}
	m.once = false
	m.spoil(d.arenas[0], ownedBlock(d.arenas[0], 0))
	if _, err := d.ReadAt(p, 0); !errors.Is(err, syscall.EIO) {
		t.Errorf("bad memory: %v", err)
	}
}
