package fuzz

import (
	"bytes"
	"errors"
	"fmt"
	"path/filepath"
	"testing"

	"github.com/google/uuid"

	"github.com/bttnbd/bttnbd/btt"
	"github.com/bttnbd/bttnbd/layout"
	"github.com/bttnbd/bttnbd/pmem"
	"github.com/bttnbd/bttnbd/pmem/pmemtest"
)

const arenas = 3

// Goal: a crash while several arenas are made never leaves one without the next:
// what opens is whole, and anything can be formatted again. Method: every image of
// every crash in a format over zeros, ones, and another BTT of several arenas.
func TestFormatArenas(t *testing.T) {
	t.Parallel()
	for _, f := range flavours[:3] {
		size := f.Start + arenas*arena
		used := make([]byte, size)
		p := formatParams(f)
		p.UUID = uuid.UUID{0xdd}
		if err := btt.Format(pmem.NewTraced(used, nil), p); err != nil {
			t.Fatal(err)
		}
		for name, before := range map[string][]byte{
			"zeros": make([]byte, size), "ones": bytes.Repeat([]byte{0xff}, int(size)), "another BTT": used,
		} {
			t.Run(name+" to "+f.Name, func(t *testing.T) {
				if err := formatArenas(f, before, name != "ones", name == "another BTT"); err != nil {
					t.Error(err)
				}
			})
		}
	}
}

func formatArenas(f layout.Flavour, before []byte, zeroed, old bool) error {
	m := pmemtest.New(before)
	p := formatParams(f)
	p.UUID, p.Zeroed = newID, zeroed && !old
	opened := 0
	crash := func() error {
		for c := newFates(); ; {
			whole, err := openArenas(m.Crash(c, nil), f, p, old)
			if err != nil {
				return fmt.Errorf("crash before drain %d: %w", m.Count.Drains, err)
			}
			if whole {
				opened++
			}
			if !c.Next() {
				return nil
			}
		}
	}
	onCrash(m, crash)
	if err := btt.Format(m.Region(), p); err != nil {
		return err
	}
	onCrash(m, nil)
	opened = 0
	if err := crash(); err != nil {
		return err
	}
	if opened == 0 {
		return errors.New("format has returned, but the new BTT is not there")
	}
	return nil
}

// openArenas opens an image of a crash, and formats it where nothing opens. Over
// an old BTT an arena of that may be gone already while its first is still there.
func openArenas(m *pmemtest.Machine, f layout.Flavour, p btt.FormatParams, old bool) (opened bool, err error) {
	d, err := open(m)
	var corrupt *btt.CorruptError
	switch {
	case err == nil:
		opened = true
	case errors.Is(err, btt.ErrNoBTT), errors.As(err, &corrupt) && (old || errors.Is(err, layout.ErrChecksum) || errors.Is(err, layout.ErrPoolChecksum)):
		if err := btt.Format(m.Region(), p); err != nil {
			return false, fmt.Errorf("format again: %w", err)
		}
		if d, err = open(m); err != nil {
			return false, fmt.Errorf("after formatting again: %w", err)
		}
	default:
		return false, err
	}
	all := make([]byte, d.Size())
	if _, err := d.ReadAt(all, 0); err != nil {
		return false, err
	}
	if len(bytes.Trim(all, "\x00")) > 0 {
		return false, errors.New("not zeros")
	}
	want := bytes.Repeat([]byte{7}, len(all))
	if _, err := d.WriteAt(want, 0); err != nil {
		return false, err
	}
	if _, err := d.ReadAt(all, 0); err != nil || !bytes.Equal(all, want) {
		return false, fmt.Errorf("read of what was written: %v", err)
	}
	_, err = open(m)
	return opened, err
}

// Goal: offsets beyond 4 GiB are computed whole. Method: a sparse image of which
// the free blocks lie there. A block of an offset cut to 32 bits would be found
// under another LBA.
func TestBeyond4GiB(t *testing.T) {
	const size, block = 5 << 30, 4096
	o := pmem.Options{Durability: pmem.ForceProcess}
	r, err := pmem.Create(filepath.Join(t.TempDir(), "image"), size, o)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if err := btt.Format(r, btt.FormatParams{Flavour: layout.Kernel, SectorSize: block, UUID: newID, Zeroed: true}); err != nil {
		t.Fatal(err)
	}
	d, err := btt.Open(r, btt.Options{})
	if err != nil {
		t.Fatal(err)
	}
	data, got := bytes.Repeat([]byte{7}, block), make([]byte, block)
	if _, err := d.WriteAt(data, 0); err != nil {
		t.Fatal(err)
	}
	first := int64(d.Size())/block - 1<<32/block // the LBA of the first free block's number, cut
	for lba := first; lba < first+layout.DefaultNfree; lba++ {
		if _, err := d.ReadAt(got, lba*block); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, make([]byte, block)) {
			t.Fatalf("block %d was never written, but holds what was written to block 0", lba)
		}
	}
	last := int64(d.Size()) - block
	if _, err := d.WriteAt(data, last); err != nil {
		t.Fatal(err)
	}
	if _, err := d.ReadAt(got, last); err != nil || !bytes.Equal(got, data) {
		t.Errorf("the last block: %v", err)
	}
}
