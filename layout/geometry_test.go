package layout

import (
	"math"
	"slices"
	"testing"

	"github.com/google/uuid"
)

func TestGeometryGolden(t *testing.T) {
	// Goal: our geometry is that of the kernel, PMDK and pools seen in the field. A
	// field of want that is 0 was not recorded by whoever saw the image.
	const MiB, GiB = 1 << 20, 1 << 30
	for _, c := range []struct {
		name   string
		raw    uint64 // container size less the start of arena 0
		sector uint32
		align  uint32
		want   Geometry
	}{
		{"v2.0 64 MiB", 64 * MiB, 4096, 64, Geometry{InternalNLBA: 16361, ExternalNLBA: 16105, MapOff: 0x3feb000, FlogOff: 0x3ffb000, InfoOff: 0x3fff000}},
		{"v1.1 64 MiB", 64*MiB - 4096, 4096, 64, Geometry{InternalNLBA: 16360, ExternalNLBA: 16104, MapOff: 67018752, FlogOff: 67084288, InfoOff: 67100672}},
		{"v2.0 32 GiB", 32 * GiB, 4096, 64, Geometry{InternalNLBA: 8380416, ExternalNLBA: 8380160, MapOff: 34326196224, FlogOff: 34359717888, InfoOff: 34359734272}},
		{"v1.1 32 MiB", 32*MiB - 4096, 4096, 64, Geometry{InternalNLBA: 8176, ExternalNLBA: 7920, MapOff: 33497088, FlogOff: 33529856, InfoOff: 33546240}},
		{"v1.1 8 GiB", 8*GiB - 4096, 4096, 64, Geometry{ExternalNLBA: 2094842}},
		{"pool 32 MiB 4096", 32*MiB - 8192, 4096, 256, Geometry{InternalNLBA: 8175, ExternalNLBA: 7919, MapOff: 0x1ff1000, FlogOff: 0x1ff9000, InfoOff: 0x1ffd000}},
		{"pool 32 MiB 512", 32*MiB - 8192, 512, 256, Geometry{InternalNLBA: 64956, ExternalNLBA: 64700, MapOff: 33263616, FlogOff: 33525760, InfoOff: 33542144}},
		{"pool 1 GiB 512", GiB - 8192, 512, 256, Geometry{InternalNLBA: 2080823, ExternalNLBA: 2080567, MapOff: 1065390080}},
		{"v2.0 512 GiB 512", 512 * GiB, 512, 64, Geometry{InternalNLBA: 1065418188, ExternalNLBA: 1065417932, MapOff: 545494118400, FlogOff: 549755793408, InfoOff: 549755809792}},
		{"v2.0 64 MiB and a bit", 64*MiB + 4095, 4096, 64, Geometry{InternalNLBA: 16361, ExternalNLBA: 16105, MapOff: 0x3feb000, FlogOff: 0x3ffb000, InfoOff: 0x3fff000}},
	} {
		t.Run(c.name, func(t *testing.T) {
			g, err := NewGeometry(c.raw, Params{ExternalLBASize: c.sector, Nfree: DefaultNfree, Align: c.align})
			if err != nil {
				t.Fatal(err)
			}
			for _, f := range []struct {
				name      string
				got, want uint64
			}{
				{"internal_nlba", uint64(g.InternalNLBA), uint64(c.want.InternalNLBA)},
				{"external_nlba", uint64(g.ExternalNLBA), uint64(c.want.ExternalNLBA)},
				{"mapoff", g.MapOff, c.want.MapOff},
				{"flogoff", g.FlogOff, c.want.FlogOff},
				{"infooff", g.InfoOff, c.want.InfoOff},
			} {
				if f.want != 0 && f.got != f.want {
					t.Errorf("%s is %d, want %d", f.name, f.got, f.want)
				}
			}
		})
	}
	sizes := map[uint64]uint64{32440320: 32*MiB - 4096, 8580472832: 8*GiB - 4096} // seen disk size: raw size
	for want, raw := range sizes {
		g, err := NewGeometry(raw, Params{ExternalLBASize: 4096, Nfree: 256, Align: 64})
		if got := uint64(g.ExternalNLBA) * 4096; err != nil || got != want {
			t.Errorf("raw size %d: disk of %d bytes, %v; want %d", raw, got, err, want)
		}
	}
}

func TestInternalBlockSizes(t *testing.T) {
	// Goal: the internal block sizes of the kernel (64) and of PMDK (256) for the
	// seven sector sizes that the kernel offers.
	for _, c := range []struct{ external, kernel, pmdk uint32 }{
		{512, 512, 512}, {520, 576, 768}, {528, 576, 768}, {4096, 4096, 4096},
		{4104, 4160, 4352}, {4160, 4160, 4352}, {4224, 4224, 4352},
	} {
		for align, want := range map[uint32]uint32{64: c.kernel, 256: c.pmdk} {
			g, err := NewGeometry(MinArenaSize, Params{ExternalLBASize: c.external, Nfree: 256, Align: align})
			if err != nil || g.InternalLBASize != want {
				t.Errorf("sector %d, alignment %d: internal size %d, %v; want %d", c.external, align, g.InternalLBASize, err, want)
			}
		}
	}
}

