package btt

import (
	"errors"
	"testing"

	"github.com/bttnbd/bttnbd/layout"
	"github.com/bttnbd/bttnbd/pmem"
)

// growParams fit the small geometry.
const smallArena = 20 << 10

var growParams = GrowParams{MinArena: smallArena, MaxArena: testArena}

// enlarged is a heap region with the contents of r and n bytes of fill behind.
func enlarged(r *pmem.Region, n uint64, fill byte) *pmem.Region {
	all := make([]byte, r.Size()+n)
	r.Read(all[:r.Size()], 0)
	for i := r.Size(); i < uint64(len(all)); i++ {
		all[i] = fill
	}
	big := pmem.NewHeap(uint64(len(all)))
	big.Write(0, all)
	return big
}

func arenaSizes(d *Device) (sizes []uint64) {
	for _, a := range d.Arenas() {
		sizes = append(sizes, a.Geometry.Size)
	}
	return sizes
}

// Goal: an image that grows again and again, into arenas of sizes that differ, keeps
// its data and its uuids; what is new reads as zeros, whatever was there; and the byte
// model holds across the borders of the arenas.
func TestGrow(t *testing.T) {
	for _, f := range []layout.Flavour{layout.Kernel, layout.UEFI} {
		for _, zeroed := range []bool{true, false} {
			d, r := newDevice(t, f, 1)
			id := d.UUID()
			var model []byte
			for i, more := range []uint64{smallArena, testArena + smallArena + 104, testArena} {
				old := d.Size()
				model = append(model, make([]byte, old-uint64(len(model)))...)
				for j := range model {
					model[j] = byte(j*7 + i)
				}
				mustWrite(t, d, 0, model)
				p, fill := growParams, byte(0xa5)
				if p.Zeroed = zeroed; zeroed {
					fill = 0
				}
				big := enlarged(r, more, fill)
				plan, err := PlanGrow(r, big.Size(), p)
				if err != nil {
					t.Fatal(err)
				}
				if err := Grow(big, p); err != nil {
					t.Fatal(err)
				}
				d, r = reopen(t, big), big
				if plan.Before != old || plan.After != d.Size() || plan.Interrupted || d.UUID() != id || len(d.Warnings()) > 0 {
					t.Fatalf("planned %+v, had %d, got %d; warnings %v", plan, old, d.Size(), d.Warnings())
				}
				mustRead(t, d, 0, model)
				mustRead(t, d, int64(old), make([]byte, d.Size()-old))
			}
			model = fill(3, int(d.Size()))
			mustWrite(t, d, 0, model)
			mustRead(t, reopen(t, r), 0, model)
			if got := arenaSizes(d); len(got) != 5 {
				t.Errorf("arenas of %v bytes", got)
			}
		}
	}
}

// Goal: what cannot grow, or must be repaired first, is refused, and not a byte of it
// is changed.
func TestGrowRefuses(t *testing.T) {
	for name, c := range map[string]struct {
		flavour layout.Flavour
		more    uint64
		spoil   func(d *Device, r *pmem.Region)
		want    error
	}{
		"a pool":               {flavour: layout.PMEMBLK, more: testArena, want: ErrPoolGrows},
		"no room":              {flavour: layout.Kernel, more: smallArena - 8, want: ErrNoRoom},
		"no room for a block":  {flavour: layout.Kernel, more: 4096, want: ErrNoRoom},
		"an error flag":        {flavour: layout.Kernel, more: testArena, spoil: func(d *Device, _ *pmem.Region) { d.SetArenaError(1, true) }},
		"a bad primary":        {flavour: layout.UEFI, more: testArena, spoil: func(d *Device, r *pmem.Region) { r.Store64(d.arenas[0].base+200, 1) }},
		"a bad backup":         {flavour: layout.UEFI, more: testArena, spoil: func(d *Device, r *pmem.Region) { r.Store64(d.arenas[1].base+testArena-1000, 1) }},
		"a backup not its own": {flavour: layout.UEFI, more: testArena, spoil: spoilBackup},
	} {
		t.Run(name, func(t *testing.T) {
			d, r := newDevice(t, c.flavour, 2)
			p := growParams
			if name == "no room for a block" {
				p.MinArena = 4096
			}
			if c.spoil != nil {
				c.spoil(d, r)
			}
			big := enlarged(r, c.more, 0)
			before := make([]byte, big.Size())
			big.Read(before, 0)
			var corrupt *CorruptError
			_, planned := PlanGrow(big, big.Size(), p)
			for _, err := range []error{Grow(big, p), planned} {
				if c.want != nil && !errors.Is(err, c.want) || c.want == nil && !errors.As(err, &corrupt) {
					t.Errorf("got %v", err)
				}
			}
			after := make([]byte, big.Size())
			if big.Read(after, 0); string(after) != string(before) {
				t.Error("something was changed")
			}
		})
	}
}

