package layout

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/google/uuid"
)

// goldenPool is the start of a pool made by PMDK 1.12.1 with `pmempool create blk
// 4096 --size 32M -w`: what is not zero of its first two pages.
func goldenPool(t *testing.T) []byte {
	t.Helper()
	b := make([]byte, PoolDataOff)
	put := func(off int, text string) {
		raw, err := hex.DecodeString(text)
		if err != nil {
			t.Fatal(err)
		}
		copy(b[off:], raw)
	}
	const part = "771882d6ba475f4c939699309261aa56"
	put(0, "504d454d424c4b0001000000010000000600000000000000"+"5ca1be389e67a947bcdec080909fa2f1"+strings.Repeat(part, 5)+
		"5e17016b00000000"+"10737737f7070000"+"0201000000003e00")
	put(4088, "f56dcd35ee01119c"+"00100000"+"01000000"+"0000a0d4107f0000"+"0000000200000000"+"0000000000000000"+"0020a0d4107f0000"+"00e0ff0100000000")
	return b
}

var goldenPart = uuid.UUID{0x77, 0x18, 0x82, 0xd6, 0xba, 0x47, 0x5f, 0x4c, 0x93, 0x96, 0x99, 0x30, 0x92, 0x61, 0xaa, 0x56}

func TestPoolHeaderGolden(t *testing.T) {
	// Goal: a header that PMDK made is understood and accepted, its uuids read as
	// pmempool prints them, and ours is the same in every byte but the addresses.
	b := goldenPool(t)
	h, err := DecodePoolHeader(b)
	if err != nil {
		t.Fatal(err)
	}
	if err := h.Validate(); err != nil || h.ReadOnly() {
		t.Errorf("not accepted: %v, read-only %v", err, h.ReadOnly())
	}
	if got := GUIDText(h.Poolset); got != "38bea15c-679e-47a9-bcde-c080909fa2f1" {
		t.Errorf("poolset uuid %s", got)
	}
	want := NewPoolHeader(h.Poolset, goldenPart, 1795233630, MachineAMD64, 4096)
	want.Zeroed = 1
	if h != want {
		t.Errorf("got %+v\nwant %+v", h, want)
	}
	ours := make([]byte, PoolDataOff)
	want.Encode(ours, 32<<20)
	binary.LittleEndian.PutUint64(b[4104:], 0)
	binary.LittleEndian.PutUint64(b[4128:], PoolDataOff)
	if !slices.Equal(ours, b) {
		for i := range b {
			if ours[i] != b[i] {
				t.Fatalf("byte %d is %#x, want %#x", i, ours[i], b[i])
			}
		}
	}
}

func TestPoolHeaderChecksums(t *testing.T) {
	// Goal: both kinds of checksum are told apart by the feature bit: one covers
	// the whole page, the other only its first half.
	for _, c := range []struct {
		incompat uint32
		at       int
		bad      bool
	}{
		{PoolCksum2K | PoolSDS, 100, true},
		{PoolCksum2K | PoolSDS, 2047, true},
		{PoolCksum2K | PoolSDS, 2048, false},
		{PoolCksum2K | PoolSDS, 4087, false},
		{0, 100, true},
		{0, 2048, true},
		{0, 4087, true},
	} {
		h := NewPoolHeader(uuid.UUID{1}, uuid.UUID{2}, 3, MachineAMD64, 512)
		h.Incompat = c.incompat
		b := make([]byte, PoolDataOff)
		h.Encode(b, 32<<20)
		if got, err := DecodePoolHeader(b); err != nil || got != h {
			t.Errorf("incompat %#x: read back %+v, %v", c.incompat, got, err)
		}
		b[c.at] ^= 0x10
		if _, err := DecodePoolHeader(b); errors.Is(err, ErrPoolChecksum) != c.bad {
			t.Errorf("incompat %#x, byte %d flipped: %v, want bad %v", c.incompat, c.at, err, c.bad)
		}
	}
	if _, err := DecodePoolHeader(make([]byte, PoolDataOff)); !errors.Is(err, ErrNoPool) {
		t.Errorf("zeros: %v", err)
	}
}

