package nbd

import (
	"errors"
	"fmt"
	"math"
	"math/bits"
	"strings"
	"unicode/utf8"
)

// Sizes that hold where an [Export] leaves its own zero. They are those the
// protocol document assumes of a server that advertises none.
const (
	DefaultMinBlock       = 1
	DefaultPreferredBlock = 4096
	DefaultMaxPayload     = 32 << 20
)

// Export is a named backend and what the server promises about it. What it
// does not declare is not advertised and, when asked for, refused.
type Export struct {
	Name        string // at most 4096 bytes of UTF-8 without NUL; "" is the default export
	Description string // for humans, under the same limits; "" for none
	Size        uint64 // bytes, below 2^63, a multiple of MinBlock

	MinBlock       uint32 // bytes, a power of two up to 64 KiB; 0 means DefaultMinBlock
	PreferredBlock uint32 // bytes, a power of two from max(512, MinBlock); 0 means DefaultPreferredBlock
	MaxPayload     uint32 // bytes of one READ or WRITE, from PreferredBlock to 64 MiB; 0 means DefaultMaxPayload

	ReadOnly  bool // refuse WRITE, TRIM and WRITE_ZEROES
	Trim      bool // offer TRIM
	Zero      bool // offer WRITE_ZEROES
	FastZero  bool // with Zero: ZeroAt beats writing zeros, or fails at once with ENOTSUP
	MultiConn bool // a Flush covers what was completed on every connection

	// Rates that all clients of the export share: bytes of READ and WRITE, and
	// requests of any kind. 0 is no limit.
	BytesPerSecond, OpsPerSecond uint64

	Backend Backend
}

// withDefaults returns e with its zero sizes filled in.
func (e Export) withDefaults() Export {
	if e.MinBlock == 0 {
		e.MinBlock = DefaultMinBlock
	}
	if e.PreferredBlock == 0 {
		e.PreferredBlock = max(DefaultPreferredBlock, e.MinBlock)
	}
	if e.MaxPayload == 0 {
		e.MaxPayload = DefaultMaxPayload
	}
	return e
}

// check returns all that is wrong with e, whose defaults are filled in.
func (e *Export) check() error {
	var errs []error
	fail := func(format string, args ...any) {
		errs = append(errs, fmt.Errorf("export %.80q: "+format, append([]any{e.Name}, args...)...))
	}
	if !validString(e.Name) {
		fail("name must be at most %d bytes of UTF-8 without NUL", maxString)
	}
	if !validString(e.Description) {
		fail("description must be at most %d bytes of UTF-8 without NUL", maxString)
	}
	if e.Backend == nil {
		fail("no backend")
	}
	if e.Size > math.MaxInt64 {
		fail("size %d is not below 2^63", e.Size)
	}
	if !powerOfTwo(e.MinBlock) || e.MinBlock > 64<<10 {
		fail("minimum block %d is not a power of two up to 65536", e.MinBlock)
	} else if e.Size%uint64(e.MinBlock) != 0 {
		fail("size %d is not a multiple of the minimum block %d", e.Size, e.MinBlock)
	}
	if !powerOfTwo(e.PreferredBlock) || e.PreferredBlock < max(512, e.MinBlock) {
		fail("preferred block %d is not a power of two from %d", e.PreferredBlock, max(512, e.MinBlock))
	}
	if e.MaxPayload < e.PreferredBlock || e.MaxPayload > maxDiscard {
		fail("maximum payload %d is not between the preferred block %d and %d", e.MaxPayload, e.PreferredBlock, maxDiscard)
	}
	if e.FastZero && !e.Zero {
		fail("fast zero without zero")
	}
	return errors.Join(errs...)
}

// flags returns the transmission flags to advertise under t.
func (e *Export) flags(t *terms) uint16 {
	f := uint16(NBD_FLAG_HAS_FLAGS | NBD_FLAG_SEND_FLUSH | NBD_FLAG_SEND_FUA | NBD_FLAG_SEND_CACHE)
	if t.chunks() {
		f |= NBD_FLAG_SEND_DF
	}
	if t.extended && t.contexts != 0 && t.contextsFor == e.Name {
		f |= NBD_FLAG_BLOCK_STATUS_PAYLOAD
	}
	if e.MultiConn {
		f |= NBD_FLAG_CAN_MULTI_CONN
	}
	if e.ReadOnly {
		return f | NBD_FLAG_READ_ONLY
	}
	if e.Trim {
		f |= NBD_FLAG_SEND_TRIM
	}
	if e.Zero {
		f |= NBD_FLAG_SEND_WRITE_ZEROES
	}
	if e.FastZero {
		f |= NBD_FLAG_SEND_FAST_ZERO
	}
	return f
}

// validString says whether s may go over the wire as a string.
func validString(s string) bool {
	return len(s) <= maxString && utf8.ValidString(s) && strings.IndexByte(s, 0) < 0
}

func powerOfTwo(n uint32) bool { return bits.OnesCount32(n) == 1 }
