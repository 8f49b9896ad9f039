package workload

import (
	"bytes"
	"encoding/binary"
	"slices"
	"testing"
)

// logSector is a sector of a log that begins with 64-bit numbers.
func logSector(n int, numbers ...uint64) []byte {
	p := make([]byte, n)
	for i, v := range numbers {
		binary.LittleEndian.PutUint64(p[i*8:], v)
	}
	return p
}

type memory []byte

func (m memory) WriteAt(p []byte, off int64) (int, error) { return copy(m[off:], p), nil }

// Goal: a log is read in the units of its disk, knows what is durable, and is
// carried out up to the entry asked for. Method: one put together by hand.
func TestWriteLog(t *testing.T) {
	const sector = 4096
	mark := logSector(sector, 0, 0, logMark, 4)
	copy(mark[32:], "here")
	one, two := bytes.Repeat([]byte{1}, 2*sector), bytes.Repeat([]byte{2}, sector)
	log := slices.Concat(
		logSector(sector, logMagic, logVersion, 4, sector),
		logSector(sector, 1, 2, 0), one,
		mark,
		logSector(sector, 0, 0, logFlush),
		logSector(sector, 2, 1, logFUA), two,
	)
	l, err := ReadWriteLog(bytes.NewReader(log))
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []LogEntry{{Offset: sector, Length: 2 * sector}, {Mark: "here"}, {}, {Offset: 2 * sector, Length: sector}} {
		e := l.Entries[i]
		if e.Offset != want.Offset || e.Length != want.Length || e.Mark != want.Mark || e.Durable() != (i > 1) {
			t.Errorf("entry %d: %+v, durable %v", i, e, e.Durable())
		}
	}
	disk := make(memory, 4*sector)
	for end, want := range map[int][]byte{3: slices.Concat(make([]byte, sector), one, make([]byte, sector)), 4: slices.Concat(make([]byte, sector), one[:sector], two, make([]byte, sector))} {
		clear(disk)
		if err := l.Replay(disk, 0, end, make([]byte, sector)); err != nil || !bytes.Equal(disk, want) {
			t.Errorf("replayed to %d: %v", end, err)
		}
	}
	for what, bad := range map[string][]byte{
		"no magic":  make([]byte, sector),
		"cut short": log[:3*sector],
		"empty":     nil,
	} {
		if _, err := ReadWriteLog(bytes.NewReader(bad)); err == nil {
			t.Errorf("%s: no error", what)
		}
	}
	binary.LittleEndian.PutUint64(log[sector+16:], logDiscard)
	copy(log[2*sector:], log[4*sector:]) // a discard has no data
	if l, err = ReadWriteLog(bytes.NewReader(log)); err != nil || l.Replay(disk, 0, 1, make([]byte, sector)) == nil {
		t.Errorf("a discard was replayed: %v", err)
	}
}
