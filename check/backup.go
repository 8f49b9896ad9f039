package check

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
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

// A backup file holds what a repair is about to overwrite, and by what the image can
// be told that the repair has left behind. All integers are little-endian.
//
//	 0   8 "BTTUNDO3"
//	 8   8 size of the image in bytes
//	16   8 length n of the path of the image; BTTUNDO2 has none, and no length
//	24   n that path, absolute, and zeros up to a multiple of 8 bytes
//	       undo: what was there, offsets ascending, multiples of 8 like the lengths:
//	         8 offset in the image
//	         8 length n
//	         n bytes
//	       8 times 0xff
//	       redo: what the repair stores, likewise, in its order, multiples of 4
//	       8 times 0xff
//	       rest: the metadata as it was, undo and all:
//	         8 offset in the image
//	         8 length n
//	         8 CRC-32C (Castagnoli) of those n bytes
//	       8 times 0xff, then 8 CRC-32C of all before it
const (
	backupMagic  = "BTTUNDO3"
	backupMagic2 = "BTTUNDO2"
	backupHead   = 16 // bytes, of both
)

const backupEnd = ^uint64(0)

// ErrBackup: a file is no backup of a repair, or a damaged one, or not of this image.
var ErrBackup = errors.New("not a sound backup of a repair of this image")

// ErrNotAsRepaired: the image is another than that of the backup, or was written to
// since the repair.
var ErrNotAsRepaired = errors.New("this is not the image as the repair left it: nothing was changed; if it is the right image, it was written to since, and only a copy made before the repair brings the old state back")

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
	put8 := func(words ...uint64) {
		for _, v := range words {
			put(binary.LittleEndian.AppendUint64(nil, v))
		}
	}
	put([]byte(backupMagic))
	put8(r.Size())
	name := absolute(r.Path())
	put8(uint64(len(name)))
	put(append([]byte(name), make([]byte, -len(name)&7)...))
	for _, e := range p.extents() {
		b := make([]byte, e.n)
		r.Read(b, e.off)
		put8(e.off, e.n)
		put(b)
	}
	put8(backupEnd)
	for i := range p.Steps {
		for _, rec := range p.Steps[i].redo() {
			put8(rec.off, uint64(len(rec.data)))
			put(rec.data)
		}
	}
	put8(backupEnd)
	for _, e := range p.metadata {
		put8(e.off, e.n, uint64(metadataSum(r, e, nil, 0)))
	}
	put8(backupEnd)
	put8(uint64(sum.Sum32()))
	return err
}

// absolute is path for those who are elsewhere, as far as it can be had.
func absolute(path string) string {
	if whole, err := filepath.Abs(path); err == nil {
		return whole
	}
	return path
}

// BackupOf is the path that the image had of which the file at path is a backup; ""
// if that does not say. It reads no more than the beginning: whether the file is
// sound, [Restore] finds out. Errors are those of reading the file.
func BackupOf(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	const longest = 4096 // of a path, as in path_resolution(7)
	b := make([]byte, backupHead+8+longest)
	n, err := io.ReadFull(f, b)
	if err != nil && err != io.EOF && err != io.ErrUnexpectedEOF {
		return "", err
	}
	if b = b[:n]; n < backupHead || !bytes.HasPrefix(b, []byte(backupMagic)) {
		return "", nil
	}
	name, _, _ := cutPath(b[backupHead:])
	return name, nil
}

// cutPath takes the path off what follows the head of a backup.
func cutPath(body []byte) (name string, rest []byte, found bool) {
	if len(body) < 8 {
		return "", nil, false
	}
	n, body := binary.LittleEndian.Uint64(body), body[8:]
	if n > uint64(len(body)) || (n+7)&^7 > uint64(len(body)) {
		return "", nil, false
	}
	return string(body[:n]), body[(n+7)&^7:], true
}

