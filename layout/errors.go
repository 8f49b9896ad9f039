package layout

import (
	"errors"
	"fmt"
)

// Why a block is not an info block.
var (
	// ErrNoSignature: the block does not begin with BTT_ARENA_INFO.
	ErrNoSignature = errors.New("no BTT signature")
	// ErrChecksum: the signature is there but the checksum is wrong.
	ErrChecksum = errors.New("bad info block checksum")
)

// FieldError names a field of an info block whose value is impossible.
type FieldError struct {
	Field string // its name in the UEFI specification, in lower case
	Value uint64
	Want  string // what would be possible
}

func (e *FieldError) Error() string {
	return fmt.Sprintf("info block field %s is %d, want %s", e.Field, e.Value, e.Want)
}

// PoolFieldError names a field of a pool header that rules its use out.
type PoolFieldError struct {
	Field string
	Value any
	Want  string
}

func (e *PoolFieldError) Error() string {
	return fmt.Sprintf("pool header %s is %v, want %s", e.Field, e.Value, e.Want)
}
