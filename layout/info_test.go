package layout

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"math"
	"math/rand/v2"
	"reflect"
	"slices"
	"testing"

	"github.com/google/uuid"
)

// rawUUID is a UUID from its bytes on media, written in hexadecimal.
func rawUUID(t testing.TB, s string) uuid.UUID {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil || len(b) != 16 {
		t.Fatalf("bad test vector %q: %v", s, err)
	}
	return uuid.UUID(b)
}

// goldenInfos are info blocks that other programs wrote, with their checksums.
func goldenInfos(t testing.TB) map[string]struct {
	info Info
	sum  uint64
} {
	return map[string]struct {
		info Info
		sum  uint64
	}{
		"ndctl btt-pad-compat": {Info{
			UUID: rawUUID(t, "f0d64d517ad444e287576b8e8e4f7500"), Major: 2,
			ExternalLBASize: 4096, ExternalNLBA: 16105, InternalLBASize: 4096, InternalNLBA: 16361,
			Nfree: 256, InfoSize: 4096, DataOff: 0x1000, MapOff: 0x3feb000, FlogOff: 0x3ffb000, InfoOff: 0x3fff000,
		}, 0x29d8a903ca55b75d},
		"pmempool 1.12.1": {Info{
			UUID:       rawUUID(t, "109b9fbd920d8e4c960c892364a67ee1"),
			ParentUUID: rawUUID(t, "cc72340b0ddf964ca5878f061448cac2"), Major: 1, Minor: 1,
			ExternalLBASize: 4096, ExternalNLBA: 7919, InternalLBASize: 4096, InternalNLBA: 8175,
			Nfree: 256, InfoSize: 4096, DataOff: 0x1000, MapOff: 0x1ff1000, FlogOff: 0x1ff9000, InfoOff: 0x1ffd000,
		}, 0x5011b101323dc217},
	}
}

func TestInfoGolden(t *testing.T) {
	// Goal: our bytes and checksum are those of ndctl and PMDK, whose blocks are
	// rebuilt from their fields, and such a block reads back and is accepted.
	for name, c := range goldenInfos(t) {
		t.Run(name, func(t *testing.T) {
			var b [InfoSize]byte
			c.info.Encode(b[:])
			if got := binary.LittleEndian.Uint64(b[4088:]); got != c.sum {
				t.Errorf("checksum %#x, want %#x", got, c.sum)
			}
			got, err := DecodeInfo(b[:])
			if err != nil || got != c.info {
				t.Errorf("read back %+v, %v; want %+v", got, err, c.info)
			}
			if err := got.Validate(got.InfoOff + InfoSize); err != nil {
				t.Errorf("not accepted: %v", err)
			}
		})
	}
}

func TestInfoFieldPlaces(t *testing.T) {
	// Goal: every field stands where the format says, little-endian. Method: one
	// field at a time is set to a recognisable value and looked for in the bytes.
	fields := []struct {
		name string
		at   int
		set  func(*Info)
		want []byte
	}{
		{"uuid", 16, func(i *Info) { i.UUID = uuid.UUID{0xa1, 15: 0xa2} }, append(append([]byte{0xa1}, make([]byte, 14)...), 0xa2)},
		{"parent_uuid", 32, func(i *Info) { i.ParentUUID = uuid.UUID{0xb1, 15: 0xb2} }, append(append([]byte{0xb1}, make([]byte, 14)...), 0xb2)},
		{"flags", 48, func(i *Info) { i.Flags = 0x04030201 }, []byte{1, 2, 3, 4}},
		{"major", 52, func(i *Info) { i.Major = 0x0201 }, []byte{1, 2}},
		{"minor", 54, func(i *Info) { i.Minor = 0x0201 }, []byte{1, 2}},
		{"external_lbasize", 56, func(i *Info) { i.ExternalLBASize = 0x04030201 }, []byte{1, 2, 3, 4}},
		{"external_nlba", 60, func(i *Info) { i.ExternalNLBA = 0x04030201 }, []byte{1, 2, 3, 4}},
		{"internal_lbasize", 64, func(i *Info) { i.InternalLBASize = 0x04030201 }, []byte{1, 2, 3, 4}},
		{"internal_nlba", 68, func(i *Info) { i.InternalNLBA = 0x04030201 }, []byte{1, 2, 3, 4}},
		{"nfree", 72, func(i *Info) { i.Nfree = 0x04030201 }, []byte{1, 2, 3, 4}},
		{"infosize", 76, func(i *Info) { i.InfoSize = 0x04030201 }, []byte{1, 2, 3, 4}},
		{"nextoff", 80, func(i *Info) { i.NextOff = 0x0807060504030201 }, []byte{1, 2, 3, 4, 5, 6, 7, 8}},
		{"dataoff", 88, func(i *Info) { i.DataOff = 0x0807060504030201 }, []byte{1, 2, 3, 4, 5, 6, 7, 8}},
		{"mapoff", 96, func(i *Info) { i.MapOff = 0x0807060504030201 }, []byte{1, 2, 3, 4, 5, 6, 7, 8}},
		{"flogoff", 104, func(i *Info) { i.FlogOff = 0x0807060504030201 }, []byte{1, 2, 3, 4, 5, 6, 7, 8}},
		{"infooff", 112, func(i *Info) { i.InfoOff = 0x0807060504030201 }, []byte{1, 2, 3, 4, 5, 6, 7, 8}},
	}
	if want := reflect.TypeFor[Info]().NumField(); len(fields) != want {
		t.Fatalf("the table has %d fields, Info has %d", len(fields), want)
	}
	for _, f := range fields {
		var in Info
		f.set(&in)
		var b [InfoSize]byte
		in.Encode(b[:])
		want := make([]byte, 4088)
		copy(want, "BTT_ARENA_INFO")
		copy(want[f.at:], f.want)
		if !slices.Equal(b[:4088], want) {
			t.Errorf("%s: not the bytes % x at %d and zeros elsewhere", f.name, f.want, f.at)
		}
	}
}

