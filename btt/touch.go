package btt

import (
	"sync/atomic"

	"github.com/bttnbd/bttnbd/layout"
	"github.com/bttnbd/bttnbd/pmem"
)

// touchedPages knows the pages of the map that have been made writable, with a block
// of the file below them, since the open. To find one that is not costs a locked
// operation on a line that is seldom cached; it is done once for each page.
type touchedPages struct {
	known []atomic.Uint64 // a bit for each 4 KiB of the map; empty where nothing lasts
}

func (t *touchedPages) init(a *arena) {
	if a.reg.Durability() == pmem.Msync || a.reg.Traced() {
		return // pages become write-protected again; and a simulation is to be repeatable
	}
	pages := (a.geo.ExternalNLBA + entriesPerPage - 1) / entriesPerPage
	t.known = make([]atomic.Uint64, (pages+63)/64)
}

// touch makes sure that the map entry of lba can be stored to: a full disk is to be
// found out before there is a flog record. It also fetches the entry, which the commit
// reads.
func (t *touchedPages) touch(a *arena, lba layout.PremapLBA) {
	off := a.mapOff(lba)
	if t.known == nil {
		a.reg.Touch(off)
		return
	}
	page := uint32(lba) / entriesPerPage
	word, bit := &t.known[page/64], uint64(1)<<(page%64)
	if word.Load()&bit != 0 {
		a.reg.Prefetch(off, entrySize)
		return
	}
	a.reg.Touch(off)
	word.Or(bit)
}
