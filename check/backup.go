package check

import (
	"bufio"
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"slices"

	"github.com/bttnbd/bttnbd/pmem"
)

// A backup file holds what a repair is about to overwrite. All integers are
// little-endian.
//
//	 0   8 "BTTUNDO1"
//	 8   8 size of the image in bytes
//	16     records, offsets ascending, multiples of 8 like the lengths:
//	         8 offset in the image
//	         8 length n
//	         n the bytes that were there
//	       the end: 8 times 0xff, then 8 CRC-32C (Castagnoli) of all before it
var backupMagic = [8]byte{'B', 'T', 'T', 'U', 'N', 'D', 'O', '1'}

const backupEnd = ^uint64(0)

// ErrBackup: a file is no backup of a repair, or a damaged one, or not of this image.
var ErrBackup = errors.New("not a sound backup of a repair of this image")

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// SaveBackup writes what the plan is going to overwrite into a new file, and makes
// file and directory entry durable. It refuses a file that exists.
func SaveBackup(path string, r *pmem.Region, p *Plan) (err error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		if err = errors.Join(err, f.Close()); err != nil {
			err = errors.Join(fmt.Errorf("backup: %w", err), os.Remove(path))
		}
	}()
	w := bufio.NewWriter(f)
	if err := writeBackup(w, r, p); err != nil {
		return err
	}
	if err := errors.Join(w.Flush(), f.Sync()); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

func writeBackup(file io.Writer, r *pmem.Region, p *Plan) (err error) {
	defer r.CatchFault(&err)
	defer pmem.ArmFaults()()
	sum := crc32.New(castagnoli)
	w := io.MultiWriter(file, sum)
	put := func(b []byte) {
		if err == nil {
			_, err = w.Write(b)
		}
	}
	put(binary.LittleEndian.AppendUint64(backupMagic[:], r.Size()))
	for _, e := range p.extents() {
		b := make([]byte, e.n)
		r.Read(b, e.off)
		put(binary.LittleEndian.AppendUint64(binary.LittleEndian.AppendUint64(nil, e.off), e.n))
		put(b)
	}
	put(binary.LittleEndian.AppendUint64(nil, backupEnd))
	put(binary.LittleEndian.AppendUint64(nil, uint64(sum.Sum32())))
	return err
}

// extents are the places of all steps, rounded out to 8 bytes and joined.
func (p *Plan) extents() (list []extent) {
	all := make([]extent, 0, len(p.Steps))
	for i := range p.Steps {
		s := &p.Steps[i]
		off := s.Offset &^ 7
		all = append(all, extent{off, (s.Offset + uint64(len(s.Before)) - off + 7) &^ 7})
	}
	slices.SortFunc(all, func(a, b extent) int { return cmp.Compare(a.off, b.off) })
	for _, e := range all {
		if n := len(list); n > 0 && e.off <= list[n-1].off+list[n-1].n {
			list[n-1].n = max(list[n-1].n, e.off+e.n-list[n-1].off)
			continue
		}
		list = append(list, e)
	}
	return list
}

// Restore puts back what [SaveBackup] has saved, byte for byte, and returns how many
// bytes. The image must not have been written to since the repair: what is put back
// is the damage, with the map as it was then. It stores nothing unless the whole
// file is sound, and can be run again if it was interrupted. Durable on return.
func Restore(path string, r *pmem.Region) (n uint64, err error) {
	defer r.CatchFault(&err)
	defer pmem.ArmFaults()()
	if r.ReadOnly() {
		return 0, ErrReadOnly
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	records, err := readBackup(b, r.Size())
	if err != nil {
		return 0, fmt.Errorf("%s: %w", path, err)
	}
	for _, rec := range records {
		r.Write(rec.off, rec.data)
		n += uint64(len(rec.data))
	}
	return n, r.Drain()
}

type backupRecord struct {
	off  uint64
	data []byte
}

// readBackup takes a backup of an image of size bytes apart.
func readBackup(b []byte, size uint64) (list []backupRecord, err error) {
	bad := func(what string) ([]backupRecord, error) { return nil, fmt.Errorf("%w: %s", ErrBackup, what) }
	le := binary.LittleEndian
	if len(b) < 32 || !bytes.HasPrefix(b, backupMagic[:]) {
		return bad("it does not begin with BTTUNDO1")
	}
	body, sum := b[:len(b)-8], le.Uint64(b[len(b)-8:])
	if sum != uint64(crc32.Checksum(body, castagnoli)) {
		return bad("its checksum is wrong")
	}
	if was := le.Uint64(b[8:]); was != size {
		return bad(fmt.Sprintf("the image has %d bytes and had %d", size, was))
	}
	for body = body[16:]; ; {
		if len(body) == 8 && le.Uint64(body) == backupEnd {
			return list, nil
		}
		if len(body) < 16 {
			return bad("it ends in a record")
		}
		off, n := le.Uint64(body), le.Uint64(body[8:])
		body = body[16:]
		if n > uint64(len(body)) || off > size || n > size-off || (off|n)%8 != 0 {
			return bad("a record lies outside")
		}
		list = append(list, backupRecord{off, body[:n]})
		body = body[n:]
	}
}