func TestDecodeInfoRefuses(t *testing.T) {
	// Goal: what is no info block and what is a damaged one are told apart, and no
	// single flipped bit of a block goes unnoticed. Method: flip them all.
	info := goldenInfos(t)["pmempool 1.12.1"].info
	var b [InfoSize]byte
	info.Encode(b[:])
	for bit := range InfoSize * 8 {
		b[bit/8] ^= 1 << (bit % 8)
		_, err := DecodeInfo(b[:])
		want := ErrChecksum
		if bit < 16*8 {
			want = ErrNoSignature
		}
		if !errors.Is(err, want) {
			t.Errorf("byte %d bit %d flipped: %v, want %v", bit/8, bit%8, err, want)
		}
		b[bit/8] ^= 1 << (bit % 8)
	}
	if HasSignature(b[:15]) || HasSignature(nil) || !HasSignature(b[:16]) {
		t.Error("HasSignature: 15 and 0 bytes are too few for a signature, 16 are enough")
	}
}

func TestPatchFlags(t *testing.T) {
	// Goal: flags and checksum change, and not a byte more, not even a reserved one.
	info := goldenInfos(t)["pmempool 1.12.1"].info
	var b [InfoSize]byte
	info.Encode(b[:])
	b[200] = 0x77 // reserved; PatchFlags must make the checksum cover it
	before := b
	PatchFlags(b[:], FlagError)
	info.Flags = FlagError
	if got, err := DecodeInfo(b[:]); err != nil || got != info {
		t.Errorf("after the patch: %+v, %v; want %+v", got, err, info)
	}
	for i := range b {
		if b[i] != before[i] && !(i >= 48 && i < 52) && i < 4088 {
			t.Errorf("byte %d changed from %#x to %#x", i, before[i], b[i])
		}
	}
}

// Goal: four words at a time are added up as one by one. Method: the definition
// beside it, for every length and every part that counts as zeros.
func TestFletcher64Definition(t *testing.T) {
	b := make([]byte, 19*4)
	rand.NewChaCha8([32]byte{}).Read(b)
	for end := 0; end <= len(b); end += 4 {
		for from := 0; from <= end; from += 4 {
			for to := from; to <= end; to += 4 {
				var lo, hi uint32
				for i := 0; i < end; i += 4 {
					if i < from || i >= to {
						lo += binary.LittleEndian.Uint32(b[i:])
					}
					hi += lo
				}
				if got, want := Fletcher64(b[:end], from, to), uint64(hi)<<32|uint64(lo); got != want {
					t.Fatalf("of %d bytes, %d to %d zeros: %#x, want %#x", end, from, to, got, want)
				}
			}
		}
	}
}

