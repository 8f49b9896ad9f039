package convert

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/uuid"

	"github.com/bttnbd/bttnbd/btt"
	"github.com/bttnbd/bttnbd/check"
	"github.com/bttnbd/bttnbd/layout"
	"github.com/bttnbd/bttnbd/pmem"
	"github.com/bttnbd/bttnbd/pmem/pmemtest"
)

// A small arena: two lanes, so that all that a crash can leave of both is looked at.
const (
	sector = 128
	nfree  = 2
	arena  = 20 << 10
)

var options = btt.Options{MaxArena: arena}

// small are the flavours with small blocks.
func small() (fs []layout.Flavour) {
	for _, f := range layout.Flavours() {
		f.Align, f.MinBlock = 64, 0
		fs = append(fs, f)
	}
	return fs
}

// used is an image after writes that end in each lane with any record and number,
// an error entry overwritten, and another one left.
func used(t *testing.T, f layout.Flavour, p layout.Padding, writes int) []byte {
	t.Helper()
	m := pmemtest.New(make([]byte, f.Start+arena))
	err := btt.Format(m.Region(), btt.FormatParams{Flavour: f, SectorSize: sector, Nfree: nfree, UUID: uuid.UUID{1}, ParentUUID: uuid.UUID{2}, Zeroed: true, MinArena: arena, MaxArena: arena})
	if err != nil {
		t.Fatal(err)
	}
	if p == layout.PaddingOld {
		// Lane 1 has written once, under this padding.
		geo, _ := f.Geometry(arena, sector, nfree)
		g := f.LoneFlogGroup(1, layout.PostmapLBA(geo.ExternalNLBA+1))
		g[2] = layout.FlogRecord{LBA: 20, Old: f.LoggedOld(0, 20), New: f.LoggedNew(g[0].Old.Block()), Seq: 2}
		var b [layout.FlogGroupSize]byte
		g.Encode(b[:])
		m.Region().Write(f.Start+geo.FlogOff+layout.FlogGroupSize, b[:])
		m.Region().Store32(f.Start+geo.MapOff+20*4, uint32(layout.NormalEntry(g[0].Old.Block())))
	}
	d := mustOpen(t, m.Region())
	if err := errors.Join(d.SetError(3), d.SetError(4)); err != nil {
		t.Fatal(err)
	}
	for i := range writes {
		m.Lanes = uint32(i % 2)
		if _, err := d.WriteAt(bytes.Repeat([]byte{byte(i + 1)}, sector), int64(i%4)*sector); err != nil {
			t.Fatal(err)
		}
	}
	return bytes.Clone(m.Peek())
}

