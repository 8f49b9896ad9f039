package check

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/bttnbd/bttnbd/layout"
)

func TestRestoreInterrupted(t *testing.T) {
	// Goal: a backup brings every byte back, wherever the repair stopped, and wherever a
	// restore before did. Method: of each damage, the first stores of the repair alone,
	// with one torn in its middle.
	for _, d := range damages {
		im := d.image(t)
		before := im.bytes()
		file := filepath.Join(t.TempDir(), "backup")
		rep := im.repair(RepairOptions{Backup: func(p *Plan) error { return SaveBackup(file, im.region, p) }})
		if rep.Repaired == 0 {
			continue
		}
		repaired := im.bytes()
		im.region.Write(0, before)
		restore := func(what string, after int) {
			t.Helper()
			if _, err := Restore(t.Context(), file, im.region, nil); err != nil || !bytes.Equal(before, im.bytes()) {
				t.Fatalf("%s: %s %d stores: %v, the same: %v", d.name, what, after, err, bytes.Equal(before, im.bytes()))
			}
		}
		var stores []backupRecord
		for i := range rep.Plan.Steps {
			stores = append(stores, rep.Plan.Steps[i].redo()...)
		}
		for n := range len(stores) + 1 {
			for _, s := range stores[:n] {
				im.putWords(s.off, s.data)
			}
			if n < len(stores) {
				im.putWords(stores[n].off, stores[n].data[:len(stores[n].data)/2])
			}
			restore("the repair stopped after", n)
		}
		im.region.Write(0, repaired)
		for i := range rep.Plan.extents() {
			for _, e := range rep.Plan.extents()[:i] {
				im.putWords(e.off, before[e.off:e.off+e.n/2])
			}
			restore("a restore stopped after", i)
			im.region.Write(0, repaired)
		}
	}
}

// putWords writes the whole words of 4 bytes that b begins with.
func (im *image) putWords(off uint64, b []byte) {
	for ; len(b) >= 4; off, b = off+4, b[4:] {
		im.region.Store32(off, binary.LittleEndian.Uint32(b))
	}
}

