package btt

import (
	"bytes"
	"errors"
	"reflect"
	"syscall"
	"testing"

	"github.com/bttnbd/bttnbd/layout"
	"github.com/bttnbd/bttnbd/pmem"
)

// badMemory is a tracer whose memory refuses some ranges, as a poisoned page does.
type badMemory struct {
	base   uintptr
	bad    map[uint64]uint64 // offset → end
	once   bool              // each fault passes when it has been met
	hint   uint32
	racing bool // allows ReadRacing: what has failed of one is read again
}

type memoryFault struct{ at uintptr }

func (f *memoryFault) Error() string { return "the test's memory refuses an access" }
func (f *memoryFault) Addr() uintptr { return f.at }

func (m *badMemory) access(off, n uint64) {
	for lo, hi := range m.bad {
		if off < hi && lo < off+n {
			if m.once {
				delete(m.bad, lo)
			}
			panic(&memoryFault{m.base + uintptr(max(off, lo))})
		}
	}
}

func (m *badMemory) Load(off, n uint64)        { m.access(off, n) }
func (m *badMemory) Store(off, n, v uint64)    { m.access(off, n) }
func (m *badMemory) Bulk(off uint64, p []byte) { m.access(off, uint64(len(p))) }
func (m *badMemory) Racing(off, n uint64) bool { return m.racing && m.pass(off, n) }
func (m *badMemory) pass(off, n uint64) bool   { m.access(off, n); return true }
func (m *badMemory) BulkZero(off, n uint64)    { m.access(off, n) }
func (m *badMemory) Flush(off, n uint64)       {}
func (m *badMemory) Drain() error              { return nil }
func (m *badMemory) Await(ready func() bool) {
	if ready != nil && !ready() {
		panic("deadlock")
	}
}
func (m *badMemory) Hint() uint32 { return m.hint }

// spoil makes an internal block of the first arena bad, and returns its offset.
func (m *badMemory) spoil(a *arena, block layout.PostmapLBA) uint64 {
	off := a.dataOff(block)
	m.bad[off] = off + uint64(a.geo.InternalLBASize)
	return off
}

func newBadMemory(t *testing.T) (*Device, *pmem.Region, *badMemory) {
	t.Helper()
	buf := make([]byte, testArena)
	m := &badMemory{base: reflect.ValueOf(buf).Pointer(), bad: map[uint64]uint64{}}
	r := pmem.NewTraced(buf, m)
	if err := Format(r, testParams(layout.UEFI)); err != nil {
		t.Fatal(err)
	}
	return reopen(t, r), r, m
}

func ownedBlock(a *arena, lba layout.PremapLBA) layout.PostmapLBA { return a.entry(lba).Owned(lba) }

// Goal: a read that meets bad memory fails for that block alone, and the map keeps
// it, for us and for others, until the block is written; the bad block is filled
// with zeros before it is used again.
func TestBadMemoryIsMarked(t *testing.T) {
	d, r, m := newBadMemory(t)
	a := d.arenas[0]
	mustWrite(t, d, 0, fill(1, 4*testSector))
	block := ownedBlock(a, 2)
	off := m.spoil(a, block)

	n, err := d.ReadAt(make([]byte, 4*testSector), 0)
	if n != 2*testSector || !errors.Is(err, syscall.EIO) {
		t.Errorf("read over the bad block: %d bytes, %v; want two blocks and EIO", n, err)
	}
	mustRead(t, d, 3*testSector, fill(1, testSector))
	delete(m.bad, off)
	for _, d := range []*Device{d, reopen(t, r)} {
		if e := a.entry(2); e != layout.ErrorEntry(block) {
			t.Fatalf("map entry %v, want an error entry of block %d", e, block)
		}
		if _, err := d.ReadAt(make([]byte, testSector), 2*testSector); !errors.Is(err, syscall.EIO) {
			t.Errorf("read of the marked block: %v, want EIO", err)
		}
	}
	mustWrite(t, d, 2*testSector, fill(2, testSector))
	mustRead(t, d, 2*testSector, fill(2, testSector))
	lane := laneOf(a, block)
	if lane == nil || !lane.bad {
		t.Errorf("the lane that got block %d: %+v, want it to be known as bad", block, lane)
	}
}

func laneOf(a *arena, free layout.PostmapLBA) *lane {
	for i := range a.lanes {
		if a.lanes[i].free == free {
			return &a.lanes[i]
		}
	}
	return nil
}

// Goal: no data is given up for a fault that passes, nor for one that has met the
// metadata or a part of the memory that the reader did not ask for.
func TestPassingFaultIsNotMarked(t *testing.T) {
	for name, spoil := range map[string]func(a *arena, m *badMemory){
		"data, once":      func(a *arena, m *badMemory) { m.once = true; m.spoil(a, ownedBlock(a, 2)) },
		"map, for long":   func(a *arena, m *badMemory) { m.bad[a.mapOff(0)] = a.mapOff(64) },
		"block next door": func(a *arena, m *badMemory) { m.spoil(a, ownedBlock(a, 3)) },
	} {
		d, _, m := newBadMemory(t)
		mustWrite(t, d, 0, fill(1, 4*testSector))
		spoil(d.arenas[0], m)
		_, err := d.ReadAt(make([]byte, testSector), 2*testSector)
		if met := name != "block next door"; met != errors.Is(err, syscall.EIO) {
			t.Errorf("%s: read: %v", name, err)
		}
		clear(m.bad)
		mustRead(t, d, 0, fill(1, 4*testSector))
	}
}

