package btt

import (
	"math/bits"
	"sync"
	"sync/atomic"

	"github.com/bttnbd/bttnbd/layout"
)

// Map entries are locked by cache line, 16 entries, hashed over mapLocks locks as
// Linux and PMDK do: writers of neighbouring blocks would fight for the line
// anyway.
const (
	mapLocks       = 256
	entriesPerLine = 16
	entrySize      = 4
)

type mapLock struct {
	_ [0]atomic.Uint64 // aligns swings where words have 32 bits
	// swings counts the map entries of these lines that were swung to another block;
	// see Device.glimpse. Stored to under mu.
	swings uint64
	mu     sync.Mutex
	// unsettled counts zero and error entries of these lines that are stored but
	// not yet durable; see arena.settle.
	unsettled atomic.Int32
	_         [44]byte
}

func lockOf(lba layout.PremapLBA) uint32 { return uint32(lba) / entriesPerLine % mapLocks }

// lockSet is a set of map locks of one arena: a bit for each.
type lockSet [mapLocks / 64]uint64

func (s *lockSet) add(i uint32) { s[i/64] |= 1 << (i % 64) }

// next is the first member at or above i, or mapLocks if there is none.
func (s *lockSet) next(i uint32) uint32 {
	for ; i < mapLocks; i = (i/64 + 1) * 64 {
		if rest := s[i/64] >> (i % 64); rest != 0 {
			return i + uint32(bits.TrailingZeros64(rest))
		}
	}
	return mapLocks
}
