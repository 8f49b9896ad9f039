package btt

import (
	"bytes"
	"encoding/binary"
	"hash/fnv"

	"github.com/bttnbd/bttnbd/layout"
)

// This file knows again what a Grow has left that was interrupted. What begins where
// the last arena ends is
//
//	word 0     word 1    bytes 16…4095
//	growMark   0         zeros              nothing else is written yet
//	growMark   planned   anything           maps, flogs and info blocks may be, up to
//	                                        the end that planned says
//	growMark   "A_INFO"  of an info block   all new arenas, whole
//	"BTT_AREN" "A_INFO"  of an info block   the same, but for the link
//
// and in the last two cases what the info blocks say is there, as it was made. All else
// is somebody's data, also if it begins with growMark.

// growMark is the first word of space that is being made into arenas: "BTTGROWS". In
// its place stands, when the arena is whole, the first word of an info block.
const growMark = 0x5357_4f52_4754_5442

// sumBits are how many bits of word 1 bind it to the BTT and the place.
const sumBits = 24

// planned is word 1 for new arenas that end at end: the number of its page, and a sum.
// It is no "A_INFO": all arenas together have less than 2^40 pages, and the sum differs.
func (w *grower) planned(end uint64) uint64 {
	sum := fnv.New64a()
	sum.Write(w.d.id[:])
	sum.Write(binary.LittleEndian.AppendUint64(binary.LittleEndian.AppendUint64(nil, w.base), end))
	return end/layout.InfoSize<<sumBits | sum.Sum64()>>(64-sumBits)
}

// leftover reports whether a Grow that was interrupted has left something behind the
// last arena, and where that ends.
func (w *grower) leftover() (end uint64, found bool) {
	if w.base > w.r.Size() || w.r.Size()-w.base < layout.InfoSize {
		return w.base, false
	}
	var raw [layout.InfoSize]byte
	w.r.Read(raw[:], w.base)
	if binary.LittleEndian.Uint64(raw[:]) == growMark {
		word := binary.LittleEndian.Uint64(raw[8:])
		if end := word >> sumBits * layout.InfoSize; end > w.base && word == w.planned(end) {
			return min(end, w.r.Size()), true
		}
		if len(bytes.Trim(raw[8:], "\x00")) == 0 {
			return w.base + layout.InfoSize, true
		}
		binary.LittleEndian.PutUint64(raw[:], layout.SignatureWord)
	}
	return w.unusedArenas(raw[:])
}

// unusedArenas reports whether arenas of this BTT that nobody has used begin where the
// last one ends, the first with the info block raw, and where they end.
func (w *grower) unusedArenas(raw []byte) (end uint64, found bool) {
	for base := w.base; ; w.r.Read(raw, base) {
		in, err := layout.DecodeInfo(raw)
		if err != nil || judge(&in, w.r.Size()-base, w.d.flavour) != nil {
			return w.base, false
		}
		if in.UUID != w.d.id || in.ParentUUID != w.d.parent || !w.unused(base, &in) {
			return w.base, false
		}
		if in.NextOff == 0 {
			return base + in.InfoOff + layout.InfoSize, true
		}
		if base += in.NextOff; !holdsInfo(w.r, base) {
			return w.base, false
		}
	}
}

// unused reports whether map and flog of an arena are as layOut makes them.
func (w *grower) unused(base uint64, in *layout.Info) bool {
	var b, want [layout.FlogGroupSize]byte
	for lane := range in.Nfree {
		free := layout.PostmapLBA(in.ExternalNLBA) + layout.PostmapLBA(lane)
		w.d.flavour.LoneFlogGroup(layout.PremapLBA(lane%in.ExternalNLBA), free).Encode(want[:])
		if w.r.Read(b[:], base+in.FlogOff+uint64(lane)*layout.FlogGroupSize); !bytes.Equal(b[:], want[:]) {
			return false
		}
	}
	for lba := range in.ExternalNLBA {
		e := layout.MapEntry(w.r.Load32(base + in.MapOff + uint64(lba)*entrySize))
		if e != 0 && e != layout.ZeroEntry(layout.PostmapLBA(lba)) {
			return false
		}
	}
	return true
}
