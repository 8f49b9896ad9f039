package check

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"runtime"
	"slices"

	"github.com/google/uuid"

	"github.com/bttnbd/bttnbd/layout"
)

// The header of a pool says hardly anything that the BTT in it does not say too: the
// pool set is the parent uuid, bsize is external_lbasize; the uuid of the only part
// stands there five times, most of the rest is the same in every pool. So a header is
// put together again, and its checksum, if that is what has survived, proves it right.

// planPool plans the header of a pool whose BTT is sound. What it cannot mend is left,
// and stays a finding.
func (p *planner) planPool(im *Image) {
	if !im.Flavour.Pool || len(im.Arenas) == 0 || im.Arenas[0].Missing > 0 || p.lost[0] {
		return
	}
	in := &im.Arenas[0].Info
	page0, page1 := p.pool.raw[:layout.PoolHeaderSize], p.pool.raw[layout.PoolHeaderSize:]
	if p.pool.err != nil {
		after, why := mendHeader(page0, in)
		if after == nil {
			return
		}
		p.overlay[0] = after
		p.add(Step{Arena: WholeImage, Kind: PoolHeader, Stage: StageInfo, Before: page0, After: after, Why: why})
	}
	if bsize := binary.LittleEndian.Uint32(page1); bsize != in.ExternalLBASize {
		mended := binary.LittleEndian.AppendUint32(nil, in.ExternalLBASize)
		p.overlay[layout.PoolHeaderSize] = append(bytes.Clone(mended), page1[4:]...)
		p.add(Step{
			Arena: WholeImage, Kind: PoolHeader, Stage: StageInfo, Offset: layout.PoolHeaderSize, Before: page1[:4], After: mended,
			Why: fmt.Sprintf("bsize of the pool becomes %d, as both the BTT's external_lbasize and its geometry say; it was %d", in.ExternalLBASize, bsize),
		})
	}
}

// mendHeader is the first page of a pool as it was before it was damaged, and how that
// is known; nil if it is not. in is an info block of the BTT in the pool.
func mendHeader(raw []byte, in *layout.Info) (page []byte, why string) {
	h, _ := layout.DecodePoolHeader(append(bytes.Clone(raw), make([]byte, layout.PoolDataOff-len(raw))...))
	sum := raw[layout.PoolHeaderSize-8:]
	for _, h := range headers(h, in) {
		if page := encodeHeader(h, raw); bytes.Equal(page[layout.PoolHeaderSize-8:], sum) {
			return page, "puts the pool header back as it was: its checksum proves it"
		}
	}
	asIs := layout.NewPoolHeader(in.ParentUUID, h.UUID, h.Created, h.Machine, in.ExternalLBASize)
	asIs.Compat, asIs.Incompat = h.Compat, h.Incompat
	page = encodeHeader(asIs, raw)
	if asIs.Validate() == nil && bytes.Equal(page[:layout.PoolHeaderSize-8], raw[:layout.PoolHeaderSize-8]) {
		return page, "computes the checksum of the pool header anew: all else in it is as the BTT says"
	}
	if page = freshHeader(in); page != nil && wordsAreIn(raw, page) {
		return page, "the pool header is gone: makes another with the pool set's uuid, which the BTT has kept"
	}
	return nil, ""
}

// headers are what a header that now reads h may have been.
func headers(h layout.PoolHeader, in *layout.Info) (list []layout.PoolHeader) {
	parts := append([]uuid.UUID{h.UUID}, h.Links[:]...)
	slices.SortFunc(parts, func(a, b uuid.UUID) int { return bytes.Compare(a[:], b[:]) })
	for _, part := range slices.Compact(parts) {
		for _, poolset := range []uuid.UUID{in.ParentUUID, h.Poolset} {
			for _, machine := range []uint16{h.Machine, layout.MachineAMD64, layout.MachineARM64} {
				for _, incompat := range []uint32{h.Incompat, layout.PoolCksum2K | layout.PoolSDS, layout.PoolCksum2K, layout.PoolSDS, 0} {
					for _, compat := range []uint32{h.Compat, layout.PoolCheckBadBlocks, 0} {
						was := layout.NewPoolHeader(poolset, part, h.Created, machine, in.ExternalLBASize)
						was.Incompat, was.Compat = incompat, compat
						list = append(list, was)
					}
				}
			}
		}
	}
	return list
}

// encodeHeader is the page of h, with what its checksum does not cover as in raw.
func encodeHeader(h layout.PoolHeader, raw []byte) []byte {
	b := make([]byte, layout.PoolDataOff)
	h.Encode(b, layout.PoolDataOff)
	page := b[:layout.PoolHeaderSize]
	if h.Incompat&layout.PoolCksum2K != 0 {
		copy(page[layout.PoolHeaderSize/2:layout.PoolHeaderSize-8], raw[layout.PoolHeaderSize/2:])
	}
	return page
}

// freshHeader is a header for the pool of a BTT, always the same one: a repair that
// was interrupted comes to it again. nil: PMDK knows no pools of this machine.
func freshHeader(in *layout.Info) []byte {
	machine, ok := map[string]uint16{"amd64": layout.MachineAMD64, "arm64": layout.MachineARM64}[runtime.GOARCH]
	if !ok || in.ParentUUID == uuid.Nil {
		return nil
	}
	h := layout.NewPoolHeader(in.ParentUUID, in.UUID, 0, machine, in.ExternalLBASize)
	return encodeHeader(h, make([]byte, layout.PoolHeaderSize))
}

// wordsAreIn reports whether each 8 bytes of raw are zero or those of page: nothing
// is there that would be lost.
func wordsAreIn(raw, page []byte) bool {
	for i := 0; i < len(raw); i += 8 {
		if w := binary.LittleEndian.Uint64(raw[i:]); w != 0 && w != binary.LittleEndian.Uint64(page[i:]) {
			return false
		}
	}
	return true
}
