package workload

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// A Log is a stream of writes to a range of blocks of its own, each write of one to
// [MaxBlocks] blocks and sent when the one before has been acknowledged. Where write
// n goes and what it holds follows from n, so that the number of the last write that
// was acknowledged tells what every block must hold: after a crash, that of the last
// acknowledged write that covered it, or of the one that was under way. Blocks never
// written hold zeros.
type Log struct {
	Seed   uint64
	Sector int   // bytes of a block, a multiple of 8
	First  int64 // block
	Blocks int64
}

// MaxBlocks is the most that one write covers.
const MaxBlocks = 8

// Split divides size bytes of a device among n logs.
func Split(seed uint64, sector int, size int64, n int) []Log {
	each := size / int64(sector) / int64(n)
	logs := make([]Log, n)
	for i := range logs {
		logs[i] = Log{Seed: seed + uint64(i), Sector: sector, First: int64(i) * each, Blocks: each}
	}
	return logs
}

// Write sends writes until one fails and returns its error. buf holds at least
// MaxBlocks blocks. acknowledged is called with the number of each that succeeded.
func (l Log) Write(w io.WriterAt, buf []byte, acknowledged func(n uint64) error) error {
	for n := uint64(1); ; n++ {
		first, count := l.extent(n)
		p := buf[:count*int64(l.Sector)]
		for i := range count {
			l.fill(p[i*int64(l.Sector):][:l.Sector], first+i, n)
		}
		if _, err := w.WriteAt(p, first*int64(l.Sector)); err != nil {
			return fmt.Errorf("write %d, block %d: %w", n, first, err)
		}
		if err := acknowledged(n); err != nil {
			return err
		}
	}
}

// What is wrong with a block after a crash.
var (
	ErrTorn = errors.New("torn")
	ErrLost = errors.New("an acknowledged write is lost")
)

// Verify reads all blocks after writes 1 to acked were acknowledged, and possibly
// the next one sent.
func (l Log) Verify(r io.ReaderAt, acked uint64) error {
	last := make([]uint64, l.Blocks) // by block: number of the last write acknowledged, 0 for none
	note := func(n uint64, into []uint64) {
		first, count := l.extent(n)
		for b := first; b < first+count; b++ {
			into[b-l.First] = n
		}
	}
	for n := range acked {
		note(n+1, last)
	}
	sent := append([]uint64(nil), last...)
	note(acked+1, sent)

	const chunk = 64 // blocks
	got, want := make([]byte, chunk*l.Sector), make([]byte, l.Sector)
	for i := int64(0); i < l.Blocks; i += chunk {
		n := min(chunk, l.Blocks-i)
		got = got[:n*int64(l.Sector)]
		if _, err := r.ReadAt(got, (l.First+i)*int64(l.Sector)); err != nil {
			return fmt.Errorf("block %d: %w", l.First+i, err)
		}
		for k := range n {
			block := got[k*int64(l.Sector):][:l.Sector]
			if err := l.judge(block, want, l.First+i+k, last[i+k], sent[i+k]); err != nil {
				return err
			}
		}
	}
	return nil
}

// judge says what is wrong with the content of a block; want is scratch.
func (l Log) judge(got, want []byte, block int64, acked, sent uint64) error {
	n := binary.LittleEndian.Uint64(got)
	clear(want)
	if n != 0 {
		l.fill(want, block, n)
	}
	switch {
	case string(got) != string(want):
		return fmt.Errorf("block %d: %w: begins as write %d; acknowledged: %d, sent: %d", block, ErrTorn, n, acked, sent)
	case n != acked && n != sent:
		return fmt.Errorf("block %d: %w: holds write %d; acknowledged: %d, sent: %d", block, ErrLost, n, acked, sent)
	}
	return nil
}

// extent is where write n goes.
func (l Log) extent(n uint64) (first, count int64) {
	h := mix(l.Seed, n)
	count = 1 + int64(h>>32%MaxBlocks)
	return l.First + int64(h%uint64(l.Blocks-count+1)), count
}

// fill makes what write n puts into a block: n, then words that follow from n, the
// block, and their place, so that no part of one block passes for a part of another.
func (l Log) fill(p []byte, block int64, n uint64) {
	binary.LittleEndian.PutUint64(p, n)
	for i := 8; i < len(p); i += 8 {
		binary.LittleEndian.PutUint64(p[i:], mix(l.Seed^n<<32^uint64(block), uint64(i)))
	}
}

// mix is the finalizer of SplitMix64.
func mix(x, y uint64) uint64 {
	x += y * 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}
