package btt

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/uuid"

	"github.com/bttnbd/bttnbd/layout"
	"github.com/bttnbd/bttnbd/pmem"
)

// formatted is a region of size bytes behind the flavour's start, laid out with
// blocks of sector bytes and four lanes. If dirty, it was all 0xa5 before.
func formatted(t *testing.T, f layout.Flavour, sector uint32, size uint64, dirty bool) *pmem.Region {
	t.Helper()
	r := pmem.NewHeap(f.Start + size)
	if dirty {
		r.Write(0, fill(0xa5, int(r.Size())))
	}
	err := Format(r, FormatParams{Flavour: f, SectorSize: sector, Nfree: 4, UUID: uuid.UUID{1}, ParentUUID: uuid.UUID{2}, Zeroed: !dirty, MinArena: size, MaxArena: size})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// opened opens what fills the region.
func opened(t *testing.T, r *pmem.Region) *Device {
	t.Helper()
	d, err := Open(r, Options{MaxArena: r.Size()})
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// Goal: a device of any sector size is an array of bytes like any other: with
// integrity bytes behind each sector, of odd sizes in a pool, on dirty memory.
// Method: random operations beside a plain byte slice.
func TestModelSectors(t *testing.T) {
	for _, c := range []struct {
		flavour         layout.Flavour
		sector, visible uint32
	}{
		{layout.Kernel, 512, 512}, {layout.Kernel, 520, 512}, {layout.UEFI, 528, 512}, {layout.Kernel, 1024, 1024},
		{layout.Kernel, 4096, 4096}, {layout.UEFI, 4104, 4096}, {layout.Kernel, 4160, 4096}, {layout.Kernel, 4224, 4096},
		{layout.UEFI, 8192, 8192}, {layout.Kernel, 65536, 65536}, {layout.Kernel, 777, 777},
		{layout.PMEMBLK, 1, 1}, {layout.PMEMBLK, 100, 100}, {layout.PMEMBLK, 512, 512}, {layout.PMEMBLK, 513, 513},
		{layout.PMEMBLK, 520, 520}, {layout.PMEMBLK, 4104, 4104}, {layout.PMEMBLK, 65536, 65536},
	} {
		for _, dirty := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/%d/dirty %v", c.flavour.Name, c.sector, dirty), func(t *testing.T) {
				r := formatted(t, c.flavour, c.sector, 64<<10+16*uint64(c.sector), dirty)
				d := opened(t, r)
				if d.SectorSize() != c.visible || d.Size()%uint64(c.visible) != 0 {
					t.Fatalf("size %d, sectors of %d, want %d", d.Size(), d.SectorSize(), c.visible)
				}
				compareWithModel(t, r, d)
			})
		}
	}
}

func compareWithModel(t *testing.T, r *pmem.Region, d *Device) {
	t.Helper()
	model := make([]byte, d.Size())
	mustRead(t, d, 0, model)
	rng := rand.New(rand.NewPCG(uint64(d.SectorSize()), 9))
	sector := int64(d.SectorSize())
	for i := range 300 {
		off := rng.Int64N(int64(len(model)))
		n := min(1+rng.Int64N(4*sector+9), int64(len(model))-off)
		if rng.IntN(2) == 0 { // whole sectors
			off, n = off/sector*sector, sector
		}
		switch rng.IntN(6) {
		case 0, 1, 2:
			p := fill(byte(i+1), int(n))
			mustWrite(t, d, off, p)
			copy(model[off:], p)
		case 3:
			if err := d.ZeroAt(off, n); err != nil {
				t.Fatal(err)
			}
			clear(model[off : off+n])
		case 4:
			d = opened(t, r)
		default:
			mustRead(t, d, off, model[off:off+n])
		}
	}
	mustRead(t, opened(t, r), 0, model)
}

