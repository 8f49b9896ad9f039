package fuzz

import (
	"errors"
	"syscall"
	"testing"

	"github.com/google/uuid"

	"github.com/bttnbd/bttnbd/btt"
	"github.com/bttnbd/bttnbd/check"
	"github.com/bttnbd/bttnbd/layout"
	"github.com/bttnbd/bttnbd/pmem"
)

// image is a sound, used image of two arenas in which things can be damaged.
type image struct {
	r    *pmem.Region
	base [2]uint64
	geo  [2]layout.Geometry
}

func newImage(t *testing.T, f layout.Flavour) *image {
	t.Helper()
	im := &image{r: pmem.NewHeap(f.Start + 2*arena)}
	if err := btt.Format(im.r, formatParams(f)); err != nil {
		t.Fatal(err)
	}
	d, err := btt.Open(im.r, btt.Options{MaxArena: arena})
	if err != nil {
		t.Fatal(err)
	}
	for i := range 6 {
		for lba := range d.Size() / sector {
			c := written(i+1, int(lba))
			if _, err := d.WriteAt(c.data[:], int64(lba)*sector); err != nil {
				t.Fatal(err)
			}
		}
	}
	for i := range im.base {
		im.base[i] = f.Start + uint64(i)*arena
		im.geo[i] = im.info(i).Geometry()
	}
	return im
}

// info is the primary info block of an arena.
func (im *image) info(arena int) *layout.Info {
	var raw [layout.InfoSize]byte
	im.r.Read(raw[:], im.base[arena])
	in, err := layout.DecodeInfo(raw[:])
	if err != nil {
		panic(err)
	}
	return &in
}

// setInfo changes both info blocks of an arena, checksum included.
func (im *image) setInfo(arena int, change func(*layout.Info)) {
	in := im.info(arena)
	change(in)
	var raw [layout.InfoSize]byte
	in.Encode(raw[:])
	im.r.Write(im.base[arena], raw[:])
	im.r.Write(im.base[arena]+im.geo[arena].InfoOff, raw[:])
}

// setRecord changes the current record of a lane of arena 0.
func (im *image) setRecord(lane uint64, change func(current, other *layout.FlogRecord)) {
	off := im.base[0] + im.geo[0].FlogOff + lane*layout.FlogGroupSize
	var b [layout.FlogGroupSize]byte
	im.r.Read(b[:], off)
	g := layout.DecodeFlogGroup(b[:])
	cur := 0
	if layout.NextSeq(g[0].Seq) == g[1].Seq {
		cur = 1
	}
	change(&g[cur], &g[1-cur])
	g.Encode(b[:])
	im.r.Write(off, b[:])
}

func (im *image) setEntry(lba uint64, e layout.MapEntry) {
	im.r.Store32(im.base[0]+im.geo[0].MapOff+4*lba, uint32(e))
}