func TestRestoreRefuses(t *testing.T) {
	// Goal: a backup is not put back into another image of the same size, nor over what
	// was written since the repair, even far from what the repair stored; nothing changes.
	im := used(t, params{})
	im.putEntry(0, 3, im.entry(0, 4))
	file := filepath.Join(t.TempDir(), "backup")
	im.repair(RepairOptions{Backup: func(p *Plan) error { return SaveBackup(file, im.region, p) }})
	repaired := im.bytes()
	for _, c := range []struct {
		name  string
		spoil func()
		where string
	}{
		{"another image", func() {
			other := used(t, params{})
			im.region.Write(0, other.bytes())
			im.change(func(i *layout.Info) { i.UUID[0]++ }, im.primary(0), im.backup(0))
		}, "offset"},
		{"noise", func() { im.putWords(0, bytes.Repeat([]byte{0x5a, 1, 7}, len(repaired)/3)) }, "offset"},
		{"zeros", func() { im.region.Zero(0, im.region.Size()) }, "offset"},
		{"an entry that was repaired", func() { im.putEntry(0, 3, layout.NormalEntry(im.free[0][0])) }, "neither what was saved nor"},
		{"another entry", func() { im.putEntry(0, 7, layout.ErrorEntry(im.entry(0, 7).Owned(7))) }, "metadata"},
		{"a lane", func() { im.changeGroup(0, 1, func(g *layout.FlogGroup, cur, _ int) { g[cur].LBA++ }) }, "metadata"},
	} {
		im.region.Write(0, repaired)
		c.spoil()
		before := im.bytes()
		n, err := Restore(t.Context(), file, im.region, nil)
		if !errors.Is(err, ErrNotAsRepaired) || !strings.Contains(err.Error(), c.where) || n != 0 || !bytes.Equal(before, im.bytes()) {
			t.Errorf("%s: %d bytes, %v, unchanged: %v", c.name, n, err, bytes.Equal(before, im.bytes()))
		}
	}
	im.region.Write(0, repaired)
	if n, err := Restore(t.Context(), file, im.region, nil); n == 0 || err != nil {
		t.Errorf("as the repair left it: %d bytes, %v", n, err)
	}
	if n, err := Restore(t.Context(), file, im.region, nil); n != 0 || err != nil {
		t.Errorf("a second time: %d bytes, %v", n, err)
	}
	if err := os.WriteFile(file, append([]byte("BTTUNDO1"), make([]byte, 64)...), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Restore(t.Context(), file, im.region, nil); !errors.Is(err, ErrBackup) || !strings.Contains(err.Error(), "this program reads BTTUNDO3") {
		t.Errorf("an old version: %v", err)
	}
}

func TestBackupOf(t *testing.T) {
	// Goal: a backup says of which image it is, wherever that was named from; one of the
	// version before does not, and is put back all the same; one that is cut in its path
	// is refused.
	im := used(t, params{})
	im.putEntry(0, 3, im.entry(0, 4))
	before := im.bytes()
	file := filepath.Join(t.TempDir(), "backup")
	im.repair(RepairOptions{Backup: func(p *Plan) error { return SaveBackup(file, im.region, p) }})
	want, err := filepath.Abs(im.region.Path())
	if err != nil {
		t.Fatal(err)
	}
	if was, err := BackupOf(file); was != want || err != nil {
		t.Errorf("it is of %q, want %q: %v", was, want, err)
	}
	good, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	put := func(parts ...[]byte) {
		t.Helper()
		b := bytes.Join(parts, nil)
		b = binary.LittleEndian.AppendUint64(b, uint64(crc32.Checksum(b, castagnoli)))
		if err := os.WriteFile(file, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	body := good[backupHead+8+(len(want)+7)&^7 : len(good)-8]
	for _, n := range []uint64{uint64(len(good)), 1<<64 - 1} {
		put(good[:backupHead], binary.LittleEndian.AppendUint64(nil, n), body)
		if _, err := Restore(t.Context(), file, im.region, nil); !errors.Is(err, ErrBackup) {
			t.Errorf("a path of %d bytes: %v", n, err)
		}
		if was, err := BackupOf(file); was != "" || err != nil {
			t.Errorf("a path of %d bytes: %q, %v", n, was, err)
		}
	}
	put([]byte(backupMagic2), good[8:backupHead], body)
	if was, err := BackupOf(file); was != "" || err != nil {
		t.Errorf("the version before is of %q, %v", was, err)
	}
	if _, err := Restore(t.Context(), file, im.region, nil); err != nil || !bytes.Equal(before, im.bytes()) {
		t.Errorf("the version before: %v, the same: %v", err, bytes.Equal(before, im.bytes()))
	}
}

func TestRestoreAnyWord(t *testing.T) {
	// Goal: a backup of which a word is wrong though its checksum is right is refused and
	// changes nothing, or puts back other bytes, but never goes astray.
	im := used(t, params{})
	im.putEntry(0, 3, im.entry(0, 4))
	im.putGroup(0, 1, layout.FlogGroup{})
	file := filepath.Join(t.TempDir(), "backup")
	im.repair(RepairOptions{Backup: func(p *Plan) error { return SaveBackup(file, im.region, p) }})
	repaired := im.bytes()
	good, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	refused := 0
	for at := 0; at < len(good)-8; at += 4 {
		for _, word := range []uint32{0, 1, 4, 8, 12, 1 << 20, 1<<32 - 1} {
			bad := bytes.Clone(good)
			binary.LittleEndian.PutUint32(bad[at:], word)
			sum := crc32.Checksum(bad[:len(bad)-8], castagnoli)
			binary.LittleEndian.PutUint64(bad[len(bad)-8:], uint64(sum))
			if err := os.WriteFile(file, bad, 0o600); err != nil {
				t.Fatal(err)
			}
			if _, err := Restore(t.Context(), file, im.region, nil); err != nil {
				refused++
				if !bytes.Equal(repaired, im.bytes()) {
					t.Fatalf("word at %d made %#x: %v, and the image has changed", at, word, err)
				}
			}
			im.region.Write(0, repaired)
		}
	}
	if refused < len(good)/8 {
		t.Errorf("only %d refused", refused)
	}
}