// Goal: what an initial entry means depends on the flavour: what is on the medium,
// or zeros, of which a partial write keeps the rest; and zeroing one in a pool
// stores nothing.
func TestInitialEntries(t *testing.T) {
	for _, f := range layout.Flavours() {
		r := formatted(t, f, 512, 64<<10, false)
		d := opened(t, r)
		a := d.arenas[0]
		r.Write(a.dataOff(0), fill(0xa5, 4*512)) // as on a medium that was used before
		want := byte(0xa5)
		if f.InitialZero {
			want = 0
		}
		mustRead(t, d, 0, fill(want, 512))
		mustWrite(t, d, 512+5, fill(1, 3))
		mustRead(t, d, 512, append(append(fill(want, 5), 1, 1, 1), fill(want, 512-8)...))
		if err := d.ZeroAt(2*512, 512); err != nil {
			t.Fatal(err)
		}
		mustRead(t, d, 2*512, make([]byte, 512))
		if idle := a.entry(2) == 0; idle != f.InitialZero {
			t.Errorf("%s: entry %v after zeroing it", f.Name, a.entry(2))
		}
	}
}

// Goal: the flog is written in the style of the flavour, to the bit: what PMDK
// compares with its map, and what Linux and ndctl take for a block number.
func TestFlogStyle(t *testing.T) {
	for _, c := range []struct {
		flavour                           layout.Flavour
		fresh, initial, again, bad, newly layout.MapEntry // flags
	}{
		{layout.Kernel, 0, 0, 0, layout.EntryError, 0},
		{layout.UEFI, 0, 0, 0, layout.EntryError, 0},
		{layout.PMEMBLK, layout.EntryZero, layout.EntryZero | layout.EntryError, layout.EntryZero | layout.EntryError, layout.EntryError, layout.EntryZero | layout.EntryError},
	} {
		r := formatted(t, c.flavour, 512, 64<<10, false)
		d := opened(t, r)
		a := d.arenas[0]
		flags := func(what string, got, want layout.MapEntry) {
			t.Helper()
			if got&^layout.BlockMask != want {
				t.Errorf("%s: %s has flags %#x, want %#x", c.flavour.Name, what, uint32(got&^layout.BlockMask), uint32(want))
			}
		}
		for lane := range uint32(4) {
			g := flogGroup(a, lane)
			flags("a fresh record", g[0].Old, c.fresh)
			flags("a fresh record", g[0].New, c.fresh)
		}
		for _, step := range []struct {
			what string
			do   func() error
			old  layout.MapEntry
		}{
			{"an initial entry", func() error { return nil }, c.initial},
			{"a normal entry", func() error { return nil }, c.again},
			{"an error entry", func() error { return d.SetError(7) }, c.bad},
		} {
			if err := step.do(); err != nil {
				t.Fatal(err)
			}
			old := a.entry(7).Owned(7)
			mustWrite(t, d, 7*512, fill(1, 512))
			rec := lastRecord(t, a, 7, old, a.entry(7).Block())
			flags(step.what+" replaced", rec.Old, step.old)
			flags("the new block", rec.New, c.newly)
		}
	}
}

func flogGroup(a *arena, lane uint32) layout.FlogGroup {
	var b [layout.FlogGroupSize]byte
	a.reg.Read(b[:], a.flogOff(lane))
	return layout.DecodeFlogGroup(b[:])
}

// lastRecord finds the current record that has moved lba from block old to new.
func lastRecord(t *testing.T, a *arena, lba layout.PremapLBA, old, new layout.PostmapLBA) layout.FlogRecord {
	t.Helper()
	for lane := range uint32(len(a.lanes)) {
		g := flogGroup(a, lane)
		if i, err := g.Current(a.padding); err == nil && g[i].LBA == lba && g[i].Old.Block() == old && g[i].New.Block() == new {
			return g[i]
		}
	}
	t.Fatalf("no record has moved lba %d from block %d to %d", lba, old, new)
	return layout.FlogRecord{}
}

// Goal: the padding {0,2} is found when only one lane tells, and kept by all lanes.
func TestOldPaddingIsKept(t *testing.T) {
	r := formatted(t, layout.UEFI, 512, 64<<10, false)
	a := opened(t, r).arenas[0]
	g := flogGroup(a, 3)
	free := g[0].Old.Block()
	g[2] = layout.FlogRecord{LBA: 9, Old: 9, New: layout.MapEntry(free), Seq: 2}
	var b [layout.FlogGroupSize]byte
	g.Encode(b[:])
	r.Write(a.flogOff(3), b[:])
	r.Store32(a.mapOff(9), uint32(layout.NormalEntry(free)))
	d := opened(t, r)
	for word := range uint32(2) {
		other, set := d.arenas[0].pool.tryTake(2, word) // so that those of the other word write
		for i := range int64(20) {
			mustWrite(t, d, i%20*512, fill(byte(i), 2*512))
		}
		d.arenas[0].pool.put(other, set)
	}
	for lane := range uint32(4) {
		if g := flogGroup(a, lane); g[1] != (layout.FlogRecord{}) || g[3] != (layout.FlogRecord{}) || g[2].Seq == 0 {
			t.Errorf("lane %d: %+v", lane, g)
		}
	}
	for i := range int64(20) {
		mustRead(t, opened(t, r), i*512, fill(byte(i), 512))
	}
}

