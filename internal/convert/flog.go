package convert

import (
	"fmt"

	"github.com/bttnbd/bttnbd/btt"
	"github.com/bttnbd/bttnbd/layout"
	"github.com/bttnbd/bttnbd/pmem"
)

// Flog rewrites the flog of every arena: afterwards each lane has one record, the
// padding is {0,1}, and the flags are those of the image's flavour. It completes
// interrupted writes first and is durable on return. It returns how many lanes it
// changed. Nobody may use the image meanwhile. Errors are those of [btt.Open].
func Flog(r *pmem.Region, o btt.Options) (changed int, err error) {
	d, err := open(r, o)
	if err != nil {
		return 0, err
	}
	defer r.CatchFault(&err)
	defer pmem.ArmFaults()()
	for _, a := range d.Arenas() {
		n, err := rewrite(r, &a, d.Flavour())
		if err != nil {
			return changed, err
		}
		changed += n
	}
	return changed, nil
}

// open opens a device to have it judged and recovered. The device is then left
// alone: it keeps nothing that would have to be written back.
func open(r *pmem.Region, o btt.Options) (*btt.Device, error) {
	d, err := btt.Open(r, o)
	if err != nil {
		return nil, err
	}
	if d.ReadOnly() {
		return nil, fmt.Errorf("the image is open for reading only")
	}
	return d, nil
}

// rewrite rewrites the lanes of one arena. Each is one cache line, and of the
// stores to a line a crash leaves the first few, whichever; every such state is one
// of the lane's, see [fresh]. So one drain is enough for all.
func rewrite(r *pmem.Region, a *btt.ArenaInfo, f layout.Flavour) (changed int, err error) {
	mended := false
	for lane := range a.Geometry.Nfree {
		g, cur, err := group(r, a, lane)
		if err != nil {
			return 0, err
		}
		if g[cur].Old.State() == layout.Error { // the flag goes, so what it asks for is done now
			off := a.Offset + a.Geometry.DataOff + uint64(g[cur].Old.Block())*uint64(a.Geometry.InternalLBASize)
			r.Zero(off, uint64(a.Geometry.InternalLBASize))
			mended = true
		}
	}
	if mended {
		if err := r.Drain(); err != nil {
			return 0, err
		}
	}
	for lane := range a.Geometry.Nfree {
		g, cur, err := group(r, a, lane)
		if err != nil {
			return changed, err
		}
		stores := fresh(&g, cur, a.Padding, f)
		for _, s := range stores {
			r.Store64(groupOff(a, lane)+s.off, s.value)
		}
		if len(stores) > 0 {
			r.Flush(groupOff(a, lane), layout.FlogGroupSize)
			changed++
		}
	}
	if changed == 0 {
		return 0, nil
	}
	return changed, r.Drain()
}

func groupOff(a *btt.ArenaInfo, lane uint32) uint64 {
	return a.Offset + a.Geometry.FlogOff + uint64(lane)*layout.FlogGroupSize
}

func group(r *pmem.Region, a *btt.ArenaInfo, lane uint32) (g layout.FlogGroup, cur int, err error) {
	var b [layout.FlogGroupSize]byte
	r.Read(b[:], groupOff(a, lane))
	g = layout.DecodeFlogGroup(b[:])
	if cur, err = g.Current(a.Padding); err != nil {
		return g, 0, fmt.Errorf("flog of lane %d at offset %d: %w", lane, groupOff(a, lane), err)
	}
	return g, cur, nil
}

// store is an 8-byte store at an offset of a flog group.
type store struct{ off, value uint64 }

// fresh is what to store to make the lane's free block the only thing that it
// says: one record, the first, with sequence number 1.
//
// The records are written as ever, the older one each time and its second word
// last, each saying that the free block moves nowhere, until the first one gets
// number 1. Only then does the other go, its sequence number before the rest: at no
// moment is there a lone record with another number, which Linux would misread.
//
//	{0,2}: slot 0  seq 3   3   1*   1*     slot 0 held an old record with 2
//	       slot 2  seq 1   …        0, gone
func fresh(g *layout.FlogGroup, cur int, p layout.Padding, f layout.Flavour) (stores []store) {
	free := g[cur].Old.Block()
	want := f.LoneFlogGroup(g[cur].LBA, free)
	if *g == want {
		return nil
	}
	put := func(slot int, r layout.FlogRecord) {
		lbaOld, newSeq := r.Words()
		off := uint64(slot) * layout.FlogRecordSize
		stores = append(stores, store{off, lbaOld}, store{off + 8, newSeq})
	}
	r := want[0]
	r.Seq = g[cur].Seq
	for slot := int(p) - cur; ; slot = int(p) - slot {
		r.Seq = layout.NextSeq(r.Seq)
		put(slot, r)
		if slot == 0 && r.Seq == 1 {
			break
		}
	}
	other := uint64(p) * layout.FlogRecordSize
	return append(stores, store{other + 8, 0}, store{other, 0})
}
