package check

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"path/filepath"
	"slices"
	"testing"

	"github.com/bttnbd/bttnbd/layout"
)

// beyondRepair are the damages that a repair leaves, wholly or in part, with the
// reason.
var beyondRepair = map[string]string{
	"unknown flag":                    "nobody knows what it is for",
	"dataoff":                         "another place for all data is a guess",
	"uuid of arena 1":                 "it may hold the data of another BTT",
	"external_nlba of a middle arena": "the geometry is sound and nobody knows it better",
	"nextoff behind the end":          "an arena may be missing",
	"truncated in the last arena":     "what is missing cannot be made up",
	"truncated before the last arena": "what is missing cannot be made up",
	"truncated to one info block":     "what is missing cannot be made up",
	"1.1 in the data of a 2.0":        "it is the user's data",
}

// mark writes its own number into every internal block that holds nothing yet.
func (im *image) mark() {
	for arena := range im.starts {
		for b := range im.geo.InternalNLBA {
			off := im.starts[arena] + im.geo.DataOff + uint64(b)*uint64(im.geo.InternalLBASize)
			if off+8 > im.region.Size() {
				return
			}
			var page [16]byte // an info block in the data must stay whole
			im.region.Read(page[:], off&^4095)
			if !layout.HasSignature(page[:]) && im.region.Load64(off) == 0 {
				im.region.Store64(off, uint64(arena)<<32|uint64(b)|1<<63)
			}
		}
	}
}

// dataAreas is a copy of all data areas.
func (im *image) dataAreas() (b []byte) {
	all := im.bytes()
	for _, start := range im.starts {
		from, to := min(start+im.geo.DataOff, uint64(len(all))), min(start+im.geo.MapOff, uint64(len(all)))
		b = append(b, all[from:to]...)
	}
	return b
}

// content is what a block reads as: the number that mark gave it, or an error.
const (
	readsError = iota + 1
	readsZero
)

func (im *image) content(arena int, e layout.MapEntry, lba layout.PremapLBA) uint64 {
	switch e.State() {
	case layout.Error:
		return readsError
	case layout.Zero:
		return readsZero
	}
	if uint32(e.Owned(lba)) >= im.geo.InternalNLBA {
		return readsError
	}
	return im.region.Load64(im.starts[arena] + im.geo.DataOff + uint64(e.Owned(lba))*uint64(im.geo.InternalLBASize))
}

// mayRead is what each LBA of an image that may be damaged reads as: what the map
// says, or what an interrupted write would make of it.
func (im *image) mayRead() map[uint64][]uint64 {
	reads := map[uint64][]uint64{}
	for arena := range im.starts {
		for lba := range layout.PremapLBA(im.geo.ExternalNLBA) {
			if im.entryAt(arena, lba)+4 > im.region.Size() {
				continue
			}
			e := im.entry(arena, lba)
			key := uint64(arena)*uint64(im.geo.ExternalNLBA) + uint64(lba)
			reads[key] = []uint64{im.content(arena, e, lba)}
			for lane := range layout.Lane(im.nfree) {
				if im.groupAt(arena, lane)+layout.FlogGroupSize > im.region.Size() {
					continue
				}
				for _, r := range im.group(arena, lane) {
					if r.LBA == lba && r.Old.Block() == e.Owned(lba) && r.Moves() {
						reads[key] = append(reads[key], im.content(arena, layout.NormalEntry(r.New.Block()), lba))
					}
				}
			}
		}
	}
	return reads
}

func (im *image) repair(o RepairOptions) *Report {
	im.t.Helper()
	o.Options = im.options()
	rep, err := Repair(context.Background(), im.region, o)
	if err != nil {
		im.t.Fatal(err)
	}
	return rep
}