// Goal: a block that was known to be bad is filled with zeros, all of it, before a
// lane puts data into it; and integrity bytes are written as zeros, never left.
func TestBadBlockIsZeroedBeforeReuse(t *testing.T) {
	for _, reopen := range []bool{false, true} {
		r := formatted(t, layout.Kernel, 520, 64<<10, false)
		d := opened(t, r)
		a := d.arenas[0]
		r.Write(a.base+a.geo.DataOff, fill(0xa5, int(a.geo.MapOff-a.geo.DataOff)))
		mustWrite(t, d, 0, fill(1, 512))
		good := a.entry(0).Block()
		if tail := blockTail(a, good); !bytes.Equal(tail[:8], make([]byte, 8)) || !bytes.Equal(tail[8:], fill(0xa5, 56)) {
			t.Errorf("behind a sector: % x", tail)
		}
		if err := d.SetError(0); err != nil {
			t.Fatal(err)
		}
		mustWrite(t, d, 0, fill(2, 512)) // the bad block is now a lane's
		if reopen {
			d = opened(t, r)
			a = d.arenas[0]
		}
		for word := range uint32(2) {
			other, set := a.pool.tryTake(2, word) // so that those of the other word write
			for i := range int64(50) {
				mustWrite(t, d, (1+i%5)*512, fill(3, 512))
			}
			a.pool.put(other, set)
		}
		if tail := blockTail(a, good); !bytes.Equal(tail, make([]byte, 64)) {
			t.Errorf("reopen %v: behind the sector in the block that was bad: % x", reopen, tail)
		}
	}
}

// blockTail is what follows the 512 bytes of a sector in its block.
func blockTail(a *arena, block layout.PostmapLBA) []byte {
	p := make([]byte, a.geo.InternalLBASize-512)
	a.reg.Read(p, a.dataOff(block)+512)
	return p
}

