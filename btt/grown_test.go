package btt

import (
	"encoding/binary"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/bttnbd/bttnbd/layout"
	"github.com/bttnbd/bttnbd/pmem"
)

// largeArena makes room for a smaller one to be followed by a larger one.
const largeArena = 64 << 10

var largeGrowth = GrowParams{MinArena: smallArena, MaxArena: largeArena}

func openLarge(r *pmem.Region) (*Device, error) { return Open(r, Options{MaxArena: largeArena}) }

// grown is an image of one arena of size bytes that has grown by more.
func grown(t *testing.T, f layout.Flavour, size, more uint64) (*Device, *pmem.Region) {
	t.Helper()
	r := pmem.NewHeap(f.Start + size)
	p := testParams(f)
	p.MaxArena = largeArena
	if err := Format(r, p); err != nil {
		t.Fatal(err)
	}
	r = enlarged(r, more, 0)
	if err := Grow(r, largeGrowth); err != nil {
		t.Fatal(err)
	}
	d, err := openLarge(r)
	if err != nil {
		t.Fatal(err)
	}
	return d, r
}

// forge makes the block of users' data at off a backup info block of the first arena,
// were that as large as can be.
func forge(t *testing.T, d *Device, r *pmem.Region) {
	t.Helper()
	first := d.arenas[0]
	geo, err := layout.NewGeometry(largeArena, layout.Params{ExternalLBASize: testSector, Nfree: 4, Align: 64})
	if err != nil {
		t.Fatal(err)
	}
	in := geo.Info(d.flavour, d.id, d.parent, 0)
	var raw [layout.InfoSize]byte
	in.Encode(raw[:])
	off := first.base + largeArena - layout.InfoSize
	if a := d.arenas[1]; off < a.base+a.geo.DataOff || off+layout.InfoSize > a.base+a.geo.MapOff {
		t.Fatalf("%d is no user's data", off)
	}
	r.Write(off, raw[:])
}

// Goal: users' data that looks like the backup of an arena before is never taken for it,
// whether of the primary a byte is bad or nothing is left. The growth leaves no rest
// behind the last arena, where it would leave one too small for an arena; with
// one that came later, a primary of which something is left says itself what is right.
func TestGrownForgedBackup(t *testing.T) {
	for _, f := range []layout.Flavour{layout.Kernel, layout.UEFI} {
		for name, damage := range map[string]func(r *pmem.Region){
			"a byte":       func(r *pmem.Region) { r.Store64(f.Start+600, 1) },
			"signature":    func(r *pmem.Region) { r.Store64(f.Start, 0) },
			"whole, zeros": func(r *pmem.Region) { r.Zero(f.Start, layout.InfoSize) },
		} {
			for _, later := range []uint64{0, 8192} {
				if later > 0 && name == "whole, zeros" {
					continue // nothing says then where the backup is
				}
				d, r := grown(t, f, testArena, largeArena+12<<10)
				if sizes := arenaSizes(d); !slices.Equal(sizes, []uint64{testArena, 56 << 10, smallArena}) {
					t.Fatalf("arenas of %v bytes", sizes)
				}
				has := d.Size()
				forge(t, d, r)
				r = enlarged(r, later, 0)
				damage(r)
				got, err := openLarge(r)
				if err != nil {
					t.Errorf("%s, %s bad, %d behind: %v", f.Name, name, later, err)
				} else if got.Size() != has {
					t.Errorf("%s, %s bad, %d behind: %d bytes, and were %d", f.Name, name, later, got.Size(), has)
				}
			}
		}
	}
}

// Goal: a user who fills his blocks with copies of a backup does not make it another
// arena's primary.
func TestGrownBackupIsNoPrimary(t *testing.T) {
	d, r := grown(t, layout.UEFI, testArena, largeArena)
	first, next := d.arenas[0], d.arenas[1]
	at := 2*first.geo.InfoOff - next.base
	if at < next.geo.DataOff || at+layout.InfoSize > next.geo.MapOff {
		t.Fatalf("%d is no user's data", at)
	}
	r.Write(next.base+at, first.info.raw[:])
	r.Store64(0, 0)
	if got, err := openLarge(r); err != nil || got.Size() != d.Size() {
		t.Errorf("%v, and there were %d bytes", err, d.Size())
	}
}

// Goal: with a rest behind the last arena, from which the backups cannot be followed,
// the primary of an arena is not taken for the backup of the one before.
func TestGrownPrimaryIsNoBackup(t *testing.T) {
	d, r := grown(t, layout.UEFI, largeArena-layout.InfoSize, largeArena)
	var raw [layout.InfoSize]byte
	if r.Read(raw[:], d.arenas[1].base); d.arenas[1].base != largeArena-layout.InfoSize {
		t.Fatalf("the second begins at %d", d.arenas[1].base)
	}
	r = enlarged(r, 8192, 0)
	r.Zero(0, layout.InfoSize)
	if _, err := openLarge(r); !errors.Is(err, ErrNoBTT) {
		t.Errorf("taken for it: %v", err)
	}
}