func TestFletcher64(t *testing.T) {
	// Goal: the sums by hand, and the rule that words counted as zero move the high
	// sum on all the same.
	le := func(words ...uint32) (b []byte) {
		for _, w := range words {
			b = binary.LittleEndian.AppendUint32(b, w)
		}
		return b
	}
	for _, c := range []struct {
		words    []uint32
		from, to int
		want     uint64
	}{
		{nil, 0, 0, 0},
		{[]uint32{1, 2, 3}, 0, 0, 10<<32 | 6},  // lo 1 3 6, hi 1 4 10
		{[]uint32{1, 2, 3}, 4, 8, 6<<32 | 4},   // lo 1 1 4, hi 1 2 6
		{[]uint32{1, 2, 3}, 8, 12, 7<<32 | 3},  // lo 1 3 3, hi 1 4 7
		{[]uint32{1, 2, 3}, 0, 12, 0},          // nothing counts
		{[]uint32{math.MaxUint32, 2}, 0, 0, 1}, // lo -1 1, hi -1 0
	} {
		if got := Fletcher64(le(c.words...), c.from, c.to); got != c.want {
			t.Errorf("%v, zero from %d to %d: %#x, want %#x", c.words, c.from, c.to, got, c.want)
		}
	}
}

func TestValidateNamesField(t *testing.T) {
	// Goal: each field made impossible is the one that the error names. Method: the
	// same sound block with one change at a time.
	good := goldenInfos(t)["ndctl btt-pad-compat"].info
	avail := good.InfoOff + InfoSize
	for _, c := range []struct {
		field  string
		breaks func(*Info)
	}{
		{"infosize", func(i *Info) { i.InfoSize = 0 }},
		{"infosize", func(i *Info) { i.InfoSize = 8192 }},
		{"external_lbasize", func(i *Info) { i.ExternalLBASize = 0 }},
		{"nfree", func(i *Info) { i.Nfree = 0 }},
		{"external_nlba", func(i *Info) { i.ExternalNLBA = 0 }},
		{"internal_nlba", func(i *Info) { i.InternalNLBA++ }},
		{"internal_nlba", func(i *Info) { i.Nfree++ }},
		{"internal_nlba", func(i *Info) { i.ExternalNLBA-- }},
		{"internal_nlba", func(i *Info) { i.ExternalNLBA, i.InternalNLBA = 1<<30, 1<<30+256 }},
		{"internal_nlba", func(i *Info) { i.ExternalNLBA = math.MaxUint32; i.InternalNLBA = 255 }}, // their sum wraps
		{"internal_lbasize", func(i *Info) { i.InternalLBASize = 4088 }},
		{"internal_lbasize", func(i *Info) { i.InternalLBASize = 4100 }},
		{"internal_lbasize", func(i *Info) { i.InternalLBASize = 1<<31 + 8 }},
		{"dataoff", func(i *Info) { i.DataOff = 0 }},
		{"dataoff", func(i *Info) { i.DataOff = 4100 }},
		{"mapoff", func(i *Info) { i.InternalLBASize = 4104 }}, // data run into the map
		{"mapoff", func(i *Info) { i.DataOff = 1 << 63 }},
		{"mapoff", func(i *Info) { i.MapOff += 8 }},
		{"mapoff", func(i *Info) { i.MapOff = 4096 }},
		{"flogoff", func(i *Info) { i.MapOff += 4096 }}, // the map runs into the flog
		{"flogoff", func(i *Info) { i.FlogOff -= 4096 }},
		{"flogoff", func(i *Info) { i.FlogOff += 64 }},
		{"flogoff", func(i *Info) { i.FlogOff = 0 }},
		{"infooff", func(i *Info) { i.FlogOff += 4096 }}, // the flog runs into the backup
		{"infooff", func(i *Info) { i.InfoOff -= 4096 }},
		{"infooff", func(i *Info) { i.InfoOff += 8 }},
		{"infooff", func(i *Info) { i.InfoOff += 4096 }}, // outside
		{"infooff", func(i *Info) { i.InfoOff = math.MaxUint64 &^ 4095 }},
		{"nextoff", func(i *Info) { i.NextOff = 4096 }},
		{"nextoff", func(i *Info) { i.NextOff = i.InfoOff + InfoSize }}, // outside
		{"nextoff", func(i *Info) { i.NextOff = math.MaxUint64 }},
	} {
		in := good
		c.breaks(&in)
		var field *FieldError
		if err := in.Validate(avail); !errors.As(err, &field) {
			t.Errorf("%+v: error %v, want one about %s", in, err, c.field)
		} else if field.Field != c.field {
			t.Errorf("%+v: the error names %s, want %s", in, field.Field, c.field)
		}
	}
}