func mustOpen(t *testing.T, r *pmem.Region) *btt.Device {
	t.Helper()
	o := options
	if r.Size() > 1<<20 {
		o = btt.Options{} // not one of the small ones
	}
	d, err := btt.Open(r, o)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// blocks is what every block reads as.
func blocks(t *testing.T, d *btt.Device) (all []string) {
	t.Helper()
	b := make([]byte, d.SectorSize())
	for off := int64(0); off < int64(d.Size()); off += int64(len(b)) {
		if _, err := d.ReadAt(b, off); err != nil {
			all = append(all, "error")
			continue
		}
		all = append(all, string(b))
	}
	return all
}

// same fails the test unless the image opens and reads as before.
func same(t *testing.T, r *pmem.Region, before []string, what string) *btt.Device {
	t.Helper()
	d := mustOpen(t, r)
	for i, b := range blocks(t, d) {
		if b != before[i] {
			t.Fatalf("%s: block %d reads %.10q, before %.10q", what, i, b, before[i])
		}
	}
	return d
}

// Goal: rewriting the flog changes no block, whatever state the lanes were in and
// at whatever moment the power fails; no crash leaves a lone record that Linux
// would misread; doing it again completes it, and then both lanes are fresh.
func TestFlogCrash(t *testing.T) {
	images := 0
	for _, f := range small() {
		for _, p := range []layout.Padding{layout.PaddingNew, layout.PaddingOld} {
			most := 13 // each lane goes round its numbers and records
			if testing.Short() {
				most = 4
			}
			for writes := range most {
				image := used(t, f, p, writes)
				before := blocks(t, mustOpen(t, pmem.NewTraced(bytes.Clone(image), nil)))
				m := pmemtest.New(image)
				crash := func() error {
					for o := new(pmemtest.Odometer); ; {
						n := m.Crash(o, nil)
						images++
						loneAreFirst(t, n.Region(), f, p)
						same(t, n.Region(), before, "after a crash")
						if _, err := Flog(n.Region(), options); err != nil {
							t.Fatal(err)
						}
						mustBeFresh(t, n.Region(), f)
						same(t, n.Region(), before, "after a crash, done again")
						if !o.Next() {
							return nil
						}
					}
				}
				m.OnDrain = crash
				if _, err := Flog(m.Region(), options); err != nil {
					t.Fatal(err)
				}
				m.OnDrain = nil
				if len(m.Undurable()) > 0 {
					t.Fatal("Flog has returned, but it is not durable")
				}
				mustBeFresh(t, m.Region(), f)
				same(t, m.Region(), before, "done")
				if n, err := Flog(m.Region(), options); n != 0 || err != nil {
					t.Errorf("a second time: %d lanes changed, %v", n, err)
				}
				rep, err := check.Run(context.Background(), m.Region(), check.Options{MaxArena: arena})
				if err != nil || rep.Damaged() {
					t.Fatalf("%s: %v, %+v", f.Name, err, rep)
				}
			}
		}
	}
	t.Logf("%d images", images)
}

func groups(r *pmem.Region, f layout.Flavour) (gs []layout.FlogGroup, geo layout.Geometry) {
	geo, _ = f.Geometry(arena, sector, nfree)
	for lane := range uint64(nfree) {
		var b [layout.FlogGroupSize]byte
		r.Read(b[:], f.Start+geo.FlogOff+lane*layout.FlogGroupSize)
		gs = append(gs, layout.DecodeFlogGroup(b[:]))
	}
	return gs, geo
}

func loneAreFirst(t *testing.T, r *pmem.Region, f layout.Flavour, p layout.Padding) {
	t.Helper()
	gs, _ := groups(r, f)
	for lane, g := range gs {
		if g[0].Seq == 0 || g[p].Seq == 0 && g[0].Seq != 1 {
			t.Fatalf("%s: lane %d: a lone record with number %d, %d", f.Name, lane, g[0].Seq, g[p].Seq)
		}
	}
}

func mustBeFresh(t *testing.T, r *pmem.Region, f layout.Flavour) {
	t.Helper()
	gs, _ := groups(r, f)
	for lane, g := range gs {
		if want := f.LoneFlogGroup(g[0].LBA, g[0].Old.Block()); g != want {
			t.Fatalf("%s: lane %d is %+v", f.Name, lane, g)
		}
	}
}

// Goal: a crash while the parent uuid is changed leaves the old one or the new one,
// also when one info block was bad before; data is not touched.
func TestParentCrash(t *testing.T) {
	from, to := uuid.UUID{2}, uuid.UUID{7}
	for _, f := range []layout.Flavour{layout.Kernel, layout.UEFI} {
		f.Align = 64
		for name, spoil := range map[string]uint64{"both good": 0, "primary bad": f.Start + 200, "backup bad": f.Start + arena - 200} {
			image := used(t, f, layout.PaddingNew, 7)
			before := blocks(t, mustOpen(t, pmem.NewTraced(bytes.Clone(image), nil)))
			if spoil != 0 {
				image[spoil] ^= 1
			}
			m := pmemtest.New(image)
			seen := map[uuid.UUID]int{}
			m.OnDrain = func() error {
				for o := new(pmemtest.Odometer); ; {
					n := m.Crash(o, nil)
					seen[same(t, n.Region(), before, name).ParentUUID()]++
					if !o.Next() {
						return nil
					}
				}
			}
			if err := Parent(m.Region(), to, options); err != nil {
				t.Fatal(err)
			}
			m.OnDrain = nil
			if got := mustOpen(t, m.Region()); got.ParentUUID() != to || len(got.Warnings()) > 0 {
				t.Errorf("%s, %s: parent %v, warnings %q", f.Name, name, got.ParentUUID(), got.Warnings())
			}
			if len(seen) != 2 || seen[from] == 0 || seen[to] == 0 {
				t.Errorf("%s, %s: after crashes: %v", f.Name, name, seen)
			}
		}
	}
}

// Goal: what cannot be changed in place is refused, and nothing is touched.
func TestParentRefuses(t *testing.T) {
	pool := used(t, small()[0], layout.PaddingNew, 3)
	r := pmem.NewTraced(bytes.Clone(pool), nil)
	if err := Parent(r, uuid.UUID{7}, options); !errors.Is(err, ErrPoolParent) {
		t.Errorf("a pool: %v", err)
	}
	two := pmem.NewHeap(4096 + 2*arena)
	err := btt.Format(two, btt.FormatParams{Flavour: layout.Kernel, SectorSize: sector, Nfree: nfree, Zeroed: true, MinArena: arena, MaxArena: arena})
	if err != nil {
		t.Fatal(err)
	}
	if err := Parent(two, uuid.UUID{7}, options); !errors.Is(err, ErrArenas) {
		t.Errorf("two arenas: %v", err)
	}
	got := make([]byte, len(pool))
	r.Read(got, 0)
	if !bytes.Equal(got, pool) {
		t.Error("the pool was changed")
	}
}

// Goal: an image of any flavour becomes one of any other in a new file, with every
// block as it was: data, zeros and errors; or it is refused and no file is left.
func TestFile(t *testing.T) {
	for _, c := range []struct {
		from    layout.Flavour
		sector  uint32
		to      layout.Flavour
		refused bool
		block   uint32 // external_lbasize of the new image, if that is another
	}{
		{layout.Kernel, 4096, layout.UEFI, false, 0},
		{layout.UEFI, 512, layout.PMEMBLK, false, 0},
		{layout.PMEMBLK, 4096, layout.Kernel, false, 0},
		{layout.PMEMBLK, 512, layout.Kernel, false, 0},
		{layout.Kernel, 520, layout.Kernel, false, 0},
		{layout.Kernel, 4224, layout.UEFI, false, 0},
		{layout.Kernel, 528, layout.PMEMBLK, false, 512},
		{layout.PMEMBLK, 520, layout.Kernel, true, 0},
		{layout.PMEMBLK, 8192, layout.Kernel, false, 0},
		{layout.Kernel, 16384, layout.PMEMBLK, false, 0},
		{layout.PMEMBLK, 777, layout.PMEMBLK, false, 0},
		{layout.PMEMBLK, 777, layout.Kernel, true, 0},
		{layout.PMEMBLK, 1024, layout.UEFI, true, 0},
		{layout.PMEMBLK, 1 << 12, layout.PMEMBLK, false, 0},
	} {
		t.Run(fmt.Sprintf("%s-%d-%s", c.from.Name, c.sector, c.to.Name), func(t *testing.T) {
			r := pmem.NewHeap(20 << 20)
			if err := btt.Format(r, btt.FormatParams{Flavour: c.from, SectorSize: c.sector, UUID: uuid.UUID{1}, Zeroed: true}); err != nil {
				t.Fatal(err)
			}
			d := mustOpen(t, r)
			scatter(t, d)
			path := filepath.Join(t.TempDir(), "new")
			err := File(context.Background(), d, path, btt.FormatParams{Flavour: c.to, UUID: uuid.UUID{5}, ParentUUID: uuid.UUID{6}}, nil)
			if (err != nil) != c.refused {
				t.Fatalf("refused: %v", err)
			}
			left, _ := filepath.Glob(path + "*")
			if c.refused {
				if len(left) > 0 {
					t.Errorf("left behind: %q", left)
				}
				return
			}
			n, err := pmem.Open(path, pmem.Options{})
			if err != nil || len(left) != 1 {
				t.Fatalf("%v, files %q", err, left)
			}
			defer n.Close()
			got := same(t, n, blocks(t, d), "copy")
			if got.Flavour() != c.to || got.UUID() != (uuid.UUID{5}) || got.ParentUUID() != (uuid.UUID{6}) {
				t.Errorf("flavour %s, uuids %v %v", got.Flavour().Name, got.UUID(), got.ParentUUID())
			}
			if block := got.Arenas()[0].Geometry.ExternalLBASize; block != cmp.Or(c.block, c.sector) {
				t.Errorf("blocks of %d bytes", block)
			}
			if err := File(context.Background(), d, path, btt.FormatParams{Flavour: c.to}, nil); err == nil || !strings.Contains(err.Error(), "exists") {
				t.Errorf("over an existing file: %v", err)
			}
		})
	}
}

// scatter writes, zeroes and marks blocks, with the last block among them.
func scatter(t *testing.T, d *btt.Device) {
	t.Helper()
	sector := int64(d.SectorSize())
	n := int64(d.Size()) / sector
	for i := range int64(200) {
		lba := i * i * 13 % n
		var err error
		switch i % 5 {
		case 0:
			err = d.SetError(layout.ExternalLBA(lba))
		case 1:
			err = d.ZeroAt(lba*sector, sector)
		default:
			_, err = d.WriteAt(bytes.Repeat([]byte{byte(i)}, int(sector)), lba*sector)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if _, err := d.WriteAt(bytes.Repeat([]byte{0xee}, int(sector)), (n-1)*sector); err != nil {
		t.Fatal(err)
	}
}

// Goal: a copy that is cancelled leaves no file.
func TestFileCancelled(t *testing.T) {
	r := pmem.NewHeap(20 << 20)
	if err := btt.Format(r, btt.FormatParams{Flavour: layout.Kernel, SectorSize: 512, Zeroed: true}); err != nil {
		t.Fatal(err)
	}
	d, err := btt.Open(r, btt.Options{})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	dir := t.TempDir()
	if err := File(ctx, d, filepath.Join(dir, "new"), btt.FormatParams{Flavour: layout.UEFI}, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v %v", left, err)
	}
}

// Goal: the size asked for holds the blocks, and a page less would not, unless it
// is the smallest there is.
func TestSizeFor(t *testing.T) {
	for _, f := range layout.Flavours() {
		for _, sector := range []uint32{512, 4096, 65536} {
			for _, blocks := range []uint64{1, 5000, 1 << 20, 200_000_000} {
				size, err := sizeFor(f, sector, blocks)
				if err != nil {
					t.Fatal(err)
				}
				capacity := func(size uint64) (n uint64) {
					for _, a := range layout.Split(size-f.Start, layout.MinArenaSize, layout.MaxArenaSize) {
						g, err := f.Geometry(a, sector, layout.DefaultNfree)
						if err != nil || f.Pool && g.InternalNLBA < 2*g.Nfree {
							return 0
						}
						n += uint64(g.ExternalNLBA)
					}
					return n
				}
				if got := capacity(size); got < blocks {
					t.Errorf("%s, %d blocks of %d: %d bytes hold %d", f.Name, blocks, sector, size, got)
				}
				if got := capacity(size - 4096); got >= blocks {
					t.Errorf("%s, %d blocks of %d: %d bytes are more than needed", f.Name, blocks, sector, size)
				}
			}
		}
	}
}