func TestNewGeometryRefuses(t *testing.T) {
	// Goal: sizes into which nothing fits, and those whose blocks could not be named,
	// are refused and not wrapped around.
	for _, c := range []struct {
		name string
		size uint64
		p    Params
	}{
		{"no sector size", MinArenaSize, Params{0, 256, 64, 0}},
		{"no lanes", MinArenaSize, Params{4096, 0, 64, 0}},
		{"no alignment", MinArenaSize, Params{4096, 256, 0, 0}},
		{"nothing", 0, Params{4096, 256, 64, 0}},
		{"only the fixed areas", 2*4096 + 4096 + 4096, Params{4096, 1, 64, 0}},
		{"lanes only", 4*4096 + 5*4096, Params{4096, 4, 64, 0}},
		{"more blocks than 30 bits", 1 << 40, Params{512, 256, 64, 0}},
		{"everything at its largest", math.MaxUint64, Params{math.MaxUint32, math.MaxUint32, math.MaxUint32, 0}},
	} {
		if g, err := NewGeometry(c.size, c.p); err == nil {
			t.Errorf("%s: %+v, want an error", c.name, g)
		}
	}
	// One block more than the lanes is enough.
	g, err := NewGeometry(4*4096+5*4100+4095, Params{4096, 4, 64, 0})
	if err != nil || g.ExternalNLBA != 1 {
		t.Errorf("one block: %+v, %v", g, err)
	}
}

func TestSplit(t *testing.T) {
	// Goal: full arenas first, then one smaller, rounded down, if 16 MiB are left.
	const least, full = MinArenaSize, MaxArenaSize
	for _, c := range []struct {
		raw  uint64
		want []uint64
	}{
		{0, nil},
		{least - 1, nil},
		{least, []uint64{least}},
		{least + 4095, []uint64{least}},
		{least + 4096, []uint64{least + 4096}},
		{full - 1, []uint64{full - 4096}},
		{full, []uint64{full}},
		{full + least - 1, []uint64{full}},
		{full + least, []uint64{full, least}},
		{2*full + least + 12345, []uint64{full, full, least + 12288}},
		{3 * full, []uint64{full, full, full}},
	} {
		if got := Split(c.raw, least, full); !slices.Equal(got, c.want) {
			t.Errorf("%d bytes: %v, want %v", c.raw, got, c.want)
		}
	}
}

func TestFlavours(t *testing.T) {
	// Goal: probe order, places and versions, and the names of the command line.
	want := []Flavour{
		{Name: "pmemblk", Start: 8192, Major: 1, Minor: 1, Align: 256, MinBlock: 512, Pool: true, FullFlog: true, InitialZero: true},
		{Name: "kernel", Start: 4096, Major: 1, Minor: 1, Align: 64},
		{Name: "uefi", Start: 0, Major: 2, Minor: 0, Align: 64},
	}
	if got := Flavours(); !slices.Equal(got, want) {
		t.Errorf("%+v, want %+v", got, want)
	}
	for _, f := range want {
		if got, err := FlavourByName(f.Name); err != nil || got != f {
			t.Errorf("%s: %+v, %v", f.Name, got, err)
		}
	}
	if _, err := FlavourByName("zfs"); err == nil {
		t.Error("an unknown name is accepted")
	}
}

func FuzzGeometry(f *testing.F) {
	// Goal: of any parameters, either an error or an arena whose areas are in order,
	// apart and inside, that Validate accepts and that survives encoding. Validate
	// wants internal sizes in multiples of 8, so alignments are.
	f.Add(uint64(64<<20), uint32(4096), uint32(256), uint8(7), uint64(0))
	f.Add(uint64(MaxArenaSize), uint32(512), uint32(256), uint8(31), uint64(MaxArenaSize))
	f.Add(uint64(1<<24+12345), uint32(4104), uint32(256), uint8(7), uint64(0))
	f.Add(uint64(24<<10), uint32(1), uint32(1), uint8(0), uint64(1)<<20)
	f.Fuzz(func(t *testing.T, size uint64, sector, nfree uint32, align8 uint8, next uint64) {
		g, err := NewGeometry(size, Params{sector, nfree, 8 * (uint32(align8) + 1), 0})
		if err != nil {
			return
		}
		if g.Size > size || size-g.Size >= 4096 {
			t.Fatalf("%d of %d bytes used", g.Size, size)
		}
		in := g.Info(Kernel, uuid.UUID{1}, uuid.UUID{2}, 0)
		if err := in.Validate(size); err != nil {
			t.Fatalf("%+v: %v", g, err)
		}
		mustBeInside(t, &in, size)
		if got := in.Geometry(); got != g {
			t.Fatalf("geometry of its own info block: %+v, want %+v", got, g)
		}
		in.NextOff = next
		var b [InfoSize]byte
		in.Encode(b[:])
		if got, err := DecodeInfo(b[:]); err != nil || got != in {
			t.Fatalf("decoded %+v, %v; want %+v", got, err, in)
		}
	})
}
