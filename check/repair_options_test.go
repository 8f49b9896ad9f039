package check

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/uuid"

	"github.com/bttnbd/bttnbd/layout"
	"github.com/bttnbd/bttnbd/pmem"
)

func TestErrorFlagStays(t *testing.T) {
	// Goal: an error flag is not cleared while damage is left, even in another arena.
	im := used(t, two)
	im.change(func(i *layout.Info) { i.Flags = layout.FlagError }, im.primary(0), im.backup(0))
	im.change(func(i *layout.Info) { i.UUID[0]++ }, im.primary(1), im.backup(1))
	im.putEntry(0, 3, im.entry(0, 4))
	rep := im.repair(RepairOptions{})
	if im.info(im.primary(0)).Flags == 0 || im.info(im.backup(0)).Flags == 0 || rep.Repaired == 0 {
		t.Errorf("flags cleared after %d steps", rep.Repaired)
	}
	if !slices.ContainsFunc(rep.Plan.Refused, func(r Refusal) bool { return r.Kind == ArenaError }) {
		t.Errorf("not said: %+v", rep.Plan.Refused)
	}
}

func TestAdopt(t *testing.T) {
	// Goal: an arena of another uuid becomes part of the BTT if, and only if, asked for.
	im := used(t, two)
	im.change(func(i *layout.Info) { i.UUID[0]++; i.ParentUUID[0]++ }, im.primary(1), im.backup(1))
	before := im.bytes()
	if rep := im.repair(RepairOptions{}); len(rep.Plan.Refused) == 0 || !bytes.Equal(before, im.bytes()) {
		t.Errorf("without being asked: %+v", rep.Plan)
	}
	if rep := im.repair(RepairOptions{Adopt: true}); rep.After == nil || !rep.After.Clean() || im.info(im.backup(1)).UUID != testUUID {
		t.Errorf("asked: %+v", rep.Plan)
	}
}

func TestParentUUID(t *testing.T) {
	// Goal: a parent that is not what the caller says is found and repaired, in all
	// arenas, and nothing else changes.
	im := used(t, uefi)
	right := uuid.UUID{7}
	o := RepairOptions{Options: im.options()}
	o.ParentUUID = &right
	rep, err := Repair(context.Background(), im.region, o)
	if err != nil || !slices.Equal(kinds(rep), []string{"arena-parent"}) || rep.Repaired != 4 || !rep.After.Clean() {
		t.Fatalf("%+v, %v", rep, err)
	}
	for arena := range im.starts {
		if im.info(im.primary(arena)).ParentUUID != right || im.info(im.backup(arena)).ParentUUID != right {
			t.Errorf("arena %d has another parent", arena)
		}
	}
}

// poolOf is a pmemblk pool with a BTT in it.
func poolOf(t *testing.T, blockSize uint32) *image {
	im := used(t, params{flavour: layout.PMEMBLK, sector: 512, arena: 65536, pmdkFlog: true})
	im.putHeader(blockSize)
	return im
}

func (im *image) putHeader(blockSize uint32) {
	h := layout.NewPoolHeader(testParent, uuid.UUID{5}, 0, layout.MachineAMD64, blockSize)
	b := make([]byte, layout.PoolDataOff)
	h.Encode(b, im.region.Size())
	im.region.Write(0, b)
}

