package layout

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/google/uuid"
)

// Places in a pmemblk pool, in bytes. (PMDK src/common/pool_hdr.h,
// src/libpmemblk/blk.h; for pages of 4 KiB.)
//
//	  0   8 "PMEMBLK\0"            128  8 alignments of C types, a nibble each
//	  8   4 major = 1              136  1 class: 2 = 64 bits
//	 12   4 compat features        137  1 data: 1 = little-endian
//	 16   4 incompat features      142  2 machine (ELF)
//	 20   4 ro_compat features     144    zero
//	 24  16 poolset uuid          4024 64 shutdown state: usc u64, uuid u64,
//	 40  16 uuid of this part             dirty u8, 39 reserved, checksum u64
//	 56  4 × 16 previous and next 4088  8 checksum
//	        part and replica      4096  4 block size
//	120   8 creation, unix time   4100  4 1: was all zeros when created
//	                              4104  8 addr, 4112 size, 4128 data, 4136 size
//	                                      of data: what the last user had mapped
//	                              8192    arena 0
const (
	PoolHeaderSize = 4096 // the part with the checksum
	PoolDataOff    = 8192

	offPoolMajor      = 8
	offPoolCompat     = 12
	offPoolIncompat   = 16
	offPoolROCompat   = 20
	offPoolPoolset    = 24
	offPoolUUID       = 40
	offPoolLinks      = 56
	offPoolCreated    = 120
	offPoolAlignDesc  = 128
	offPoolClass      = 136
	offPoolData       = 137
	offPoolMachine    = 142
	offPoolShutdown   = 4024
	offPoolChecksum   = 4088
	offPoolBlockSize  = 4096
	offPoolZeroed     = 4100
	offPoolSize       = 4112
	offPoolDataAddr   = 4128
	offPoolDataSize   = 4136
	poolChecksumShort = 2048 // where the checksum ends with [PoolCksum2K]
)

// PoolSignature is what a pmemblk pool begins with.
var PoolSignature = [8]byte{'P', 'M', 'E', 'M', 'B', 'L', 'K'}

// Feature bits of a pool header.
const (
	PoolCheckBadBlocks uint32 = 1 << 0 // compat

	PoolSingleHdr uint32 = 1 << 0 // incompat: only the first part has a header
	PoolCksum2K   uint32 = 1 << 1 // incompat: the checksum covers the first half of the header
	PoolSDS       uint32 = 1 << 2 // incompat: there is a shutdown state

	poolKnownIncompat = PoolSingleHdr | PoolCksum2K | PoolSDS

	// What pools of PMDK 1.12 have.
	poolCompat   = PoolCheckBadBlocks
	poolIncompat = PoolCksum2K | PoolSDS
)

// ELF machine numbers that PMDK was built for.
const (
	MachineAMD64 = 62
	MachineARM64 = 183
	MachinePPC64 = 21 // has pages of 64 KiB, and headers as large
)

// PMDK's alignments of char, short, int, long, long long, size_t, off_t, float,
// double, long double and pointers, less 1. They are the same on all machines.
const poolAlignDesc = 0x000007f737777310

// Why the first page is not a pool header.
var (
	// ErrNoPool: the page does not begin with PMEMBLK.
	ErrNoPool = errors.New("no pool signature")
	// ErrPoolChecksum: the signature is there but the checksum is wrong.
	ErrPoolChecksum = errors.New("bad pool header checksum")
)

// PoolHeader is a decoded pool header with the descriptor behind it.
type PoolHeader struct {
	Major    uint32
	Compat   uint32
	Incompat uint32
	ROCompat uint32
	Poolset  uuid.UUID    // bytes as they stand on media; the BTT's parent
	UUID     uuid.UUID    // of this part of the pool set
	Links    [4]uuid.UUID // previous and next part, previous and next replica
	Created  uint64       // unix time in seconds
	Align    uint64
	Class    uint8
	Data     uint8
	Machine  uint16
	Shutdown ShutdownState

	BlockSize uint32 // external_lbasize of its BTT
	Zeroed    uint32 // not 0: PMDK may take what it has not laid out for zeros
}

// ShutdownState is what PMDK last knew of the DIMMs that a pool lies on.
type ShutdownState struct {
	Count uint64 // unsafe shutdowns; 0 where the medium does not count
	UUID  uint64 // of the DIMMs, folded; 0 likewise
	Dirty bool   // the pool was open, and was not closed
}

// HasPoolSignature reports whether b begins like a pmemblk pool.
func HasPoolSignature(b []byte) bool {
	return len(b) >= len(PoolSignature) && [8]byte(b[:8]) == PoolSignature
}

// NewPoolHeader is the header of a pool of one file as PMDK 1.12 makes it.
func NewPoolHeader(poolset, part uuid.UUID, created uint64, machine uint16, blockSize uint32) PoolHeader {
	return PoolHeader{
		Major: 1, Compat: poolCompat, Incompat: poolIncompat,
		Poolset: poolset, UUID: part, Links: [4]uuid.UUID{part, part, part, part}, Created: created,
		Align: poolAlignDesc, Class: 2, Data: 1, Machine: machine, BlockSize: blockSize,
	}
}

