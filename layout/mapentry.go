package layout

import "fmt"

// MapEntry is one 4-byte entry of an arena's map, flags included.
type MapEntry uint32

// The parts of a MapEntry (UEFI 6.3.6, "BTT Map Entry").
const (
	EntryZero  MapEntry = 1 << 31
	EntryError MapEntry = 1 << 30
	BlockMask  MapEntry = 1<<30 - 1

	entryFlags = EntryZero | EntryError
)

// EntryState is what the two flags of a MapEntry say together.
type EntryState uint8

// The states of a map entry. Their values are the two flags, so that a state is
// found with one shift.
const (
	Initial EntryState = iota // never written: owns the block of its own number
	Error                     // reads fail with EIO
	Zero                      // reads as zeros
	Normal                    // data is in the block
)

func (s EntryState) String() string {
	return [...]string{"initial", "error", "zero", "normal"}[s&3]
}

// State tells what a read of the entry means.
func (e MapEntry) State() EntryState { return EntryState(e >> 30) }

// Block is the post-map block number without the flags. Of an initial entry it
// means nothing: use [MapEntry.Owned].
func (e MapEntry) Block() PostmapLBA { return PostmapLBA(e & BlockMask) }

// Owned is the internal block that belongs to this entry, which stands at lba in
// the map. Error and zero entries own a block as well; an initial entry owns the
// block of its own number, whatever its low bits say.
func (e MapEntry) Owned(lba PremapLBA) PostmapLBA {
	if e.State() == Initial {
		return PostmapLBA(lba)
	}
	return e.Block()
}

// NormalEntry is the entry that maps to block and holds data.
func NormalEntry(block PostmapLBA) MapEntry { return MapEntry(block) | entryFlags }

// ZeroEntry is the entry that owns block and reads as zeros.
func ZeroEntry(block PostmapLBA) MapEntry { return MapEntry(block) | EntryZero }

// ErrorEntry is the entry that owns block and whose reads fail.
func ErrorEntry(block PostmapLBA) MapEntry { return MapEntry(block) | EntryError }

func (e MapEntry) String() string {
	return fmt.Sprintf("%s:%d", e.State(), e.Block())
}
