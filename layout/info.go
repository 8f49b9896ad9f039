package layout

import (
	"encoding/binary"

	"github.com/google/uuid"
)

// InfoSize is the size of an info block in bytes.
const InfoSize = 4096

// FlagError is bit 0 of Info.Flags: the arena is in error and must not be written.
const FlagError uint32 = 1

// Byte offsets of the fields of an info block.
const (
	offSignature       = 0
	offUUID            = 16
	offParentUUID      = 32
	offFlags           = 48
	offMajor           = 52
	offMinor           = 54
	offExternalLBASize = 56
	offExternalNLBA    = 60
	offInternalLBASize = 64
	offInternalNLBA    = 68
	offNfree           = 72
	offInfoSize        = 76
	offNextOff         = 80
	offDataOff         = 88
	offMapOff          = 96
	offFlogOff         = 104
	offInfoOff         = 112
	offChecksum        = 4088
)

// Signature is what every info block begins with.
var Signature = [16]byte{'B', 'T', 'T', '_', 'A', 'R', 'E', 'N', 'A', '_', 'I', 'N', 'F', 'O'}

// SignatureWord is the first 8 bytes of [Signature], as they stand on media.
const SignatureWord = 0x4e45_5241_5f54_5442

// Info is a decoded info block. Offsets are relative to the start of its arena.
type Info struct {
	UUID            uuid.UUID // of the BTT, the bytes as they stand on media
	ParentUUID      uuid.UUID // of the namespace or pool; zero: none
	Flags           uint32
	Major, Minor    uint16
	ExternalLBASize uint32 // bytes of a block as its user sees it
	ExternalNLBA    uint32 // blocks that the user sees
	InternalLBASize uint32 // bytes of a block on media
	InternalNLBA    uint32 // blocks on media
	Nfree           uint32 // lanes
	InfoSize        uint32
	NextOff         uint64 // the next arena's start, 0 in the last one
	DataOff         uint64
	MapOff          uint64
	FlogOff         uint64
	InfoOff         uint64 // the backup copy
}

// HasSignature reports whether b begins like an info block.
func HasSignature(b []byte) bool {
	return len(b) >= len(Signature) && [16]byte(b[:16]) == Signature
}

// DecodeInfo decodes the first 4096 bytes of b. It returns [ErrNoSignature] or
// [ErrChecksum]; with the latter the fields are returned as they stand, for a
// checker to look at. It does not judge the fields: see [Info.Validate].
func DecodeInfo(b []byte) (Info, error) {
	b = b[:InfoSize]
	le := binary.LittleEndian
	in := Info{
		UUID:            uuid.UUID(b[offUUID:offParentUUID]),
		ParentUUID:      uuid.UUID(b[offParentUUID:offFlags]),
		Flags:           le.Uint32(b[offFlags:]),
		Major:           le.Uint16(b[offMajor:]),
		Minor:           le.Uint16(b[offMinor:]),
		ExternalLBASize: le.Uint32(b[offExternalLBASize:]),
		ExternalNLBA:    le.Uint32(b[offExternalNLBA:]),
		InternalLBASize: le.Uint32(b[offInternalLBASize:]),
		InternalNLBA:    le.Uint32(b[offInternalNLBA:]),
		Nfree:           le.Uint32(b[offNfree:]),
		InfoSize:        le.Uint32(b[offInfoSize:]),
		NextOff:         le.Uint64(b[offNextOff:]),
		DataOff:         le.Uint64(b[offDataOff:]),
		MapOff:          le.Uint64(b[offMapOff:]),
		FlogOff:         le.Uint64(b[offFlogOff:]),
		InfoOff:         le.Uint64(b[offInfoOff:]),
	}
	if !HasSignature(b) {
		return in, ErrNoSignature
	}
	if le.Uint64(b[offChecksum:]) != infoChecksum(b) {
		return in, ErrChecksum
	}
	return in, nil
}