// Goal: the data of a block that a writer has replaced since the reader met the
// fault is not given up.
func TestReplacedBlockIsNotMarked(t *testing.T) {
	d, _, m := newBadMemory(t)
	mustWrite(t, d, 0, fill(1, testSector))
	m.spoil(d.arenas[0], ownedBlock(d.arenas[0], 0))
	_, err := d.readAt(make([]byte, testSector), 0)
	mustWrite(t, d, 0, fill(2, testSector))
	d.markIfBad(0, err)
	mustRead(t, d, 0, fill(2, testSector))
}

// Goal: a free block that cannot be stored to costs nobody anything: its lane is
// taken out of use and the write goes through another one. Only when there is none
// left the arena takes no more writes; reads go on, and nobody waits for ever.
func TestBadFreeBlocks(t *testing.T) {
	for name, n := range map[string]int64{"whole blocks": testSector, "parts": testSector / 2} {
		t.Run(name, func(t *testing.T) {
			d, r, m := newBadMemory(t)
			a := d.arenas[0]
			mustWrite(t, d, 0, fill(9, testSector))
			last := len(a.lanes) - 1
			for i := range a.lanes {
				m.spoil(a, a.lanes[i].free)
				for hint := range uint32(2) { // either word of the pool
					m.hint = hint
					p := bytes.Repeat([]byte{byte(i)}, int(n))
					_, err := d.WriteAt(p, testSector)
					if i == last {
						if !errors.Is(err, syscall.EIO) {
							t.Errorf("all free blocks are bad: write: %v, want EIO", err)
						}
						continue
					}
					if err != nil {
						t.Fatalf("%d bad free blocks: write: %v", i+1, err)
					}
					mustRead(t, d, testSector, p)
				}
			}
			if s := d.Stats(); s.ArenasFailed != 1 || s.LanesRetired != last+1 {
				t.Errorf("%d lanes retired, %d arenas failed; want %d and 1", s.LanesRetired, s.ArenasFailed, last+1)
			}
			mustRead(t, d, 0, fill(9, testSector))
			clear(m.bad)
			if err := d.SetArenaError(0, false); err == nil {
				t.Error("the arena was allowed writes without a lane to write through")
			}
			mustWrite(t, reopen(t, r), testSector, fill(7, testSector))
		})
	}
}

// Goal: a block known to be bad that cannot be filled with zeros either stays out
// of use.
func TestBadBlockThatStaysBad(t *testing.T) {
	d, _, m := newBadMemory(t)
	a := d.arenas[0]
	mustWrite(t, d, 0, fill(1, testSector))
	m.spoil(a, ownedBlock(a, 0))
	if _, err := d.ReadAt(make([]byte, testSector), 0); !errors.Is(err, syscall.EIO) {
		t.Fatal(err)
	}
	for i := range byte(40) { // over all lanes, several times
		m.hint = uint32(i)
		mustWrite(t, d, 0, fill(i, testSector))
		mustRead(t, d, 0, fill(i, testSector))
	}
	if s := d.Stats(); s.LanesRetired != 1 || s.ArenasFailed != 0 {
		t.Errorf("%+v, want one lane retired", s)
	}
}

// Goal: an arena whose write has failed half way takes no writes before the image
// is opened again, whoever clears its flag: its lanes are behind the flog.
func TestHalfwayIsNotCleared(t *testing.T) {
	d, r, m := newBadMemory(t)
	a := d.arenas[0]
	mustWrite(t, d, 0, fill(1, testSector))
	m.bad[a.flogOff(0)] = a.flogOff(4)
	if _, err := d.WriteAt(fill(2, testSector), 0); !errors.Is(err, syscall.EIO) {
		t.Fatalf("write without a flog: %v, want EIO", err)
	}
	clear(m.bad)
	if err := d.SetArenaError(0, true); err != nil {
		t.Fatal(err)
	}
	if err := d.SetArenaError(0, false); !errors.Is(err, syscall.EIO) {
		t.Errorf("clearing the flag: %v, want a refusal", err)
	}
	if _, err := d.WriteAt(fill(2, testSector), 0); !errors.Is(err, syscall.EIO) {
		t.Errorf("write: %v, want EIO", err)
	}
	mustRead(t, d, 0, fill(1, testSector))
	d = reopen(t, r)
	if err := d.SetArenaError(0, false); err != nil {
		t.Fatal(err)
	}
	mustWrite(t, d, 0, fill(3, testSector))
}

// Goal: Open that meets bad memory returns an error and no half of a device.
func TestOpenOnBadMemory(t *testing.T) {
	d, r, m := newBadMemory(t)
	a := d.arenas[0]
	for _, off := range []uint64{a.flogOff(0), a.base} {
		m.bad = map[uint64]uint64{off: off + 64}
		var fault *pmem.FaultError
		if d, err := Open(r, Options{MaxArena: testArena}); d != nil || !errors.As(err, &fault) {
			t.Errorf("bad memory at %d: %v, %v; want no device and a fault", off, d, err)
		}
	}
}

// Goal: an entry that names a block beyond the arena is an error for those who
// zero or mark it, and is left for bttcheck to find.
func TestMarkBeyondArena(t *testing.T) {
	d, r := newDevice(t, layout.UEFI, 1)
	a := d.arenas[0]
	bad := uint32(layout.NormalEntry(layout.PostmapLBA(a.geo.InternalNLBA)))
	r.Store32(a.mapOff(1), bad)
	for name, err := range map[string]error{
		"zero": d.ZeroAt(0, 4*testSector), "trim": d.TrimAt(0, 4*testSector), "set error": d.SetError(1),
	} {
		if !errors.Is(err, syscall.EIO) {
			t.Errorf("%s: %v, want EIO", name, err)
		}
	}
	if e := r.Load32(a.mapOff(1)); e != bad {
		t.Errorf("the entry is now %#x", e)
	}
}
