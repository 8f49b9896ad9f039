package btt

import (
	"encoding/binary"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/bttnbd/bttnbd/layout"
	"github.com/bttnbd/bttnbd/pmem"
)

// Goal: a read brings one whole write of the block that was asked for, also with more
// readers than there are slots to announce them in. Method: every word of a write is
// the same, and no two writes have the same; nearly all slots are taken, so that
// readers wait for one another; and there are more threads than processors, so that
// they are stopped in the middle of copies.
func TestReadersAndWritersOfTheSameBlocks(t *testing.T) {
	const (
		sector, blocks    = 4096, 3
		readers, writers  = 48, 4 // with those that hold slots more than rttSlots
		slotsLeft, during = 16, 300 * time.Millisecond
	)
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(4))
	p := testParams(layout.Flavours()[0])
	p.SectorSize, p.Nfree, p.MaxArena = sector, 2, 1<<20
	r := pmem.NewHeap(p.Flavour.Start + p.MaxArena)
	if err := Format(r, p); err != nil {
		t.Fatal(err)
	}
	d, err := Open(r, Options{MaxArena: p.MaxArena})
	if err != nil {
		t.Fatal(err)
	}
	for range rttSlots - slotsLeft { // of a block that nobody writes
		defer d.arenas[0].rtt.clear(d.arenas[0].rtt.publish(blocks, 0))
	}
	var (
		all   sync.WaitGroup
		stop  atomic.Bool
		last  atomic.Uint64
		reads atomic.Uint64
	)
	write := func(lba int) error {
		var b [sector]byte
		value := last.Add(1)*blocks + uint64(lba)
		for i := 0; i < sector; i += 8 {
			binary.NativeEndian.PutUint64(b[i:], value)
		}
		_, err := d.WriteAt(b[:], int64(lba)*sector)
		return err
	}
	for lba := range blocks {
		if err := write(lba); err != nil {
			t.Fatal(err)
		}
	}
	for w := range writers {
		all.Go(func() {
			for lba := w; ; lba++ { // once at least
				if err := write(lba % blocks); err != nil {
					t.Error(err)
					return
				}
				if stop.Load() {
					return
				}
			}
		})
	}
	for n := range readers {
		all.Go(func() {
			b := make([]byte, sector)
			for lba := n % blocks; ; lba = (lba + 1) % blocks {
				if _, err := d.ReadAt(b, int64(lba)*sector); err != nil {
					t.Error(err)
					return
				}
				first := binary.NativeEndian.Uint64(b)
				if first%blocks != uint64(lba) {
					t.Errorf("block %d: a write of block %d", lba, first%blocks)
					stop.Store(true)
				}
				for i := 8; i < sector; i += 8 {
					if w := binary.NativeEndian.Uint64(b[i:]); w != first {
						t.Errorf("block %d: write %d, and from byte %d on write %d", lba, first/blocks, i, w/blocks)
						stop.Store(true)
						break
					}
				}
				reads.Add(1)
				if stop.Load() {
					return
				}
			}
		})
	}
	time.AfterFunc(during, func() { stop.Store(true) })
	all.Wait()
	s := d.Stats()
	t.Logf("%d reads, %d writes, %d of which found a reader", reads.Load(), s.BlocksWritten, s.RTTWaits)
	if reads.Load() == 0 || s.BlocksWritten <= blocks {
		t.Error("too few to mean anything")
	}
}

// Goal: a write waits for whoever has announced the block that it is to fill, and for
// nobody else.
func TestWriterWaits(t *testing.T) {
	d, _ := newDevice(t, layout.UEFI, 1)
	a := d.arenas[0]
	write := func() chan error {
		over := make(chan error, 1)
		go func() {
			_, err := d.WriteAt(make([]byte, d.SectorSize()), 0)
			over <- err
		}()
		return over
	}
	slots := []*rttSlot{a.rtt.publish(a.entry(1).Owned(1), 0)}
	if err := <-write(); err != nil || d.Stats().RTTWaits != 0 {
		t.Fatalf("beside a reader of another block: %v, %d waits", err, d.Stats().RTTWaits)
	}
	for i := range a.lanes {
		slots = append(slots, a.rtt.publish(a.lanes[i].free, 0))
	}
	over := write()
	for d.Stats().RTTWaits == 0 && len(over) == 0 {
		runtime.Gosched()
	}
	if len(over) > 0 {
		t.Fatal("the write did not wait")
	}
	for _, s := range slots {
		a.rtt.clear(s)
	}
	if err := <-over; err != nil {
		t.Fatal(err)
	}
}
