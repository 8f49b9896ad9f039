// Package signature tells what a file or device already holds, so that a command
// which is about to lay out something new can refuse with its name.
package signature

import (
	"bytes"
	"fmt"
	"io"
)

// window is how much of either end of a file is looked at, in bytes.
const window = 1 << 20

// Detect names what the first size bytes of r hold: a format that it knows by
// its signature, or "unrecognised data" when there is a byte other than zero in
// the first or the last MiB. found is false when neither is the case. Errors are
// those of reading, with the place.
func Detect(r io.ReaderAt, size uint64) (what string, found bool, err error) {
	head := make([]byte, min(size, window))
	if _, err := io.ReadFull(io.NewSectionReader(r, 0, int64(len(head))), head); err != nil {
		return "", false, fmt.Errorf("reading %d bytes at 0: %w", len(head), err)
	}
	tail := make([]byte, min(size, window))
	if _, err := io.ReadFull(io.NewSectionReader(r, int64(size)-int64(len(tail)), int64(len(tail))), tail); err != nil {
		return "", false, fmt.Errorf("reading %d bytes at %d: %w", len(tail), size-uint64(len(tail)), err)
	}
	if what, found := match(head, tail); found {
		return what, true, nil
	}
	if backup := size / page * page; backup > page && isBackup(tail, size-(backup-page)) {
		return "a BTT of which only a backup info block is left", true, nil
	}
	if !zero(head) || !zero(tail) {
		return "unrecognised data", true, nil
	}
	return "", false, nil
}

func match(head, tail []byte) (what string, found bool) {
	for _, s := range table {
		at := head
		off := s.offset
		if off < 0 {
			at, off = tail, off+len(tail)
		}
		if off >= 0 && off <= len(at) && bytes.HasPrefix(at[off:], []byte(s.magic)) {
			return s.name, true
		}
	}
	if isBootSector(head) {
		return "an MBR partition table", true
	}
	return "", false
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

func zero(b []byte) bool { return len(bytes.TrimLeft(b, "\x00")) == 0 }