// damages are images that must not open.
var damages = map[string]func(*image){
	"equal sequence numbers":       func(im *image) { im.setRecord(3, func(c, o *layout.FlogRecord) { o.Seq = c.Seq }) },
	"sequence number 4":            func(im *image) { im.setRecord(3, func(c, o *layout.FlogRecord) { o.Seq = 4 }) },
	"record of a lba beyond":       func(im *image) { im.setRecord(3, func(c, o *layout.FlogRecord) { c.LBA = 1 << 20 }) },
	"record of the lba behind":     func(im *image) { im.setRecord(3, func(c, o *layout.FlogRecord) { c.LBA = im.lastLBA() + 1 }) },
	"record of an old block, high": func(im *image) { im.setRecord(3, func(c, o *layout.FlogRecord) { c.Old = 1 << 29 }) },
	"record of the old block behind": func(im *image) {
		im.setRecord(3, func(c, o *layout.FlogRecord) { c.Old = layout.MapEntry(im.geo[0].InternalNLBA) })
	},
	"record of the new block behind": func(im *image) {
		im.setRecord(3, func(c, o *layout.FlogRecord) { c.New = layout.MapEntry(im.geo[0].InternalNLBA) })
	},
	"a free block of two lanes": func(im *image) {
		var taken layout.MapEntry
		im.setRecord(2, func(c, o *layout.FlogRecord) { taken = c.Old })
		im.setRecord(3, func(c, o *layout.FlogRecord) { c.Old = taken })
	},
	"another uuid in arena 1":        func(im *image) { im.setInfo(1, func(in *layout.Info) { in.UUID = newID }) },
	"another parent uuid in arena 1": func(im *image) { im.setInfo(1, func(in *layout.Info) { in.ParentUUID = uuid.UUID{3} }) },
	"another block size in arena 1":  func(im *image) { im.setInfo(1, func(in *layout.Info) { in.ExternalLBASize = 64 }) },
	"map inside the data":            func(im *image) { im.setInfo(0, func(in *layout.Info) { in.MapOff = 4096 }) },
	"no lanes":                       func(im *image) { im.setInfo(0, func(in *layout.Info) { in.Nfree = 0 }) },
	"more blocks than fit": func(im *image) {
		im.setInfo(0, func(in *layout.Info) { in.ExternalNLBA, in.InternalNLBA = 1<<20, 1<<20+nfree })
	},
	"both info blocks of arena 0 torn": func(im *image) {
		im.r.Store64(im.base[0]+2048, 1)
		im.r.Store64(im.base[0]+im.geo[0].InfoOff+2048, 1)
	},
	"both info blocks of arena 1 torn": func(im *image) {
		im.r.Store64(im.base[1]+2048, 1)
		im.r.Store64(im.base[1]+im.geo[1].InfoOff+2048, 1)
	},
}

func (im *image) lastLBA() layout.PremapLBA { return layout.PremapLBA(im.geo[0].ExternalNLBA - 1) }

// Goal: metadata that no crash can leave is refused with an error that names the
// place, never relied upon, and the checker sees it as well. Method: one damage at
// a time in a used image of each flavour.
func TestCorrupt(t *testing.T) {
	for _, f := range flavours[:3] {
		for name, damage := range damages {
			t.Run(f.Name+"/"+name, func(t *testing.T) {
				im := newImage(t, f)
				mustBeClean(t, im, true)
				damage(im)
				mustBeClean(t, im, false)
				_, err := btt.Open(im.r, btt.Options{MaxArena: arena})
				var corrupt *btt.CorruptError
				if err == nil {
					t.Error("it opens")
				} else if !errors.As(err, &corrupt) {
					t.Errorf("not refused as corrupt, but: %v", err)
				}
			})
		}
	}
}

func mustBeClean(t *testing.T, im *image, want bool) {
	t.Helper()
	rep, err := check.Run(t.Context(), im.r, check.Options{MaxArena: arena})
	if err != nil {
		t.Fatal(err)
	}
	if rep.Clean() != want {
		t.Errorf("the checker says clean %v, want %v: %v", rep.Clean(), want, rep.Findings)
	}
}

// Goal: a map entry that names a block beyond the arena costs the one block that
// it belongs to, not the process. Open does not read the map, so that it opens.
func TestCorruptMapEntry(t *testing.T) {
	for _, f := range flavours[:3] {
		im := newImage(t, f)
		im.setEntry(5, layout.NormalEntry(1<<29))
		im.setEntry(6, layout.NormalEntry(layout.PostmapLBA(im.geo[0].InternalNLBA)))
		mustBeClean(t, im, false)
		d, err := btt.Open(im.r, btt.Options{MaxArena: arena})
		if err != nil {
			t.Fatal(err)
		}
		p := make([]byte, sector)
		for lba := range int64(2) {
			at := (5 + lba) * sector
			if _, err := d.ReadAt(p, at); !errors.Is(err, syscall.EIO) {
				t.Errorf("read: %v, want EIO", err)
			}
			if _, err := d.WriteAt(p, at); !errors.Is(err, syscall.EIO) {
				t.Errorf("write: %v, want EIO: its lane would take the block over", err)
			}
			if _, err := d.WriteAt(p[:8], at); !errors.Is(err, syscall.EIO) {
				t.Errorf("write of a part: %v, want EIO", err)
			}
		}
		if _, err := d.ReadAt(p, 4*sector); err != nil {
			t.Errorf("the block before: %v", err)
		}
	}
}
