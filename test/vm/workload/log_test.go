package workload

import (
	"bytes"
	"errors"
	"io"
	"testing"
)

type disk []byte

func (d disk) WriteAt(p []byte, off int64) (int, error) { return copy(d[off:], p), nil }
func (d disk) ReadAt(p []byte, off int64) (int, error)  { return copy(p, d[off:]), nil }

var errStop = errors.New("enough")

// Goal: what a log wrote is right with the number acknowledged or one less, and the
// loss of a write, a torn block and a block in a wrong place are found.
func TestLog(t *testing.T) {
	const sector, blocks, writes = 512, 64, 500
	l := Log{Seed: 1, Sector: sector, First: 3, Blocks: blocks}
	d := make(disk, (blocks+5)*sector)
	write := func(upTo uint64) {
		err := l.Write(d, make([]byte, MaxBlocks*sector), func(n uint64) error {
			if n == upTo {
				return errStop
			}
			return nil
		})
		if !errors.Is(err, errStop) {
			t.Fatal(err)
		}
	}
	write(writes)
	first, _ := l.extent(writes)
	last := int(first) * sector
	for _, c := range []struct {
		name  string
		acked uint64
		spoil func()
		want  error
	}{
		{"all", writes, func() {}, nil},
		{"the last one not acknowledged", writes - 1, func() {}, nil},
		{"two not acknowledged", writes - 2, func() {}, ErrLost},
		{"more acknowledged than sent", writes + 200, func() {}, ErrLost},
		{"torn", writes, func() { d[last+sector-1]++ }, ErrTorn},
		{"zeros", writes, func() { clear(d[last : last+sector]) }, ErrLost},
		{"another block's", writes, func() { copy(d[last:last+sector], d[last+sector:]) }, ErrTorn},
	} {
		before := bytes.Clone(d)
		c.spoil()
		if err := l.Verify(d, c.acked); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", c.name, err, c.want)
		}
		copy(d, before)
	}
}

// Goal: a pattern equals itself, and one byte or one length that differs is found.
func TestComparePattern(t *testing.T) {
	const size = 200_000
	p := make([]byte, size)
	io.ReadFull(Pattern(7), p)
	if err := ComparePattern(bytes.NewReader(p), 7, size); err != nil {
		t.Error(err)
	}
	if ComparePattern(bytes.NewReader(p[:size-1]), 7, size) == nil {
		t.Error("one byte less is not found")
	}
	if ComparePattern(bytes.NewReader(p), 8, size) == nil {
		t.Error("another seed is not found")
	}
	p[size-1]++
	if ComparePattern(bytes.NewReader(p), 7, size) == nil {
		t.Error("a different byte is not found")
	}
}