func TestPool(t *testing.T) {
	// Goal: the header of a pool is checked with its BTT, and a pool without one is
	// empty only if its flog is, too.
	unwritten := func() *image {
		im := build(t, params{flavour: layout.PMEMBLK, sector: 512, arena: 1 << 20, nfree: 256})
		im.putHeader(512)
		im.region.Zero(layout.PoolDataOff, im.region.Size()-layout.PoolDataOff)
		return im
	}
	destroyed := poolOf(t, 512)
	destroyed.region.Zero(destroyed.primary(0), layout.InfoSize)
	destroyed.region.Zero(destroyed.backup(0), layout.InfoSize)
	for _, c := range []struct {
		name     string
		im       *image
		spoil    func(*image)
		want     []string
		clean    bool
		repaired bool
	}{
		{name: "sound", im: poolOf(t, 512), clean: true, repaired: true},
		{name: "checksum", im: poolOf(t, 512), spoil: func(im *image) { im.region.Store32(1000, 1) }, want: []string{"pool-header"}, repaired: true},
		{name: "signature", im: poolOf(t, 512), spoil: func(im *image) { im.region.Store64(0, 0) }, want: []string{"pool-header"}, repaired: true},
		{name: "header gone", im: poolOf(t, 512), spoil: func(im *image) { im.region.Zero(0, 4096) }, want: []string{"pool-header"}, repaired: true},
		{name: "header torn", im: poolOf(t, 512), spoil: func(im *image) {
			im.region.Zero(0, 4096)
			page := freshHeader(&layout.Info{UUID: testUUID, ParentUUID: testParent})
			im.region.Write(0, page[:64])
			im.region.Write(2048, page[2048:])
		}, want: []string{"pool-header"}, repaired: true},
		{name: "something else for a header", im: poolOf(t, 512), spoil: func(im *image) {
			im.region.Zero(0, 4096)
			im.region.Store32(64, 1)
		}, want: []string{"pool-header"}},
		{name: "unknown incompat", im: poolOf(t, 512), spoil: func(im *image) {
			h := layout.NewPoolHeader(testParent, uuid.UUID{5}, 0, layout.MachineAMD64, 512)
			h.Incompat |= 8
			b := make([]byte, layout.PoolDataOff)
			h.Encode(b, im.region.Size())
			im.region.Write(0, b)
		}, want: []string{"pool-header"}},
		{name: "bsize", im: poolOf(t, 4096), want: []string{"pool-header"}, repaired: true},
		{name: "parent", im: poolOf(t, 512), spoil: func(im *image) {
			im.change(func(i *layout.Info) { i.ParentUUID[1]++ }, im.primary(0), im.backup(0))
		}, want: []string{"arena-parent"}, repaired: true},
		{name: "interrupted", im: poolOf(t, 512), spoil: func(im *image) { im.interrupt(0, 1, 5) }, want: []string{"flog-in-flight"}, clean: true, repaired: true},
		{name: "lane", im: poolOf(t, 512), spoil: func(im *image) { im.putGroup(0, 1, layout.FlogGroup{}) }, want: []string{"block-orphan", "flog-sequence"}, repaired: true},
		{name: "nothing laid out", im: unwritten(), want: []string{"pool-empty"}, clean: true, repaired: true},
		{name: "info blocks destroyed", im: destroyed, want: []string{"arena-lost", "info-signature"}},
	} {
		if c.spoil != nil {
			c.spoil(c.im)
		}
		rep := c.im.run()
		if !slices.Equal(kinds(rep), c.want) || rep.Clean() != c.clean || rep.Format != "pmemblk" {
			t.Errorf("%s: %v, clean %v, format %s", c.name, kinds(rep), rep.Clean(), rep.Format)
		}
		c.im.repair(RepairOptions{})
		if rep := c.im.run(); rep.Clean() != c.repaired {
			t.Errorf("%s: after a repair clean %v: %v", c.name, rep.Clean(), kinds(rep))
		}
	}
}

func TestSectorSizes(t *testing.T) {
	// Goal: all block sizes that Linux has are accepted without a word.
	for _, size := range sectors {
		im := used(t, params{sector: size, arena: 4 << 20, nfree: 256})
		if rep := im.run(); len(rep.Findings) > 0 {
			t.Errorf("%d: %+v", size, rep.Findings)
		}
	}
}