func TestPoolHeaderValidate(t *testing.T) {
	// Goal: what cannot be used is refused by name; what is merely unknown to
	// writers makes the pool read-only; a pool of PMDK 1.3 is accepted.
	for _, c := range []struct {
		field string // "": accepted
		set   func(*PoolHeader)
	}{
		{"", func(h *PoolHeader) {}},
		{"", func(h *PoolHeader) { h.Compat, h.Incompat = 0, 0 }},
		{"", func(h *PoolHeader) { h.Compat = 0xffff_fffe }},
		{"", func(h *PoolHeader) { h.Incompat = 7 }},
		{"", func(h *PoolHeader) { h.Machine = MachineARM64 }},
		{"", func(h *PoolHeader) { h.Shutdown = ShutdownState{1, 2, true} }},
		{"major", func(h *PoolHeader) { h.Major = 2 }},
		{"incompat features", func(h *PoolHeader) { h.Incompat = 8 | 6 }},
		{"incompat features", func(h *PoolHeader) { h.Incompat = 1 << 31 }},
		{"architecture", func(h *PoolHeader) { h.Class = 1 }},
		{"architecture", func(h *PoolHeader) { h.Data = 2 }},
		{"machine", func(h *PoolHeader) { h.Machine = MachinePPC64 }},
		{"part and replica links", func(h *PoolHeader) { h.Links[1] = uuid.UUID{9} }},
		{"part and replica links", func(h *PoolHeader) { h.Links[2] = uuid.UUID{9} }},
		{"bsize", func(h *PoolHeader) { h.BlockSize = 0 }},
	} {
		h := NewPoolHeader(uuid.UUID{1}, uuid.UUID{2}, 3, MachineAMD64, 512)
		c.set(&h)
		var field *PoolFieldError
		err := h.Validate()
		if errors.As(err, &field) != (c.field != "") || field != nil && field.Field != c.field {
			t.Errorf("want a complaint about %q, got %v", c.field, err)
		}
		if h.ReadOnly() {
			t.Errorf("%+v is read-only", h)
		}
	}
	h := PoolHeader{ROCompat: 1}
	if !h.ReadOnly() {
		t.Error("an unknown ro_compat feature does not make the pool read-only")
	}
}

func TestFlavourRules(t *testing.T) {
	// Goal: a flavour's rules: what its disk looks like, and what it writes into the
	// flog for each kind of entry that it replaces.
	for ext, want := range map[uint32]uint32{
		512: 512, 520: 512, 528: 512, 1024: 1024, 4096: 4096, 4104: 4096, 4160: 4096, 4224: 4096, 8192: 8192, 65536: 65536,
	} {
		if k, p := Kernel.SectorSize(ext), PMEMBLK.SectorSize(ext); k != want || p != ext {
			t.Errorf("blocks of %d: sectors of %d in a namespace and %d in a pool", ext, k, p)
		}
	}
	for _, c := range []struct{ old, namespace, pool MapEntry }{
		{0, 7, 0xC0000007},
		{5, 7, 0xC0000007}, // the low bits of an initial entry mean nothing
		{0x40000005, 0x40000005, 0x40000005},
		{0x80000005, 5, 0x80000005},
		{0xC0000005, 5, 0xC0000005},
	} {
		if n, p := Kernel.LoggedOld(c.old, 7), PMEMBLK.LoggedOld(c.old, 7); n != c.namespace || p != c.pool {
			t.Errorf("old entry %#x is logged as %#x and %#x, want %#x and %#x", uint32(c.old), uint32(n), uint32(p), uint32(c.namespace), uint32(c.pool))
		}
	}
	if n, p := UEFI.LoggedNew(5), PMEMBLK.LoggedNew(5); n != 5 || p != 0xC0000005 {
		t.Errorf("new block 5 is logged as %#x and %#x", uint32(n), uint32(p))
	}
	for f, e := range map[Flavour]MapEntry{Kernel: 5, UEFI: 5, PMEMBLK: 0x80000005} {
		if g := f.LoneFlogGroup(3, 5); g != (FlogGroup{{3, e, e, 1}}) {
			t.Errorf("%s: lone group %+v", f.Name, g)
		}
	}
}

func TestPoolGeometry(t *testing.T) {
	// Goal: pools have the internal blocks that libpmemblk gives them, for small and
	// odd block sizes too.
	for ext, want := range map[uint32]uint32{1: 512, 100: 512, 512: 512, 513: 768, 520: 768, 1024: 1024, 4097: 4352, 65536: 65536} {
		g, err := PMEMBLK.Geometry(64<<20, ext, 256)
		if err != nil || g.InternalLBASize != want || g.ExternalLBASize != ext {
			t.Errorf("block size %d: internal %d, %v; want %d", ext, g.InternalLBASize, err, want)
		}
	}
}
