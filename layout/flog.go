package layout

import (
	"encoding/binary"
	"fmt"
)

// Sizes of the flog, in bytes.
const (
	FlogGroupSize  = 64 // one lane: one cache line
	FlogRecordSize = 16
)

// FlogRecord is one 16-byte record of a lane: "pre-map block LBA moves from
// internal block Old to New". Old and New keep the flag bits found on media;
// what they mean differs between writers, so compare blocks, not words.
type FlogRecord struct {
	LBA PremapLBA
	Old MapEntry
	New MapEntry
	Seq uint32
}

// Words are the two little-endian 8-byte words of a record, in the order in
// which they must become durable: {lba, old}, then {new, seq}.
func (r FlogRecord) Words() (lbaOld, newSeq uint64) {
	return uint64(r.LBA) | uint64(r.Old)<<32, uint64(r.New) | uint64(r.Seq)<<32
}

// RecordFromWords is the inverse of [FlogRecord.Words].
func RecordFromWords(lbaOld, newSeq uint64) FlogRecord {
	return FlogRecord{
		LBA: PremapLBA(lbaOld), Old: MapEntry(lbaOld >> 32),
		New: MapEntry(newSeq), Seq: uint32(newSeq >> 32),
	}
}

// Moves reports whether the record describes a move at all. The record that a
// format writes has Old == New: the lane's free block and nothing else.
func (r FlogRecord) Moves() bool { return r.Old.Block() != r.New.Block() }

// NextSeq is the sequence number after seq: 1→2→3→1. Of 0 it is 0.
func NextSeq(seq uint32) uint32 { return [4]uint32{0, 2, 3, 1}[seq&3] }

// Padding is the place of the second record of a flog group, in records.
type Padding uint8

// The two padding schemes in existence.
const (
	PaddingNew Padding = 1 // records 0 and 1: UEFI, PMDK, Linux since 4.15
	PaddingOld Padding = 2 // records 0 and 2: Linux 4.1 to 4.14
)

func (p Padding) String() string { return fmt.Sprintf("{0,%d}", uint8(p)) }

// FlogGroup is the 64 bytes of one lane as four records; two of them are padding.
type FlogGroup [4]FlogRecord

// DecodeFlogGroup decodes the first 64 bytes of b.
func DecodeFlogGroup(b []byte) (g FlogGroup) {
	for i := range g {
		r := b[i*FlogRecordSize:]
		g[i] = RecordFromWords(binary.LittleEndian.Uint64(r), binary.LittleEndian.Uint64(r[8:]))
	}
	return g
}

// Encode writes the group into the first 64 bytes of b.
func (g FlogGroup) Encode(b []byte) {
	for i, r := range g {
		lbaOld, newSeq := r.Words()
		binary.LittleEndian.PutUint64(b[i*FlogRecordSize:], lbaOld)
		binary.LittleEndian.PutUint64(b[i*FlogRecordSize+8:], newSeq)
	}
}

// InitialFlogGroup is what a format of a namespace writes for a lane: a record that
// claims the lane's own free block. See [Flavour.LoneFlogGroup].
func InitialFlogGroup(lane Lane, externalNLBA uint32) FlogGroup {
	return Flavour{}.LoneFlogGroup(PremapLBA(lane), PostmapLBA(externalNLBA)+PostmapLBA(lane))
}

// Current tells in which record, 0 or int(p), the lane's state is. It fails when
// the sequence numbers do not say: both zero, equal, or out of range.
func (g *FlogGroup) Current(p Padding) (int, error) {
	first, second := g[0].Seq, g[p].Seq
	switch {
	case first > 3 || second > 3:
		return 0, fmt.Errorf("sequence numbers %d and %d: at most 3 is possible", first, second)
	case first == second:
		return 0, fmt.Errorf("sequence numbers %d and %d: one must be newer", first, second)
	case first == 0:
		return int(p), nil
	case second == 0:
		return 0, nil
	case NextSeq(first) == second:
		return int(p), nil
	}
	return 0, nil
}

// PaddingDetector finds the padding scheme of an arena from its flog groups, by
// the rules of Linux log_set_indices: the first group with a second non-zero
// record decides, all later ones must agree, and none at all means [PaddingNew].
type PaddingDetector struct {
	found Padding // 0: no group has told yet
}

// Add looks at the group of one lane.
func (d *PaddingDetector) Add(g *FlogGroup) error {
	if g[0] == (FlogRecord{}) {
		return fmt.Errorf("record 0 is empty")
	}
	for i := Padding(1); i < 4; i++ {
		switch {
		case g[i] == (FlogRecord{}) || i == d.found:
		case d.found == 0 && i != 3:
			d.found = i
		case d.found == 0:
			return fmt.Errorf("record 3 is used: neither padding {0,1} nor {0,2}")
		default:
			return fmt.Errorf("record %d is used, but the lanes before it have padding %v", i, d.found)
		}
	}
	return nil
}

// Padding is the scheme found.
func (d *PaddingDetector) Padding() Padding {
	if d.found == 0 {
		return PaddingNew
	}
	return d.found
}