// redo are the stores of a step, in their order.
func (s *Step) redo() (list []backupRecord) {
	if s.stores == nil {
		return []backupRecord{{s.Offset, s.After}}
	}
	for _, w := range s.stores {
		list = append(list, backupRecord{w.off, binary.LittleEndian.AppendUint64(nil, w.v)})
	}
	return list
}

// metadataSum is the CRC of e as it is once undo has been put back, behind what has
// the CRC sum.
func metadataSum(r *pmem.Region, e extent, undo []backupRecord, sum uint32) uint32 {
	buf := make([]byte, min(e.n, 1<<20))
	for ; e.n > 0; e.off, e.n = e.off+uint64(len(buf)), e.n-uint64(len(buf)) {
		buf = buf[:min(e.n, uint64(len(buf)))]
		r.Read(buf, e.off)
		for ; len(undo) > 0 && undo[0].off < e.off+uint64(len(buf)); undo = undo[1:] {
			u := &undo[0]
			if u.end() > e.off {
				copy(buf[max(u.off, e.off)-e.off:], u.data[max(u.off, e.off)-u.off:])
			}
			if u.end() > e.off+uint64(len(buf)) {
				break
			}
		}
		sum = crc32.Update(sum, castagnoli, buf)
	}
	return sum
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
// bytes were not so already. What is put back is the damage. It stores nothing unless
// the whole file is sound, and the image is the one that was saved: each word of it
// holds what was saved or what the repair stores there, since the repair may have been
// interrupted, and so may Restore itself, which can be run again; and all the other
// metadata is as it was. Durable on return. Errors: [ErrBackup], [ErrNotAsRepaired],
// [ErrReadOnly], the cause of ctx if that was cancelled, and those of reading the
// file and of the region's Drain. progress, if not nil, is told how many of the bytes
// to be compared and stored are done.
func Restore(ctx context.Context, path string, r *pmem.Region, progress func(done, total uint64)) (n uint64, err error) {
	defer r.CatchFault(&err)
	defer pmem.ArmFaults()()
	if r.ReadOnly() {
		return 0, ErrReadOnly
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	saved, err := readBackup(b, r.Size())
	if err != nil {
		return 0, fmt.Errorf("%s: %w", path, err)
	}
	if n, err = saved.matches(r); err != nil {
		return 0, err
	}
	if err := saved.restMatches(ctx, r, progress); err != nil {
		return 0, err
	}
	for _, rec := range saved.undo {
		r.Write(rec.off, rec.data)
	}
	return n, r.Drain()
}

// backup is a backup file taken apart.
type backup struct {
	undo, redo []backupRecord
	rest       []backupSum
}

type backupRecord struct {
	off  uint64
	data []byte
}

func (b *backupRecord) end() uint64 { return b.off + uint64(len(b.data)) }

type backupSum struct {
	extent
	sum uint32
}

// matches reports an error unless r is the image of the backup, in a state that the
// repair or a restore can have left; and how many bytes there are to put back.
func (b *backup) matches(r *pmem.Region) (changed uint64, err error) {
	const word = 4 // no store is smaller
	now, known := make([][]byte, len(b.undo)), make([][]bool, len(b.undo))
	for i, u := range b.undo {
		now[i], known[i] = make([]byte, len(u.data)), make([]bool, len(u.data)/word)
		r.Read(now[i], u.off)
		for w := range known[i] {
			known[i][w] = bytes.Equal(now[i][w*word:(w+1)*word], u.data[w*word:(w+1)*word])
		}
	}
	for _, s := range b.redo {
		i, _ := slices.BinarySearchFunc(b.undo, s.off, func(u backupRecord, off uint64) int {
			if u.end() <= off {
				return -1
			}
			return 1
		})
		if i == len(b.undo) || s.off < b.undo[i].off || s.end() > b.undo[i].end() {
			return 0, fmt.Errorf("%w: a store lies outside of what was saved", ErrBackup)
		}
		first := (s.off - b.undo[i].off) / word
		for w := range uint64(len(s.data) / word) {
			at := (first + w) * word
			if bytes.Equal(now[i][at:at+word], s.data[w*word:(w+1)*word]) {
				known[i][first+w] = true
			}
		}
	}
	for i, u := range b.undo {
		if w := slices.Index(known[i], false); w >= 0 {
			return 0, fmt.Errorf("offset %d holds neither what was saved nor what the repair stores there: %w", u.off+uint64(w)*word, ErrNotAsRepaired)
		}
		for j := range now[i] {
			if now[i][j] != u.data[j] {
				changed++
			}
		}
	}
	return changed, nil
}

// sumPiece is how many bytes are compared between two reports.
const sumPiece = 16 << 20

// restMatches reports an error unless all that the repair has left alone is as it was.
func (b *backup) restMatches(ctx context.Context, r *pmem.Region, progress func(done, total uint64)) error {
	var done, total uint64
	for _, e := range b.rest {
		total += e.n
	}
	for _, e := range b.rest {
		sum := uint32(0)
		for left := e.extent; left.n > 0; {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			piece := extent{left.off, min(left.n, sumPiece)}
			sum = metadataSum(r, piece, b.undo, sum)
			left.off, left.n = left.off+piece.n, left.n-piece.n
			if done += piece.n; progress != nil {
				progress(done, total)
			}
		}
		if sum != e.sum {
			return fmt.Errorf("the metadata in the %d bytes from offset %d on is not what it was: %w", e.n, e.off, ErrNotAsRepaired)
		}
	}
	return nil
}

// readBackup takes a backup of an image of size bytes apart.
func readBackup(b []byte, size uint64) (*backup, error) {
	bad := func(what string) (*backup, error) { return nil, fmt.Errorf("%w: %s", ErrBackup, what) }
	le := binary.LittleEndian
	switch {
	case bytes.HasPrefix(b, []byte("BTTUNDO1")):
		return bad("it begins with BTTUNDO1, which says nothing of the image that it is of; this program reads " + backupMagic)
	case len(b) < 48 || !bytes.HasPrefix(b, []byte(backupMagic)) && !bytes.HasPrefix(b, []byte(backupMagic2)):
		return bad("it does not begin with " + backupMagic)
	}
	body, sum := b[:len(b)-8], le.Uint64(b[len(b)-8:])
	if sum != uint64(crc32.Checksum(body, castagnoli)) {
		return bad("its checksum is wrong")
	}
	if was := le.Uint64(b[8:]); was != size {
		return bad(fmt.Sprintf("the image has %d bytes and had %d", size, was))
	}
	saved, body := new(backup), body[backupHead:]
	if bytes.HasPrefix(b, []byte(backupMagic)) {
		var found bool
		if _, body, found = cutPath(body); !found {
			return bad("it ends in the path of the image")
		}
	}
	for section := 0; ; {
		if len(body) >= 8 && le.Uint64(body) == backupEnd {
			if body, section = body[8:], section+1; section < 3 {
				continue
			}
			if len(body) > 0 {
				return bad("something stands behind its end")
			}
			return saved, nil
		}
		if len(body) < 24 {
			return bad("it ends in a record")
		}
		e := extent{le.Uint64(body), le.Uint64(body[8:])}
		body = body[16:]
		align := uint64(8)
		if section == 1 {
			align = 4 // a map entry
		}
		if e.off > size || e.n > size-e.off || (e.off|e.n)%align != 0 {
			return bad("a record lies outside")
		}
		if section == 2 {
			saved.rest, body = append(saved.rest, backupSum{e, uint32(le.Uint64(body))}), body[8:]
			continue
		}
		if e.n > uint64(len(body)) {
			return bad("it ends in a record")
		}
		rec := backupRecord{e.off, body[:e.n]}
		if body = body[e.n:]; section == 1 {
			saved.redo = append(saved.redo, rec)
			continue
		}
		if n := len(saved.undo); n > 0 && rec.off < saved.undo[n-1].end() {
			return bad("its records are not in order")
		}
		saved.undo = append(saved.undo, rec)
	}
}