// Goal: a pool is opened only if everything around its BTT agrees, and each
// disagreement is told; a namespace may have any parent, which is told too.
func TestPoolRules(t *testing.T) {
	field := func(name string) func(error) bool {
		return func(err error) bool {
			var f *layout.PoolFieldError
			return errors.As(err, &f) && f.Field == name
		}
	}
	is := func(want error) func(error) bool { return func(err error) bool { return errors.Is(err, want) } }
	corrupt := func(err error) bool { var c *CorruptError; return errors.As(err, &c) }
	for _, c := range []struct {
		name  string
		spoil func(r *pmem.Region)
		ok    func(error) bool
	}{
		{"sound", func(r *pmem.Region) {}, is(nil)},
		{"unknown incompat", header(func(h *layout.PoolHeader) { h.Incompat |= 8 }), field("incompat features")},
		{"unknown ro_compat", header(func(h *layout.PoolHeader) { h.ROCompat = 2 }), is(ErrReadOnlyPool)},
		{"two parts", header(func(h *layout.PoolHeader) { h.Links[0] = uuid.UUID{9} }), field("part and replica links")},
		{"another pool set", header(func(h *layout.PoolHeader) { h.Poolset = uuid.UUID{9} }), corrupt},
		{"another bsize", header(func(h *layout.PoolHeader) { h.BlockSize = 4096 }), corrupt},
		{"as of PMDK 1.3", header(func(h *layout.PoolHeader) { h.Compat, h.Incompat = 0, 0 }), is(nil)},
		{"bad checksum", func(r *pmem.Region) { r.Store32(100, 1) }, is(layout.ErrPoolChecksum)},
		{"no signature", func(r *pmem.Region) { r.Store32(0, 0) }, is(ErrNoBTT)},
		{"primary gone", func(r *pmem.Region) { r.Zero(8192, 4096) }, is(nil)},
		{"nothing laid out", func(r *pmem.Region) { r.Zero(8192, r.Size()-8192) }, is(ErrNoLayout)},
		{"both damaged", func(r *pmem.Region) { r.Store32(8192+200, 1); r.Store32(r.Size()-4096+200, 1) }, corrupt},
		{"both without signature", func(r *pmem.Region) { r.Store32(8192, 0); r.Store32(r.Size()-4096, 0) }, is(layout.ErrNoSignature)},
		{"kernel BTT made over it", func(r *pmem.Region) {
			k := pmem.NewHeap(r.Size())
			p := testParams(layout.Kernel)
			p.MinArena, p.MaxArena = 4096, r.Size()
			if err := Format(k, p); err != nil {
				t.Fatal(err)
			}
			b := make([]byte, r.Size()-4096)
			k.Read(b, 4096)
			r.Write(4096, b)
		}, is(nil)},
	} {
		r := formatted(t, layout.PMEMBLK, 512, 64<<10, false)
		c.spoil(r)
		if _, err := Open(r, Options{MaxArena: r.Size()}); !c.ok(err) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	if d := opened(t, formatted(t, layout.Kernel, 512, 64<<10, false)); d.ParentUUID() != (uuid.UUID{2}) {
		t.Errorf("parent %v", d.ParentUUID())
	}
}

// header changes a pool's header, and makes its checksum right.
func header(change func(*layout.PoolHeader)) func(*pmem.Region) {
	return func(r *pmem.Region) {
		b := make([]byte, layout.PoolDataOff)
		r.Read(b, 0)
		h, _ := layout.DecodePoolHeader(b)
		change(&h)
		h.Encode(b, r.Size())
		r.Write(0, b)
	}
}

// Goal: a pool with features that allow only reading can be read, and not a byte
// of its file changes, although a write is to be completed.
func TestReadOnlyPool(t *testing.T) {
	r := formatted(t, layout.PMEMBLK, 512, 64<<10, false)
	d := opened(t, r)
	before := d.arenas[0].entry(0)
	mustWrite(t, d, 0, fill(1, 512))
	r.Store32(d.arenas[0].mapOff(0), uint32(before)) // as if the write had been interrupted
	header(func(h *layout.PoolHeader) { h.ROCompat = 2 })(r)
	image := make([]byte, r.Size())
	r.Read(image, 0)
	path := filepath.Join(t.TempDir(), "pool")
	if err := os.WriteFile(path, image, 0o600); err != nil {
		t.Fatal(err)
	}
	file, err := pmem.Open(path, pmem.Options{ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	d = opened(t, file)
	mustRead(t, d, 0, fill(1, 512))
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	if after, err := os.ReadFile(path); err != nil || !bytes.Equal(after, image) {
		t.Errorf("the file has changed (%v)", err)
	}
}

// Goal: a pool that PMDK has not closed on memory that counts unsafe shutdowns is
// opened with a warning; where nothing is counted, without.
func TestShutdownState(t *testing.T) {
	for count, warnings := range map[uint64]int{0: 0, 3: 1} {
		r := formatted(t, layout.PMEMBLK, 512, 64<<10, false)
		var state [24]byte
		binary.LittleEndian.PutUint64(state[:], count)
		state[16] = 1
		r.Write(4024, state[:]) // outside of the checksum
		if d := opened(t, r); len(d.Warnings()) != warnings {
			t.Errorf("%d unsafe shutdowns: warnings %q", count, d.Warnings())
		}
	}
}

// Goal: an image with fewer blocks than lanes opens: the numbers that a format
// gives to its records then go past the end, Linux's do.
func TestFewerBlocksThanLanes(t *testing.T) {
	r := pmem.NewHeap(64 << 10)
	err := Format(r, FormatParams{Flavour: layout.UEFI, SectorSize: 4096, Nfree: 8, Zeroed: true, MinArena: 4096})
	if err != nil {
		t.Fatal(err)
	}
	d := opened(t, r)
	n := d.arenas[0].geo.ExternalNLBA
	for lane := range uint32(8) {
		r.Store32(d.arenas[0].flogOff(lane), lane) // as Linux does it
	}
	if n >= 8 {
		t.Fatalf("%d blocks: the test needs less", n)
	}
	d = opened(t, r)
	mustWrite(t, d, 0, fill(1, int(d.Size())))
	mustRead(t, opened(t, r), 0, fill(1, int(d.Size())))
}
