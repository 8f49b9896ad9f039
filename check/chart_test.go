package check

import (
	"context"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"reflect"
	"testing"

	"github.com/bttnbd/bttnbd/layout"
)

// chart charts the image and fails the test if that cannot be done.
func (im *image) chart(cells int) []ArenaChart {
	im.t.Helper()
	insp, err := Inspect(im.region, im.options())
	if err != nil {
		im.t.Fatal(err)
	}
	list, err := Chart(context.Background(), im.region, insp, cells, im.options())
	if err != nil {
		im.t.Fatal(err)
	}
	return list
}

// plainChart counts as slowly and as plainly as can be, entry by entry.
func (im *image) plainChart(arena, cells int) (premap, postmap []Cell) {
	n, blocks := int(im.geo.ExternalNLBA), int(im.geo.InternalNLBA)
	cut := func(n int) (per int, strip []Cell) {
		for per = 1; per*cells < n; per++ {
		}
		return per, make([]Cell, (n+per-1)/per)
	}
	perPre, premap := cut(n)
	perPost, postmap := cut(blocks)
	b := im.bytes()
	owners := make([]int, blocks)
	count := func(c *Cell, s layout.EntryState) {
		switch s {
		case layout.Initial:
			c.Initial++
		case layout.Zero:
			c.Zero++
		case layout.Error:
			c.Error++
		case layout.Normal:
			c.Data++
		}
	}
	for lba := range n {
		e := layout.MapEntry(binary.LittleEndian.Uint32(b[im.starts[arena]+im.geo.MapOff+4*uint64(lba):]))
		count(&premap[lba/perPre], e.State())
		block := int(e.Owned(layout.PremapLBA(lba)))
		if block >= blocks {
			premap[lba/perPre].Wrong++
			continue
		}
		count(&postmap[block/perPost], e.State())
		owners[block]++
	}
	for _, block := range im.free[arena] {
		postmap[int(block)/perPost].Free++
		owners[block]++
	}
	for i := range postmap {
		have := 0
		for block := i * perPost; block < min((i+1)*perPost, blocks); block++ {
			have += owners[block]
		}
		size := min(perPost, blocks-i*perPost)
		postmap[i].Wrong = uint64(max(have-size, size-have))
	}
	return premap, postmap
}

// Goal: a chart has each block in its cell, in both orders, however the arena is cut.
// Method: images of all kinds of entries, also bad ones, beside a plain count.
func TestChart(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	for _, p := range []params{{}, {flavour: layout.UEFI}, {arenas: 3, nfree: 5}, {flavour: layout.PMEMBLK, pmdkFlog: true}} {
		im := used(t, p)
		n := layout.PremapLBA(im.geo.ExternalNLBA)
		for arena := range im.starts {
			for range 20 {
				lba := layout.PremapLBA(rng.Uint32N(uint32(n)))
				block := layout.MapEntry(rng.Uint32N(im.geo.InternalNLBA))
				im.putEntry(arena, lba, []layout.MapEntry{0, layout.ZeroEntry(layout.PostmapLBA(block)), layout.ErrorEntry(layout.PostmapLBA(block)), layout.NormalEntry(1 << 29)}[rng.IntN(4)])
			}
		}
		for _, cells := range []int{1, 2, 3, 7, 50, int(n) - 1, int(n), int(n) + 1, 1 << 20} {
			for arena, got := range im.chart(cells) {
				premap, postmap := im.plainChart(arena, cells)
				if !got.Charted || !reflect.DeepEqual(got.Premap.Cells, premap) || !reflect.DeepEqual(got.Postmap.Cells, postmap) {
					t.Fatalf("%v, arena %d, %d cells:\n%v\n%v\nwant\n%v\n%v", p, arena, cells, got.Premap, got.Postmap, premap, postmap)
				}
				if got.Lanes != uint64(im.nfree) || got.Sum.Data+got.Sum.Zero+got.Sum.Error+got.Sum.Initial != uint64(n) {
					t.Errorf("%d lanes, sum %v", got.Lanes, got.Sum)
				}
			}
		}
	}
}

// Goal: of a write in flight the map entry has the old block, and the lane the new one:
// nothing is without an owner.
func TestChartInFlight(t *testing.T) {
	im := used(t, params{})
	im.interrupt(0, 1, 5)
	c := im.chart(16)[0]
	for i, cell := range c.Postmap.Cells {
		if cell.Wrong != 0 {
			t.Errorf("cell %d: %v", i, cell)
		}
	}
}

// Goal: an arena that the file ends in has no chart, and a chart can be interrupted.
func TestChartRuin(t *testing.T) {
	im := build(t, params{arenas: 2})
	cut := im.resized(im.region.Size() - 4096)
	if list := cut.chart(4); len(list) != 2 || !list[0].Charted || list[1].Charted {
		t.Errorf("charts %v", list)
	}
	insp, err := Inspect(im.region, im.options())
	if err != nil {
		t.Fatal(err)
	}
	why := errors.New("enough")
	ctx, stop := context.WithCancelCause(t.Context())
	stop(why)
	if _, err := Chart(ctx, im.region, insp, 4, im.options()); !errors.Is(err, why) {
		t.Errorf("interrupted: %v", err)
	}
}

// Goal: maps of several chunks, taken up by several goroutines, are counted whole.
func TestChartLarge(t *testing.T) {
	im := build(t, params{arena: 40 << 20})
	n := layout.PremapLBA(im.geo.ExternalNLBA)
	if n < 3*chunkEntries {
		t.Fatalf("%d entries are not several chunks", n)
	}
	for lba := layout.PremapLBA(0); lba < n; lba += 1000 {
		im.putEntry(0, lba, layout.NormalEntry(layout.PostmapLBA(n-1-lba)))
	}
	got := im.chart(100)[0]
	premap, postmap := im.plainChart(0, 100)
	if !reflect.DeepEqual(got.Premap.Cells, premap) || !reflect.DeepEqual(got.Postmap.Cells, postmap) {
		t.Errorf("%v\nwant\n%v", got.Postmap.Cells, postmap)
	}
}