// Encode writes the info block into the first 4096 bytes of b, reserved bytes
// zero, checksum last.
func (in *Info) Encode(b []byte) {
	b = b[:InfoSize]
	clear(b)
	le := binary.LittleEndian
	copy(b[offSignature:], Signature[:])
	copy(b[offUUID:], in.UUID[:])
	copy(b[offParentUUID:], in.ParentUUID[:])
	le.PutUint32(b[offFlags:], in.Flags)
	le.PutUint16(b[offMajor:], in.Major)
	le.PutUint16(b[offMinor:], in.Minor)
	le.PutUint32(b[offExternalLBASize:], in.ExternalLBASize)
	le.PutUint32(b[offExternalNLBA:], in.ExternalNLBA)
	le.PutUint32(b[offInternalLBASize:], in.InternalLBASize)
	le.PutUint32(b[offInternalNLBA:], in.InternalNLBA)
	le.PutUint32(b[offNfree:], in.Nfree)
	le.PutUint32(b[offInfoSize:], in.InfoSize)
	le.PutUint64(b[offNextOff:], in.NextOff)
	le.PutUint64(b[offDataOff:], in.DataOff)
	le.PutUint64(b[offMapOff:], in.MapOff)
	le.PutUint64(b[offFlogOff:], in.FlogOff)
	le.PutUint64(b[offInfoOff:], in.InfoOff)
	le.PutUint64(b[offChecksum:], infoChecksum(b))
}

// PatchFlags changes the flags of an encoded info block and its checksum, and
// leaves every other byte, reserved ones included, as its maker wrote it.
func PatchFlags(b []byte, flags uint32) {
	binary.LittleEndian.PutUint32(b[offFlags:], flags)
	binary.LittleEndian.PutUint64(b[offChecksum:], infoChecksum(b))
}

// PatchParent changes the parent uuid of an encoded info block as [PatchFlags] does
// the flags.
func PatchParent(b []byte, parent uuid.UUID) {
	copy(b[offParentUUID:offFlags], parent[:])
	binary.LittleEndian.PutUint64(b[offChecksum:], infoChecksum(b))
}

// PatchNext changes the distance to the next arena, in bytes, of an encoded info block
// as [PatchFlags] does the flags.
func PatchNext(b []byte, next uint64) {
	binary.LittleEndian.PutUint64(b[offNextOff:], next)
	binary.LittleEndian.PutUint64(b[offChecksum:], infoChecksum(b))
}

func infoChecksum(b []byte) uint64 { return Fletcher64(b[:InfoSize], offChecksum, InfoSize) }

// Fletcher64 is the checksum of info blocks and of PMDK pool headers over the
// little-endian 32-bit words of b: two running sums modulo 2^32. The words from
// byte zeroFrom up to zeroTo count as zero but are still iterated, which moves
// the high sum on. (UEFI 6.3.5 "Checksum"; it is not the textbook Fletcher-64,
// which reduces modulo 2^32-1.) All three are multiples of 4.
func Fletcher64(b []byte, zeroFrom, zeroTo int) uint64 {
	zeroFrom = min(zeroFrom, len(b))
	zeroTo = max(zeroFrom, min(zeroTo, len(b)))
	lo, hi := fletcher64(0, 0, b[:zeroFrom])
	hi += lo * uint32((zeroTo-zeroFrom)/4)
	lo, hi = fletcher64(lo, hi, b[zeroTo:])
	return uint64(hi)<<32 | uint64(lo)
}

// fletcher64 goes on with the sums over b, four words at a time: of the four that
// are added to lo one after the other, hi gets the first four times, the last once.
func fletcher64(lo, hi uint32, b []byte) (uint32, uint32) {
	for ; len(b) >= 16; b = b[16:] {
		a, c := binary.LittleEndian.Uint64(b), binary.LittleEndian.Uint64(b[8:])
		w0, w1, w2, w3 := uint32(a), uint32(a>>32), uint32(c), uint32(c>>32)
		hi += 4*(lo+w0) + 3*w1 + 2*w2 + w3
		lo += w0 + w1 + w2 + w3
	}
	for ; len(b) >= 4; b = b[4:] {
		lo += binary.LittleEndian.Uint32(b)
		hi += lo
	}
	return lo, hi
}
