package clienttest

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"sync/atomic"
)

// An ackLog writes to a range of blocks of its own and remembers, for each block,
// which write was acknowledged last and which was sent last. At most one write of
// a block is outstanding, so after a crash the block holds the one or the other,
// whole; a block never acknowledged may also still be zeros.
type ackLog struct {
	sector int
	first  int64    // first block
	acked  []uint64 // by block, counted from first: number of the last write acknowledged, 0 for none
	sent   []uint64 // the last write sent
	number uint64   // of the latest write
}

func newAckLog(sector int, first, blocks int64) *ackLog {
	return &ackLog{sector: sector, first: first, acked: make([]uint64, blocks), sent: make([]uint64, blocks)}
}

const (
	window       = 32 // writes outstanding
	longestWrite = 8  // blocks
)

type extent struct{ block, blocks int } // blocks counted from first

// run writes until the connection ends, and counts in acks the blocks acknowledged.
// It returns nil when the server went away, and an error for anything else.
func (l *ackLog) run(c *client, rng *rand.Rand, acks *atomic.Int64) error {
	outstanding := map[uint64]extent{} // by cookie
	for {
		for len(outstanding) < window {
			e, ok := l.idle(rng)
			if !ok {
				break
			}
			l.number++
			outstanding[l.number] = e
			c.write(l.number, (l.first+int64(e.block))*int64(l.sector), l.payload(e))
		}
		// A failed send loses nothing: the replies that came before are still to be read.
		sendErr := c.out.Flush()
		for {
			cookie, err := c.reply()
			if err != nil {
				return serverGone(err)
			}
			e, ok := outstanding[cookie]
			if !ok {
				return fmt.Errorf("reply to cookie %d, which is not outstanding", cookie)
			}
			delete(outstanding, cookie)
			for b := range e.blocks {
				l.acked[e.block+b] = cookie
			}
			acks.Add(int64(e.blocks))
			if sendErr == nil && len(outstanding) <= window/2 {
				break
			}
		}
	}
}

// serverGone is nil for the errors that the death of the server brings. Everything
// else, above all an error reply, is one.
func serverGone(err error) error {
	var broken net.Error
	if errors.As(err, &broken) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return nil
	}
	return err
}

// idle picks blocks with no write outstanding.
func (l *ackLog) idle(rng *rand.Rand) (extent, bool) {
	for range 8 * window {
		e := extent{rng.IntN(len(l.acked)), 1 + rng.IntN(longestWrite)}
		e.blocks = min(e.blocks, len(l.acked)-e.block)
		free := 0
		for free < e.blocks && l.acked[e.block+free] == l.sent[e.block+free] {
			free++
		}
		if free == e.blocks {
			return e, true
		}
	}
	return extent{}, false
}

// payload is write l.number of the blocks of e, and marks them as sent.
func (l *ackLog) payload(e extent) []byte {
	p := make([]byte, e.blocks*l.sector)
	for b := range e.blocks {
		l.sent[e.block+b] = l.number
		l.fill(p[b*l.sector:(b+1)*l.sector], e.block+b, l.number)
	}
	return p
}

// fill makes the content of a block: the number of the write, then words that
// follow from it, the block and their place, so that no part of one block passes
// for a part of another.
//
//	0        8          16
//	| number | mix(…,1) | mix(…,2) | …
func (l *ackLog) fill(p []byte, block int, number uint64) {
	binary.LittleEndian.PutUint64(p, number)
	for i := 8; i < len(p); i += 8 {
		binary.LittleEndian.PutUint64(p[i:], mix(number<<32^uint64(l.first)+uint64(block), uint64(i)))
	}
}

// mix is the finalizer of SplitMix64.
func mix(x, y uint64) uint64 {
	x += y * 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// verify reads all blocks of the log after a crash, and takes what it finds for
// acknowledged from now on.
func (l *ackLog) verify(c *client) error {
	got, want := make([]byte, l.sector), make([]byte, l.sector)
	for b := range l.acked {
		if err := c.read(got, (l.first+int64(b))*int64(l.sector)); err != nil {
			return fmt.Errorf("block %d: %w", l.first+int64(b), err)
		}
		if err := l.judge(got, want, b); err != nil {
			return fmt.Errorf("block %d: %w (acknowledged: write %d, sent: write %d)", l.first+int64(b), err, l.acked[b], l.sent[b])
		}
		l.acked[b] = binary.LittleEndian.Uint64(got)
		l.sent[b] = l.acked[b]
	}
	return nil
}

var (
	errTorn = errors.New("torn")
	errLost = errors.New("an acknowledged write is lost")
)

// judge compares the content of block b with what it may be; want is scratch.
func (l *ackLog) judge(got, want []byte, b int) error {
	clear(want)
	number := binary.LittleEndian.Uint64(got)
	if number != 0 {
		l.fill(want, b, number)
	}
	switch {
	case string(got) != string(want):
		return fmt.Errorf("%w: begins as write %d", errTorn, number)
	case number != l.acked[b] && number != l.sent[b]:
		return fmt.Errorf("%w: holds write %d", errLost, number)
	}
	return nil
}
