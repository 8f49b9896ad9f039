package btt

import (
	"errors"
	"fmt"
	"runtime"

	"github.com/bttnbd/bttnbd/layout"
	"github.com/bttnbd/bttnbd/pmem"
)

// This file is about what a pmemblk pool has around its BTT; see
// [layout.PoolHeader].

// probePool reports whether the image is a pool, and its header. A pool comes
// first in the probe: its user cannot write to the header, and nobody who makes
// an image of another flavour leaves it whole. Errors are about images that are
// a pool and cannot be used; ErrPoolChecksum also about a left-over.
func probePool(r *pmem.Region) (h layout.PoolHeader, found bool, err error) {
	if r.Size() < layout.PoolDataOff {
		return h, false, nil
	}
	var raw [layout.PoolDataOff]byte
	r.Read(raw[:], 0)
	h, err = layout.DecodePoolHeader(raw[:])
	switch {
	case errors.Is(err, layout.ErrNoPool):
		return h, false, nil
	case layout.HasSignature(raw[layout.Kernel.Start:]):
		return h, false, nil // a kernel image has been made over the pool's second page
	case err != nil:
		return h, false, &CorruptError{Offset: 0, What: "pool header", Err: err}
	}
	if err := h.Validate(); err != nil {
		return h, true, err
	}
	if h.ReadOnly() && !r.ReadOnly() {
		return h, true, fmt.Errorf("%w (ro_compat features %#x): open it read-only", ErrReadOnlyPool, h.ROCompat)
	}
	return h, true, nil
}

// poolInfo checks that the pool has a layout at all. PMDK makes it when the first
// block is written. That nothing is there must be certain: PMDK itself takes a
// damaged info block for an empty pool, and formats over it.
func poolInfo(r *pmem.Region, h *layout.PoolHeader, maxArena uint64) error {
	f := layout.PMEMBLK
	_, _, err := findInfo(r, f.Start, maxArena, f)
	if err == nil {
		return nil
	}
	if errors.Is(err, layout.ErrNoSignature) && isZero(r, f.Start, layout.InfoSize) {
		return fmt.Errorf("%w: nothing was ever written to it, and all its blocks of %d bytes read as zeros; make it anew to use it (format pmemblk, sector size %d)", ErrNoLayout, h.BlockSize, h.BlockSize)
	}
	return &CorruptError{Offset: f.Start, What: f.Name + " info block", Err: err}
}

// belongsToPool reports why the first arena's info block cannot be of this pool.
func belongsToPool(in *layout.Info, h *layout.PoolHeader) error {
	if in.ParentUUID != h.Poolset {
		return fmt.Errorf("parent uuid %v, but the pool set has %v: this BTT belongs to another pool", in.ParentUUID, h.Poolset)
	}
	if in.ExternalLBASize != h.BlockSize {
		return fmt.Errorf("external_lbasize %d, but the pool has bsize %d", in.ExternalLBASize, h.BlockSize)
	}
	return nil
}

// poolWarnings are about what PMDK would look at when it opens the pool.
func poolWarnings(h *layout.PoolHeader) []string {
	if s := h.Shutdown; h.Incompat&layout.PoolSDS != 0 && s.Dirty && s.Count != 0 {
		return []string{fmt.Sprintf("the pool was not closed by PMDK, when its memory had seen %d unsafe shutdowns: if that number has grown, what was written last may be lost", s.Count)}
	}
	return nil
}

// writePoolDescriptor and writePoolHeader make the two pages in front of a new
// pool's BTT. The header is what makes it a pool, so it goes last of all.
func writePoolDescriptor(r *pmem.Region, p *FormatParams) {
	raw := poolPages(r, p)
	r.Write(layout.PoolHeaderSize, raw[layout.PoolHeaderSize:])
}

func writePoolHeader(r *pmem.Region, p *FormatParams) error {
	r.Write(0, poolPages(r, p)[:layout.PoolHeaderSize])
	return r.Drain()
}

func poolPages(r *pmem.Region, p *FormatParams) []byte {
	h := layout.NewPoolHeader(p.ParentUUID, p.UUID, uint64(p.Created.Unix()), hostMachine(), p.SectorSize)
	raw := make([]byte, layout.PoolDataOff)
	h.Encode(raw, r.Size())
	return raw
}

// hostMachine is the machine whose PMDK is to use a pool made here. PMDK refuses
// all others, although nothing in a pool depends on it.
func hostMachine() uint16 {
	if runtime.GOARCH == "arm64" {
		return layout.MachineARM64
	}
	return layout.MachineAMD64
}

// isZero reports whether n bytes at off, a multiple of 8, are zeros.
func isZero(r *pmem.Region, off, n uint64) bool {
	for ; n > 0; off, n = off+8, n-8 {
		if r.Load64(off) != 0 {
			return false
		}
	}
	return true
}
