package btt

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/google/uuid"

	"github.com/bttnbd/bttnbd/layout"
	"github.com/bttnbd/bttnbd/pmem"
)

const seekData = 3 // SEEK_DATA of lseek(2)

// Goal: the page of a map entry has its block before there is a flog record, so that a
// full disk is found out in time, also in pages that come later than others; and it is
// looked for only once, but each time where a page may become write-protected again.
func TestMapPagesAreTouched(t *testing.T) {
	open := func(mode pmem.Mode) (*Device, *os.File) {
		name := filepath.Join(t.TempDir(), "image")
		r, err := pmem.Create(name, 32<<20, pmem.Options{Durability: mode})
		if err != nil {
			t.Fatal(err)
		}
		if err := Format(r, FormatParams{Flavour: layout.Kernel, SectorSize: 512, UUID: uuid.UUID{1}, Zeroed: true}); err != nil {
			t.Fatal(err)
		}
		d, err := Open(r, Options{})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { d.Close() })
		f, err := os.Open(name)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		return d, f
	}
	d, f := open(pmem.ForceProcess)
	a := d.arenas[0]
	for page := range layout.PremapLBA(3) {
		lba := page * 2 * entriesPerPage
		off := int64(a.mapOff(lba)) &^ 4095
		if at, err := syscall.Seek(int(f.Fd()), off, seekData); err == nil && at == off {
			t.Fatalf("the map page of block %d has a block already: nothing to see here", lba)
		}
		for range 2 {
			if err := a.fill([]blockWrite{{lba: lba, data: fill(1, 512)}}, 0); err != nil {
				t.Fatal(err)
			}
			if at, err := syscall.Seek(int(f.Fd()), off, seekData); err != nil || at != off {
				t.Errorf("the map page of block %d is still a hole before its commit", lba)
			}
		}
		if number := uint32(lba) / entriesPerPage; a.pages.known[number/64].Load()&(1<<(number%64)) == 0 {
			t.Errorf("the map page of block %d will be touched again", lba)
		}
	}
	// A group over several pages: the first block of each, and a neighbour.
	var group []blockWrite
	for page := layout.PremapLBA(7); page < 16; page += 2 {
		for lba := page * entriesPerPage; lba < page*entriesPerPage+2; lba++ {
			group = append(group, blockWrite{lba: lba, data: fill(1, 512), lane: uint32(len(group))})
		}
	}
	if err := a.fill(group, 0); err != nil {
		t.Fatal(err)
	}
	for i := range group {
		off := int64(a.mapOff(group[i].lba)) &^ 4095
		if at, err := syscall.Seek(int(f.Fd()), off, seekData); err != nil || at != off {
			t.Errorf("the map page of block %d of a group is still a hole before its commit", group[i].lba)
		}
	}
	d, _ = open(pmem.Auto)
	if mode := d.reg.Durability(); (mode == pmem.Msync) != (d.arenas[0].pages.known == nil) {
		t.Errorf("%v: write-back protects pages again behind the page cache, and only there", mode)
	}
}