// DecodePoolHeader decodes the first 8192 bytes of b. It returns [ErrNoPool] or
// [ErrPoolChecksum]; with the latter the fields are returned as they stand. It
// does not judge them: see [PoolHeader.Validate].
func DecodePoolHeader(b []byte) (PoolHeader, error) {
	b = b[:PoolDataOff]
	le := binary.LittleEndian
	h := PoolHeader{
		Major:    le.Uint32(b[offPoolMajor:]),
		Compat:   le.Uint32(b[offPoolCompat:]),
		Incompat: le.Uint32(b[offPoolIncompat:]),
		ROCompat: le.Uint32(b[offPoolROCompat:]),
		Poolset:  uuid.UUID(b[offPoolPoolset:offPoolUUID]),
		UUID:     uuid.UUID(b[offPoolUUID:offPoolLinks]),
		Created:  le.Uint64(b[offPoolCreated:]),
		Align:    le.Uint64(b[offPoolAlignDesc:]),
		Class:    b[offPoolClass],
		Data:     b[offPoolData],
		Machine:  le.Uint16(b[offPoolMachine:]),
		Shutdown: ShutdownState{
			Count: le.Uint64(b[offPoolShutdown:]),
			UUID:  le.Uint64(b[offPoolShutdown+8:]),
			Dirty: b[offPoolShutdown+16] != 0,
		},
		BlockSize: le.Uint32(b[offPoolBlockSize:]),
		Zeroed:    le.Uint32(b[offPoolZeroed:]),
	}
	for i := range h.Links {
		h.Links[i] = uuid.UUID(b[offPoolLinks+16*i : offPoolLinks+16*(i+1)])
	}
	if !HasPoolSignature(b) {
		return h, ErrNoPool
	}
	if le.Uint64(b[offPoolChecksum:]) != h.checksum(b) {
		return h, ErrPoolChecksum
	}
	return h, nil
}

// Encode writes header and descriptor of a pool of size bytes into the first 8192
// bytes of b, with a clean shutdown state. `pmempool info` finds the BTT through
// the two addresses that the last user has left behind: only their distance counts.
func (h *PoolHeader) Encode(b []byte, size uint64) {
	b = b[:PoolDataOff]
	clear(b)
	le := binary.LittleEndian
	copy(b, PoolSignature[:])
	le.PutUint32(b[offPoolMajor:], h.Major)
	le.PutUint32(b[offPoolCompat:], h.Compat)
	le.PutUint32(b[offPoolIncompat:], h.Incompat)
	le.PutUint32(b[offPoolROCompat:], h.ROCompat)
	copy(b[offPoolPoolset:], h.Poolset[:])
	copy(b[offPoolUUID:], h.UUID[:])
	for i, link := range h.Links {
		copy(b[offPoolLinks+16*i:], link[:])
	}
	le.PutUint64(b[offPoolCreated:], h.Created)
	le.PutUint64(b[offPoolAlignDesc:], h.Align)
	b[offPoolClass], b[offPoolData] = h.Class, h.Data
	le.PutUint16(b[offPoolMachine:], h.Machine)
	le.PutUint64(b[offPoolChecksum:], h.checksum(b))
	le.PutUint32(b[offPoolBlockSize:], h.BlockSize)
	le.PutUint32(b[offPoolZeroed:], h.Zeroed)
	le.PutUint64(b[offPoolSize:], size)
	le.PutUint64(b[offPoolDataAddr:], PoolDataOff)
	le.PutUint64(b[offPoolDataSize:], size-PoolDataOff)
}

// checksum is that of the first page of b. What it does not cover counts as zeros.
func (h *PoolHeader) checksum(b []byte) uint64 {
	from := offPoolChecksum
	if h.Incompat&PoolCksum2K != 0 {
		from = poolChecksumShort
	}
	return Fletcher64(b[:PoolHeaderSize], from, PoolHeaderSize)
}

// Validate judges the fields of a header with a right checksum: whether this is a
// pool of one file that can be used here. The first wrong field is returned as a
// [*PoolFieldError].
func (h *PoolHeader) Validate() error {
	for _, c := range []struct {
		ok    bool
		field string
		value any
		want  string
	}{
		{h.Major == 1, "major", h.Major, "1"},
		{h.Incompat&^poolKnownIncompat == 0, "incompat features", h.Incompat, "none but those known here (0x7): a newer program made the pool"},
		{h.Class == 2 && h.Data == 1, "architecture", fmt.Sprintf("class %d, data %d", h.Class, h.Data), "class 2, data 1 (64 bits, little-endian)"},
		{h.Machine != MachinePPC64, "machine", h.Machine, "one with pages of 4096 bytes"},
		{h.onePart(), "part and replica links", h.Links[1], "the pool's own uuid: sets of several files or replicas cannot be used"},
		{h.BlockSize > 0, "bsize", h.BlockSize, "at least 1"},
	} {
		if !c.ok {
			return &PoolFieldError{Field: c.field, Value: c.value, Want: c.want}
		}
	}
	return nil
}

// ReadOnly reports whether the pool has features that forbid writing to those who
// do not know them. None is known.
func (h *PoolHeader) ReadOnly() bool { return h.ROCompat != 0 }

func (h *PoolHeader) onePart() bool {
	for _, link := range h.Links {
		if link != h.UUID {
			return false
		}
	}
	return true
}

// GUIDText is how PMDK prints a uuid: the first three groups byte by byte from
// their ends.
func GUIDText(id uuid.UUID) string {
	id[0], id[1], id[2], id[3] = id[3], id[2], id[1], id[0]
	id[4], id[5] = id[5], id[4]
	id[6], id[7] = id[7], id[6]
	return id.String()
}
