package check

import "fmt"

// Kind says what sort of thing a finding is. Its text is stable: scripts may
// compare it.
type Kind uint8

// The kinds of finding, in the order in which a check meets them.
const (
	InfoSignature  Kind = iota // a copy of the info block has no signature
	InfoChecksum               // a copy of the info block has a wrong checksum
	InfoVersion                // an info block stands where another version belongs
	InfoField                  // a field of an info block is impossible
	InfoCopies                 // the two copies differ
	InfoFlags                  // flags are set that nobody knows
	InfoSecond                 // there is an info block of a second BTT
	ArenaLost                  // neither copy of an arena's info block is sound
	ArenaError                 // the arena's error flag is set
	ArenaTruncated             // the file ends before the arena does
	ArenaMismatch              // the arena does not belong with arena 0
	ArenaChain                 // nextoff is not where the next arena should be
	ArenaGeometry              // the areas are not where any known writer puts them
	ArenaLimits                // sound, but some systems cannot use it
	ArenaParent                // parent_uuid is not that of the namespace or pool
	PoolHeader                 // the header of a pool is damaged, or not of this BTT
	PoolEmpty                  // a pool in which nothing is laid out yet
	SpaceUnused                // room for an arena behind the last one
	FlogPadding                // a lane does not follow the arena's padding scheme
	FlogOldPadding             // the arena has the padding of Linux before 4.15
	FlogSequence               // it is not known which record of a lane is current
	FlogLone                   // a lane has one record, and not as Linux expects it
	FlogLBA                    // a record names an LBA that does not exist
	FlogBlock                  // a record names an internal block that does not exist
	FlogInFlight               // a write was interrupted, and will be completed
	MapRange                   // a map entry names a block that does not exist
	MapInitial                 // a map entry has a block number but neither flag
	MapError                   // a map entry is marked as an error
	MapZero                    // zero entries where Linux mishandles them
	BlockDuplicate             // an internal block has more than one owner
	BlockOrphan                // an internal block has no owner

	numKinds
)

var kindNames = [numKinds]string{
	"info-signature", "info-checksum", "info-version", "info-field", "info-copies", "info-flags", "info-second",
	"arena-lost", "arena-error", "arena-truncated", "arena-mismatch", "arena-chain", "arena-geometry", "arena-limits",
	"arena-parent", "pool-header", "pool-empty",
	"space-unused",
	"flog-padding", "flog-old-padding", "flog-sequence", "flog-lone", "flog-lba", "flog-block", "flog-in-flight",
	"map-range", "map-initial", "map-error", "map-zero",
	"block-duplicate", "block-orphan",
}

// String is the kind's stable code.
func (k Kind) String() string {
	if k < numKinds {
		return kindNames[k]
	}
	return fmt.Sprintf("kind(%d)", uint8(k))
}

// MarshalText is String, for JSON.
func (k Kind) MarshalText() ([]byte, error) { return []byte(k.String()), nil }

// UnmarshalText is the inverse of MarshalText.
func (k *Kind) UnmarshalText(b []byte) error {
	for i, name := range kindNames {
		if name == string(b) {
			*k = Kind(i)
			return nil
		}
	}
	return fmt.Errorf("unknown kind of finding %q", b)
}

// Severity says how bad a finding is.
type Severity uint8

// The severities, in rising order.
const (
	Info    Severity = iota // worth knowing; nothing to do
	Warning                 // works, but not as it should
	Error                   // damage: data lost or at risk
)

var severityNames = [...]string{"info", "warning", "error"}

// String is "info", "warning" or "error".
func (s Severity) String() string {
	if int(s) < len(severityNames) {
		return severityNames[s]
	}
	return fmt.Sprintf("severity(%d)", uint8(s))
}

// MarshalText is String, for JSON.
func (s Severity) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText is the inverse of MarshalText.
func (s *Severity) UnmarshalText(b []byte) error {
	for i, name := range severityNames {
		if name == string(b) {
			*s = Severity(i)
			return nil
		}
	}
	return fmt.Errorf("unknown severity %q", b)
}