func TestBackupFiles(t *testing.T) {
	// Goal: nothing is stored from a backup that is damaged anywhere, cut short, or of an
	// image of another size; and no file is overwritten by one.
	im := used(t, params{})
	im.putEntry(0, 3, im.entry(0, 4))
	file := filepath.Join(t.TempDir(), "backup")
	save := func(p *Plan) error { return SaveBackup(file, im.region, p) }
	if rep := im.repair(RepairOptions{Backup: save}); rep.Repaired == 0 {
		t.Fatal("nothing to repair")
	}
	after := im.bytes()
	if err := SaveBackup(file, im.region, new(Plan)); !errors.Is(err, os.ErrExist) {
		t.Errorf("over a file: %v", err)
	}
	good, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	try := func(what string, b []byte, r *pmem.Region) {
		if err := os.WriteFile(file, b, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Restore(t.Context(), file, r, nil); !errors.Is(err, ErrBackup) {
			t.Errorf("%s: %v", what, err)
		}
	}
	for i := range good {
		bad := bytes.Clone(good)
		bad[i] ^= 1
		try("a byte changed", bad, im.region)
		try("cut short", good[:i], im.region)
	}
	try("another image", good, pmem.NewHeap(im.region.Size()+4096))
	if !bytes.Equal(after, im.bytes()) {
		t.Error("the image has changed")
	}
}

func TestRepairSaysNo(t *testing.T) {
	// Goal: nothing is stored if the backup fails, or if the image has changed since the
	// plan was made.
	im := used(t, params{})
	im.putEntry(0, 3, im.entry(0, 4))
	before := im.bytes()
	full := errors.New("disk full")
	o := RepairOptions{Options: im.options(), Backup: func(*Plan) error { return full }}
	if _, err := Repair(context.Background(), im.region, o); !errors.Is(err, full) || !bytes.Equal(before, im.bytes()) {
		t.Errorf("backup failed: %v", err)
	}
	o.Backup = func(*Plan) error { im.putEntry(0, 3, layout.NormalEntry(im.free[0][0])); return nil }
	if _, err := Repair(context.Background(), im.region, o); err == nil {
		t.Error("the image changed, and nobody noticed")
	}
}

func TestRepairPromises(t *testing.T) {
	// Goal: what a finding says a repair would do, the plan does; what is left says why;
	// where only a plan can tell, a check points to it.
	wiped := used(t, params{})
	wiped.region.Zero(wiped.groupAt(0, 0), uint64(wiped.nfree)*layout.FlogGroupSize)
	wiped.region.Zero(wiped.backup(0), layout.InfoSize)
	lost := used(t, params{})
	lost.region.Store32(lost.primary(0)+64, ^lost.region.Load32(lost.primary(0)+64))
	lost.region.Zero(lost.backup(0), layout.InfoSize)
	images := map[string]*image{"flog wiped": wiped, "info blocks lost": lost}
	for _, d := range damages {
		images[d.name] = d.image(t)
	}
	for name, im := range images {
		checked, planned := im.run(), im.repair(RepairOptions{DryRun: true})
		for _, rep := range []*Report{checked, planned} {
			for _, f := range rep.Findings {
				does := slices.ContainsFunc(planned.Plan.Steps, func(s Step) bool { return s.Arena == f.Arena })
				if f.Kind != ArenaLost && f.Arena >= 0 && f.Severity > Info && f.Repair != "" && !does {
					t.Errorf("%s: %v promises %q, of which the plan does nothing", name, f.Kind, f.Repair)
				}
				if points := f.Kind == ArenaLost && rep == checked; f.Kind == ArenaLost && points != strings.Contains(f.Repair, "--dry-run") {
					t.Errorf("%s: arena-lost points to %q", name, f.Repair)
				}
			}
		}
		for _, r := range planned.Plan.Refused {
			if r.Kind != FlogSequence && !strings.Contains(r.Why, "left, because") {
				t.Errorf("%s: left without a reason: %v: %s", name, r.Kind, r.Why)
			}
		}
	}
	if rep := wiped.run(); len(rep.Findings) == 0 || wiped.repair(RepairOptions{}).Repaired > 0 {
		t.Error("a wiped flog is no finding, or was repaired")
	}
	if rep := lost.repair(RepairOptions{}); rep.After == nil || !rep.After.Clean() {
		t.Error("lost info blocks were not computed anew")
	}
}