func TestRepairDamage(t *testing.T) {
	// Goal: each way to spoil an image is planned without changing a byte, repaired,
	// and clean afterwards; LBAs that the plan does not name read as before, those
	// that it names fail; no data block is written; the backup brings every byte back.
	repaired := 0
	for _, d := range damages {
		t.Run(d.name, func(t *testing.T) {
			im := d.image(t)
			im.mark()
			before, data, reads := im.bytes(), im.dataAreas(), im.mayRead()

			dry := im.repair(RepairOptions{DryRun: true})
			if !bytes.Equal(before, im.bytes()) {
				t.Fatal("a dry run has written")
			}
			file := filepath.Join(t.TempDir(), "backup")
			rep := im.repair(RepairOptions{Backup: func(p *Plan) error { return SaveBackup(file, im.region, p) }})
			if got, want := fmt.Sprint(rep.Plan.Steps), fmt.Sprint(dry.Plan.Steps); got != want {
				t.Errorf("planned %s, did %s", want, got)
			}
			if !bytes.Equal(data, im.dataAreas()) {
				t.Error("data was written")
			}
			after := im.run()
			reason, left := beyondRepair[d.name]
			if after.Clean() == left || (len(rep.Plan.Refused) > 0) != left {
				t.Errorf("clean %v, refused %+v, want refused %v (%s); left %v", after.Clean(), rep.Plan.Refused, left, reason, kinds(after))
			}
			if !left {
				repaired++
				im.mustRead(t, reads, rep.Plan.Lost())
			}
			if again := im.repair(RepairOptions{}); len(again.Plan.Steps) > 0 {
				t.Errorf("a second repair does %+v", again.Plan.Steps)
			}
			if rep.Repaired == 0 {
				return
			}
			if _, err := Restore(t.Context(), file, im.region, nil); err != nil || !bytes.Equal(before, im.bytes()) {
				t.Errorf("restore: %v, the same: %v", err, bytes.Equal(before, im.bytes()))
			}
		})
	}
	t.Logf("%d damages tried, %d repaired", len(damages), repaired)
}

// mustRead checks what each LBA reads as after a repair, against before.
func (im *image) mustRead(t *testing.T, before map[uint64][]uint64, lost []uint64) {
	t.Helper()
	n := uint64(im.geo.ExternalNLBA)
	for arena := range im.starts {
		entries, _, bad := meaning(im, arena)
		if bad != "" {
			t.Fatalf("arena %d after the repair: %s; %+v", arena, bad, im.run())
		}
		for i, e := range entries {
			lba := uint64(arena)*n + uint64(i)
			got := im.content(arena, e, layout.PremapLBA(i))
			switch {
			case slices.Contains(lost, lba):
				if got != readsError {
					t.Errorf("lba %d is named as lost and reads %#x", lba, got)
				}
			case !slices.Contains(before[lba], got):
				t.Errorf("lba %d reads %#x, before one of %#x", lba, got, before[lba])
			}
		}
	}
}

func TestRepairAnyWord(t *testing.T) {
	// Goal: with one word of map or flog replaced by any other that occurs there, or by
	// noise, a repair ends clean, and each LBA reads as before the damage or fails;
	// those that fail are named. Method: all pairs of words in a small image.
	im := used(t, params{})
	im.mark()
	im.interrupt(0, 1, 5)
	good, truth := im.bytes(), im.mayRead()
	places := metadata(im)[:int(im.geo.ExternalNLBA)+16*int(im.nfree)]
	tried, wrong := 0, 0
	for i, off := range places {
		for j := range append(places, 0, 0, 0) {
			word := uint32(0xffffffff)
			switch {
			case j < len(places):
				word = binary.LittleEndian.Uint32(good[places[j]:])
			case j == len(places):
				word = binary.LittleEndian.Uint32(good[off:]) ^ 1<<(i%32)
			case j == len(places)+1:
				word = 0
			}
			im.region.Write(0, good)
			im.region.Store32(off, word)
			damaged := im.mayRead()
			rep := im.repair(RepairOptions{})
			if rep.After != nil && !rep.After.Clean() || len(rep.Plan.Refused) > 0 {
				t.Fatalf("word at %d made %#x: refused %+v, left %+v", off, word, rep.Plan.Refused, rep.After.Findings)
			}
			im.mustRead(t, damaged, rep.Plan.Lost())
			tried++
			if im.differsFrom(truth) {
				wrong++
			}
			if t.Failed() {
				t.Fatalf("word at %d made %#x: %+v", off, word, rep.Plan.Steps)
			}
		}
	}
	t.Logf("%d words replaced; in %d cases what the metadata says is consistent and an LBA reads otherwise", tried, wrong)
}

// differsFrom reports whether an LBA reads something that it did not before, and no
// error.
func (im *image) differsFrom(truth map[uint64][]uint64) bool {
	entries, _, _ := meaning(im, 0)
	for i, e := range entries {
		if got := im.content(0, e, layout.PremapLBA(i)); got != readsError && !slices.Contains(truth[uint64(i)], got) {
			return true
		}
	}
	return false
}
