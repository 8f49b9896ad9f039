package btt

import (
	"slices"
	"testing"

	"github.com/bttnbd/bttnbd/layout"
	"github.com/bttnbd/bttnbd/pmem"
)

type extent struct {
	length int64
	state  uint8
}

// extentsOf gathers what Extents tells, up to most extents.
func extentsOf(t *testing.T, d *Device, off, n int64, most int) []extent {
	t.Helper()
	var all []extent
	err := d.Extents(off, n, func(length int64, state uint8) bool {
		all = append(all, extent{length, state})
		return len(all) < most
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func TestExtents(t *testing.T) {
	// Goal: each kind of entry is told as what a read of it meets, neighbours are
	// merged, also across arenas, and the ends of the range cut blocks.
	d, _ := newDevice(t, layout.Kernel, 2)
	const s = testSector
	perArena := int64(d.arenas[0].geo.ExternalNLBA)
	write := func(lba int64) {
		if _, err := d.WriteAt(make([]byte, s), lba*s); err != nil {
			t.Fatal(err)
		}
	}
	write(1) // zeros that were written are data
	if err := d.ZeroAt(3*s, 2*s); err != nil {
		t.Fatal(err)
	}
	if err := d.SetError(5); err != nil {
		t.Fatal(err)
	}
	if err := d.ZeroAt((perArena-2)*s, 4*s); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		off, n int64
		most   int
		want   []extent
	}{
		{0, 8 * s, 9, []extent{{3 * s, 0}, {2 * s, ExtentZero}, {s, ExtentError}, {2 * s, 0}}},
		{0, 8 * s, 2, []extent{{3 * s, 0}, {2 * s, ExtentZero}}},
		{3*s + 1, 2*s + 1, 9, []extent{{2*s - 1, ExtentZero}, {2, ExtentError}}},
		{4*s + 7, 9, 9, []extent{{9, ExtentZero}}},
		{(perArena - 3) * s, 6 * s, 9, []extent{{s, 0}, {4 * s, ExtentZero}, {s, 0}}},
		{int64(d.Size()) - 1, 1, 9, []extent{{1, 0}}},
	} {
		if got := extentsOf(t, d, c.off, c.n, c.most); !slices.Equal(got, c.want) {
			t.Errorf("%d bytes at %d: %v, want %v", c.n, c.off, got, c.want)
		}
	}
	for _, off := range []int64{-1, int64(d.Size())} {
		if err := d.Extents(off, 1, nil); err == nil {
			t.Errorf("a byte at %d: no error", off)
		}
	}
}

func TestExtentsTellTheTruth(t *testing.T) {
	// Goal: what is told to be zero reads as zeros, what is told to be an error
	// fails, and all else can be read; on every flavour, after random operations.
	for name, f := range map[string]layout.Flavour{"kernel": layout.Kernel, "uefi": layout.UEFI, "pmemblk": layout.PMEMBLK} {
		d, _ := newDevice(t, f, 2)
		for i := range uint64(200) {
			lba := i * i * 7 % (d.Size() / testSector)
			var err error
			switch i % 4 {
			case 0:
				err = d.ZeroAt(int64(lba)*testSector, testSector)
			case 1:
				err = d.SetError(layout.ExternalLBA(lba))
			default:
				_, err = d.WriteAt(slices.Repeat([]byte{byte(i)}, testSector), int64(lba)*testSector)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		off := int64(0)
		for _, e := range extentsOf(t, d, 0, int64(d.Size()), 1<<20) {
			for end := off + e.length; off < end; off += testSector {
				p := make([]byte, testSector)
				_, err := d.ReadAt(p, off)
				if (err != nil) != (e.state == ExtentError) {
					t.Fatalf("%s: a read at %d: %v, told %d", name, off, err, e.state)
				}
				if e.state == ExtentZero && slices.Max(p) != 0 {
					t.Fatalf("%s: data at %d, told to be zero", name, off)
				}
			}
		}
		if off != int64(d.Size()) {
			t.Errorf("%s: told of %d bytes of %d", name, off, d.Size())
		}
	}
}

func TestExtentsNoAllocation(t *testing.T) {
	// Goal: telling extents costs no allocation, nor does it look at more of a map
	// than its bound.
	d, _ := newDevice(t, layout.Kernel, 1)
	var told int64
	emit := func(length int64, _ uint8) bool { told += length; return true }
	if n := testing.AllocsPerRun(100, func() { d.Extents(0, int64(d.Size()), emit) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
	r := pmem.NewHeap(160 << 20)
	p := FormatParams{Flavour: layout.Kernel, SectorSize: 512, Zeroed: true}
	if err := Format(r, p); err != nil {
		t.Fatal(err)
	}
	big, err := Open(r, Options{})
	if err != nil {
		t.Fatal(err)
	}
	told = 0
	if err := big.Extents(512, int64(big.Size())-512, emit); err != nil || told != maxExtentWork*512 {
		t.Errorf("told of %d bytes in one call, want %d; %v", told, int64(maxExtentWork)*512, err)
	}
}