func TestValidateEdges(t *testing.T) {
	// Goal: what the format leaves free is accepted, and what ends exactly at the
	// limit; a byte less, or an unaligned next arena, is not.
	good := goldenInfos(t)["ndctl btt-pad-compat"].info
	avail := good.InfoOff + InfoSize
	for _, ok := range []func(*Info){
		func(i *Info) {},
		func(i *Info) { i.Flags = FlagError },
		func(i *Info) { i.MapOff -= 4096 }, // slack behind the map is allowed
		func(i *Info) { i.ExternalLBASize = 512 },
	} {
		in := good
		ok(&in)
		if err := in.Validate(avail); err != nil {
			t.Errorf("%+v: %v, want it accepted", in, err)
		}
	}
	next := good
	next.NextOff = avail
	if err := next.Validate(avail + InfoSize); err != nil {
		t.Errorf("a next arena right behind: %v, want it accepted", err)
	}
	next.NextOff = avail + 8
	var field *FieldError
	if err := next.Validate(avail + 1<<20); !errors.As(err, &field) || field.Field != "nextoff" {
		t.Errorf("a next arena that is not aligned: %v, want an error about nextoff", err)
	}
	if err := good.Validate(avail - 1); err == nil {
		t.Error("an arena that is cut short by a byte is accepted")
	}
}

func FuzzDecodeInfo(f *testing.F) {
	// Goal: whatever the bytes, nothing panics; a block that decodes encodes to the
	// same fields; and what Validate accepts has all its areas inside, in order.
	// Method: fuzz the first 120 bytes, the fields; the checksum is made right when
	// fix is set, since no fuzzer finds it.
	for _, c := range goldenInfos(f) {
		var b [InfoSize]byte
		c.info.Encode(b[:])
		f.Add(b[:120], uint64(1)<<26, true)
		f.Add(b[:120], uint64(1)<<26, false)
	}
	f.Add([]byte{}, uint64(0), false)
	f.Fuzz(func(t *testing.T, fields []byte, avail uint64, fix bool) {
		var b [InfoSize]byte
		copy(b[:4088], fields)
		if fix {
			binary.LittleEndian.PutUint64(b[4088:], Fletcher64(b[:], 4088, 4096))
		}
		in, err := DecodeInfo(b[:])
		if err == nil {
			var again [InfoSize]byte
			in.Encode(again[:])
			if got, err := DecodeInfo(again[:]); err != nil || got != in {
				t.Fatalf("decoded again: %+v, %v; want %+v", got, err, in)
			}
		}
		if in.Validate(avail) == nil {
			mustBeInside(t, &in, avail)
		}
	})
}

// mustBeInside checks, with arithmetic that cannot wrap, that the areas of an
// accepted info block are in order, apart, large enough and within avail bytes.
func mustBeInside(t *testing.T, in *Info, avail uint64) {
	t.Helper()
	for _, off := range []uint64{in.DataOff, in.MapOff, in.FlogOff, in.InfoOff, in.NextOff} {
		if off > avail {
			t.Fatalf("%+v: offset %d is outside of %d bytes", in, off, avail)
		}
	}
	if in.InternalNLBA > 1<<30 || in.InternalLBASize > 1<<31 {
		t.Fatalf("%+v: blocks %d of %d bytes", in, in.InternalNLBA, in.InternalLBASize)
	}
	for _, a := range []struct{ end, next uint64 }{
		{InfoSize, in.DataOff},
		{in.DataOff + uint64(in.InternalNLBA)*uint64(in.InternalLBASize), in.MapOff},
		{in.MapOff + uint64(in.ExternalNLBA)*4, in.FlogOff},
		{in.FlogOff + uint64(in.Nfree)*64, in.InfoOff},
		{in.InfoOff + InfoSize, avail},
	} {
		if a.end > a.next {
			t.Fatalf("%+v: an area ends at %d, the next begins at %d", in, a.end, a.next)
		}
	}
	if in.NextOff != 0 && (in.NextOff < in.InfoOff+InfoSize || avail-in.NextOff < InfoSize) {
		t.Fatalf("%+v: the next arena at %d has no room in %d bytes", in, in.NextOff, avail)
	}
}
