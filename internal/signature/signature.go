// Package signature tells what a file or device already holds, so that a command
// which is about to lay out something new can refuse with its name.
package signature

import (
	"bytes"
	"context"
	"fmt"
	"io"
)

// window is how much of either end of a file is searched for signatures, in bytes.
const window = 1 << 20

// Content is what a file holds.
type Content struct {
	Name      string // as it fits into "PATH holds …"
	DiskImage bool   // a virtual disk in a format of its own, which can be made raw
}

// Detect names what the first size bytes of r hold, if it is of a format known by
// a signature in the first or the last MiB. Errors are those of reading, with the
// place.
func Detect(r io.ReaderAt, size uint64) (c Content, found bool, err error) {
	head := make([]byte, min(size, window))
	if err := readAt(r, head, 0); err != nil {
		return Content{}, false, err
	}
	tail := make([]byte, min(size, window))
	if err := readAt(r, tail, size-uint64(len(tail))); err != nil {
		return Content{}, false, err
	}
	if s := match(head, tail); s != nil {
		return Content{s.name, s.isDiskImage()}, true, nil
	}
	if isBootSector(head) {
		return Content{Name: "an MBR partition table"}, true, nil
	}
	if backup := size / page * page; backup > page && isBackup(tail, size-(backup-page)) {
		return Content{Name: "a BTT of which only a backup info block is left"}, true, nil
	}
	return Content{}, false, nil
}

// FirstByte is the offset in r of the first byte other than zero among the n bytes
// at off; found is false when all are zero. It ends early with the cause of ctx;
// other errors are those of reading, with the place.
func FirstByte(ctx context.Context, r io.ReaderAt, off, n uint64) (at uint64, found bool, err error) {
	b := make([]byte, min(n, window))
	for end := off + n; off < end; off += uint64(len(b)) {
		if ctx.Err() != nil {
			return 0, false, context.Cause(ctx)
		}
		b = b[:min(end-off, uint64(len(b)))]
		if err := readAt(r, b, off); err != nil {
			return 0, false, err
		}
		if i := firstByte(b); i < len(b) {
			return off + uint64(i), true, nil
		}
	}
	return 0, false, nil
}

// firstByte is the index of the first byte other than zero, or len(b). Comparing whole
// pages is faster than looking at each byte.
func firstByte(b []byte) (i int) {
	for len(b)-i >= page && bytes.Equal(b[i:i+page], zeroPage[:]) {
		i += page
	}
	for i < len(b) && b[i] == 0 {
		i++
	}
	return i
}

var zeroPage [page]byte

func readAt(r io.ReaderAt, b []byte, off uint64) error {
	if _, err := io.ReadFull(io.NewSectionReader(r, int64(off), int64(len(b))), b); err != nil {
		return fmt.Errorf("reading %d bytes at %d: %w", len(b), off, err)
	}
	return nil
}

func match(head, tail []byte) *signature {
	for i := range table {
		s := &table[i]
		at := head
		off := s.offset
		if off < 0 {
			at, off = tail, off+len(tail)
		}
		if off >= 0 && off <= len(at) && bytes.HasPrefix(at[off:], []byte(s.magic)) {
			return s
		}
	}
	return nil
}

// page is the alignment of everything in a BTT.
const page = 4096

// isBackup tells whether the bytes fromEnd before the end of tail are an info
// block. All flavours begin at a multiple of 4096 and round their last arena
// down to one, so its backup info block is the last whole page of the file.
func isBackup(tail []byte, fromEnd uint64) bool {
	return fromEnd <= uint64(len(tail)) && bytes.HasPrefix(tail[uint64(len(tail))-fromEnd:], []byte(btt))
}

// isBootSector tells a partition table from boot code of another kind, which
// has the same 55 AA at its end: each of the four entries must be marked
// bootable or not, and one must be used.
func isBootSector(head []byte) bool {
	const entries, entrySize, typeOff, end = 446, 16, 4, 510
	if len(head) < end+2 || head[end] != 0x55 || head[end+1] != 0xAA {
		return false
	}
	used := false
	for off := entries; off < end; off += entrySize {
		if head[off]&0x7F != 0 {
			return false
		}
		used = used || head[off+typeOff] != 0
	}
	return used
}