// spoilBackup gives the backup of the last arena another parent uuid.
func spoilBackup(d *Device, r *pmem.Region) {
	a := d.arenas[1]
	raw := a.info.raw
	layout.PatchParent(raw[:], [16]byte{9})
	r.Write(a.base+a.geo.InfoOff, raw[:])
}

// Goal: no primary of an image that has grown is needed: each backup is found, by way
// of those behind it.
func TestGrownBackups(t *testing.T) {
	d, r := newDevice(t, layout.Kernel, 1)
	for _, more := range []uint64{smallArena, testArena + smallArena} {
		mustWrite(t, d, 0, fill(9, int(d.Size())))
		r = enlarged(r, more, 0)
		if err := Grow(r, growParams); err != nil {
			t.Fatal(err)
		}
		d = reopen(t, r)
	}
	all := make([]byte, d.Size())
	if _, err := d.ReadAt(all, 0); err != nil {
		t.Fatal(err)
	}
	for _, a := range d.arenas {
		var raw [layout.InfoSize]byte
		r.Read(raw[:], a.base)
		r.Zero(a.base, layout.InfoSize)
		got := reopen(t, r)
		if len(got.Warnings()) != 1 {
			t.Errorf("arena %d: warnings %v", a.index, got.Warnings())
		}
		mustRead(t, got, 0, all)
		r.Write(a.base, raw[:])
	}
}

// Goal: what an interrupted growth leaves is known again, with the link in neither, in
// one, or in both info blocks of the last arena; arenas of the same BTT that were used
// are another matter.
func TestUsedArenasAreNoLeftover(t *testing.T) {
	_, r := newDevice(t, layout.UEFI, 1)
	r = enlarged(r, testArena+smallArena, 0)
	var old [layout.InfoSize]byte
	r.Read(old[:], 0)
	if err := Grow(r, growParams); err != nil {
		t.Fatal(err)
	}
	unlinked := func() Growth {
		t.Helper()
		r.Write(0, old[:])
		g, err := PlanGrow(r, r.Size(), growParams)
		if err != nil {
			t.Fatal(err)
		}
		return g
	}
	if g := unlinked(); !g.Interrupted || len(g.Arenas) != 2 {
		t.Errorf("not known again: %+v", g)
	}
	if err := SettleGrow(r, growParams); err != nil {
		t.Fatal(err)
	}
	if g := unlinked(); !g.Interrupted {
		t.Errorf("not known again once it is settled: %+v", g)
	}
	for _, lba := range []int64{0, -1} {
		if err := Grow(r, growParams); err != nil {
			t.Fatal(err)
		}
		d := reopen(t, r)
		off := int64(d.Size()) - testSector // in the last arena
		if lba == 0 {
			off = int64(d.arenas[1].first) * testSector
		}
		mustWrite(t, d, off, fill(1, testSector))
		if g := unlinked(); g.Interrupted {
			t.Errorf("a used arena, in which byte %d was written, is taken for a leftover", off)
		}
	}
}
