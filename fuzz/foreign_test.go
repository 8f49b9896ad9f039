package fuzz

import (
	"fmt"

	"github.com/bttnbd/bttnbd/layout"
	"github.com/bttnbd/bttnbd/pmem"
)

// What a crash of ours leaves may also be recovered by others: a namespace by
// Linux, a pool by PMDK. Their rules are written down here, from btt_freelist_init
// and log_set_indices of Linux 6.1 and from btt.c of PMDK 1.12, as far as they go;
// nothing is shared with the engine, and nothing is stored.

// foreign checks that the other implementation would keep the promise too.
func foreign(r *pmem.Region, f layout.Flavour, p *promise) error {
	geo := parts(r, f)
	base := r.Size() - arena
	entries := make([]layout.MapEntry, geo.ExternalNLBA)
	for lba := range entries {
		entries[lba] = layout.MapEntry(r.Load32(base + geo.MapOff + uint64(lba)*4))
	}
	owner := make([]string, geo.InternalNLBA)
	own := func(block layout.PostmapLBA, who string) error {
		if int(block) >= len(owner) || owner[block] != "" {
			return fmt.Errorf("block %d is owned by %s and %s", block, owner[min(int(block), len(owner)-1)], who)
		}
		owner[block] = who
		return nil
	}
	for lane := range geo.Nfree {
		var b [layout.FlogGroupSize]byte
		r.Read(b[:], base+geo.FlogOff+uint64(lane)*layout.FlogGroupSize)
		g := layout.DecodeFlogGroup(b[:])
		rec := g[0]
		if takesSecond(f, g[0].Seq, g[paddingOf(f)].Seq) {
			rec = g[paddingOf(f)]
		}
		if rec.Old != rec.New && int(rec.LBA) < len(entries) {
			entries[rec.LBA] = roll(f, rec, entries[rec.LBA])
		}
		if err := own(rec.Old.Block(), fmt.Sprintf("lane %d", lane)); err != nil {
			return err
		}
	}
	for lba, e := range entries {
		if err := own(e.Owned(layout.PremapLBA(lba)), fmt.Sprintf("lba %d", lba)); err != nil {
			return err
		}
	}
	for i, lba := range lbas {
		if err := p.keeps(i, contentOf(r, f, base+geo.DataOff, lba, entries[lba])); err != nil {
			return err
		}
	}
	return nil
}

// takesSecond reports which of two records the other takes for the current one.
// Linux goes wrong over lone records with any number but 1.
func takesSecond(f layout.Flavour, first, second uint32) bool {
	switch {
	case first == 0:
		return true
	case f.Pool:
		return second != 0 && layout.NextSeq(first) == second
	case first < second:
		return second-first == 1
	}
	return first-second != 1
}

// roll is the map entry after recovery. PMDK compares whole words.
func roll(f layout.Flavour, rec layout.FlogRecord, e layout.MapEntry) layout.MapEntry {
	if f.Pool {
		raw := e
		if e.State() == layout.Initial {
			raw = layout.NormalEntry(layout.PostmapLBA(rec.LBA))
		}
		if rec.New != raw && rec.Old == raw {
			return rec.New
		}
		return e
	}
	block := e.Owned(rec.LBA)
	if rec.Old.Block() != rec.New.Block() && rec.New.Block() != block && rec.Old.Block() == block {
		return layout.NormalEntry(rec.New.Block())
	}
	return e
}

// contentOf is what the other reads.
func contentOf(r *pmem.Region, f layout.Flavour, data uint64, lba int, e layout.MapEntry) (c content) {
	switch state := e.State(); {
	case state == layout.Error:
		return content{bad: true}
	case state == layout.Zero, state == layout.Initial && f.Pool:
		return zero
	}
	r.Read(c.data[:], data+uint64(e.Owned(layout.PremapLBA(lba)))*sector)
	return c
}