// Goal: behind the last arena only that is a leftover which an interrupted growth makes,
// up to where it has come, and not what begins like it.
func TestLeftover(t *testing.T) {
	stop := errors.New("stop")
	_, small := newDevice(t, layout.UEFI, 1)
	half := enlarged(small, largeArena+smallArena, 0xa5)
	p := largeGrowth
	p.Progress = func(uint64, uint64) error { return stop }
	if err := Grow(half, p); !errors.Is(err, stop) {
		t.Fatal(err)
	}
	whole := enlarged(small, largeArena+smallArena, 0)
	if err := Grow(whole, largeGrowth); err != nil {
		t.Fatal(err)
	}
	var old [layout.InfoSize]byte
	small.Read(old[:], 0)
	whole.Write(0, old[:])
	const base, end = uint64(testArena), uint64(testArena + largeArena + smallArena)
	for name, c := range map[string]struct {
		r     *pmem.Region
		spoil func(r *pmem.Region)
		want  uint64
	}{
		"half made":             {r: half, want: end},
		"whole":                 {r: whole, want: end},
		"whole, both words":     {r: whole, spoil: func(r *pmem.Region) { r.Store64(base, growMark) }, want: end},
		"the mark alone":        {r: enlarged(small, largeArena, 0), spoil: func(r *pmem.Region) { r.Store64(base, growMark) }, want: base + layout.InfoSize},
		"data after the mark":   {r: enlarged(small, largeArena, 0xa5), spoil: func(r *pmem.Region) { r.Store64(base, growMark) }, want: base},
		"another end":           {r: half, spoil: func(r *pmem.Region) { r.Store64(base+8, r.Load64(base+8)+1<<sumBits) }, want: base},
		"whole, of another BTT": {r: whole, spoil: func(r *pmem.Region) { anotherUUID(r, base) }, want: base},
		"a lane was used":       {r: whole, spoil: func(r *pmem.Region) { useLane(r, base) }, want: base},
	} {
		r := enlarged(c.r, 8192, 0xa5)
		if c.spoil != nil {
			c.spoil(r)
		}
		g, err := PlanGrow(r, r.Size(), largeGrowth)
		if err != nil || g.Leftover != c.want || g.Interrupted != (c.want > base) {
			t.Errorf("%s: %v, %+v", name, err, g)
		}
	}
}

// anotherUUID makes the arena at base one of another BTT.
func anotherUUID(r *pmem.Region, base uint64) {
	var raw [layout.InfoSize]byte
	in, err := readInfo(r, base, &raw)
	if err != nil {
		panic(err)
	}
	in.UUID[3] ^= 1
	in.Encode(raw[:])
	r.Write(base, raw[:])
}

// useLane gives the first lane of the arena at base a second record.
func useLane(r *pmem.Region, base uint64) {
	var raw [layout.InfoSize]byte
	in, err := readInfo(r, base, &raw)
	if err != nil {
		panic(err)
	}
	r.Store64(base+in.FlogOff+layout.FlogRecordSize, binary.LittleEndian.Uint64([]byte{1, 0, 0, 0, 9, 0, 0, 0}))
}

// Goal: an image gets no more arenas and lanes than opens, and one that has more lanes
// is refused, and not with the memory for them.
func TestGrowLimits(t *testing.T) {
	_, r := newDevice(t, layout.UEFI, 1)
	const most = testArena + (maxArenas-1)*largeArena
	if g, err := PlanGrow(r, most, largeGrowth); err != nil || len(g.Arenas) != maxArenas-1 {
		t.Errorf("%v, %d arenas", err, len(g.Arenas))
	}
	for _, size := range []uint64{most + 4096, most + smallArena, 7 << 60} {
		if _, err := PlanGrow(r, size, largeGrowth); !errors.Is(err, ErrTooLarge) {
			t.Errorf("%d bytes: %v", size, err)
		}
	}
	const arena = 72 << 20
	geo, err := layout.NewGeometry(arena, layout.Params{ExternalLBASize: 64, Nfree: maxLanes / 2, Align: 64})
	if err != nil {
		t.Fatal(err)
	}
	for arenas, refused := range map[uint64]bool{2: false, 3: true} {
		r := pmem.NewHeap(arenas * arena)
		for i := range arenas {
			next := uint64(arena)
			if i == arenas-1 {
				next = 0
			}
			var raw [layout.InfoSize]byte
			in := geo.Info(layout.UEFI, [16]byte{1}, [16]byte{}, next)
			in.Encode(raw[:])
			r.Write(i*arena, raw[:])
		}
		_, err := Open(r, Options{MaxArena: arena}) // the flogs are bad, too
		if err == nil || strings.Contains(err.Error(), "in all arenas together") != refused {
			t.Errorf("%d arenas of %d lanes: %v", arenas, geo.Nfree, err)
		}
	}
}
