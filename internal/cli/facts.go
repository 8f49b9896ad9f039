package cli

import (
	"fmt"

	"github.com/google/uuid"

	"github.com/bttnbd/bttnbd/check"
	"github.com/bttnbd/bttnbd/layout"
)

// facts is what info --json prints. Sizes and offsets are in bytes; the offset of
// an arena counts from the start of the image, those inside it from its own.
type facts struct {
	Schema         int             `json:"schema"`
	Path           string          `json:"path"`
	Size           uint64          `json:"size"`
	InUse          bool            `json:"in_use"`
	PID            int             `json:"pid"` // 0: not in use, or not known
	Format         string          `json:"format"`
	Version        string          `json:"version"`
	UUID           uuid.UUID       `json:"uuid"`
	ParentUUID     uuid.UUID       `json:"parent_uuid"`
	SectorSize     uint32          `json:"sector_size"`      // external_lbasize
	DiskSectorSize uint32          `json:"disk_sector_size"` // that of the disk that is served
	IntegrityBytes uint32          `json:"integrity_bytes"`  // the difference
	UsableSize     uint64          `json:"usable_size"`      // of the disk that is served
	Arenas         []arenaFacts    `json:"arenas"`
	Lost           *lostFacts      `json:"lost"` // the arena where the image cannot be followed further; null: none
	Pool           *poolFacts      `json:"pool"` // null: no pool
	Findings       []check.Finding `json:"findings"`

	Map []check.ArenaChart `json:"map,omitempty"` // with --map
}

type arenaFacts struct {
	Arena           int             `json:"arena"`
	Offset          uint64          `json:"offset"`
	Size            uint64          `json:"size"`
	FirstLBA        uint64          `json:"first_lba"` // of the whole disk
	Flags           uint32          `json:"flags"`
	ExternalLBASize uint32          `json:"external_lbasize"`
	ExternalNLBA    uint32          `json:"external_nlba"`
	InternalLBASize uint32          `json:"internal_lbasize"`
	InternalNLBA    uint32          `json:"internal_nlba"`
	Nfree           uint32          `json:"nfree"`
	NextOff         uint64          `json:"nextoff"`
	DataOff         uint64          `json:"dataoff"`
	MapOff          uint64          `json:"mapoff"`
	FlogOff         uint64          `json:"flogoff"`
	InfoOff         uint64          `json:"infooff"`
	Alignments      []uint32        `json:"alignments"` // with which 64 (Linux) or 256 (PMDK) makes this geometry
	Padding         string          `json:"padding"`    // of the flog; "" if the arena is cut off
	FlogFlags       check.FlogFlags `json:"flog_flags"` // likewise
	InFlight        uint64          `json:"lanes_in_flight"`
	BadLanes        uint64          `json:"bad_lanes"`
	Counted         bool            `json:"counted"`         // false: the counts are null
	Initial         *uint64         `json:"initial_entries"` // map entries by what a read of them means
	Zero            *uint64         `json:"zero_entries"`
	Error           *uint64         `json:"error_entries"`
	Normal          *uint64         `json:"normal_entries"`
	Primary         copyFacts       `json:"primary"`
	Backup          copyFacts       `json:"backup"`
	CopiesAgree     bool            `json:"copies_agree"`
	CopiesDiffer    []string        `json:"copies_differ"` // in these fields; [] also if a copy lies outside the file
}

// copyFacts is one of the two copies of an info block.
type copyFacts struct {
	Offset uint64 `json:"offset"`
	Error  string `json:"error"` // why it is not believed; "" if it is
}

// lostFacts is an arena of which neither copy can be believed.
type lostFacts struct {
	Offset  uint64   `json:"offset"`
	Primary lostCopy `json:"primary"`
	Backup  lostCopy `json:"backup"`
}

// lostCopy is what a copy says that cannot be believed.
type lostCopy struct {
	copyFacts
	Signature       bool      `json:"signature"` // false: the rest means nothing
	Version         string    `json:"version"`
	UUID            uuid.UUID `json:"uuid"`
	ParentUUID      uuid.UUID `json:"parent_uuid"`
	ExternalLBASize uint32    `json:"external_lbasize"`
	ExternalNLBA    uint32    `json:"external_nlba"`
	InternalLBASize uint32    `json:"internal_lbasize"`
	InternalNLBA    uint32    `json:"internal_nlba"`
	Nfree           uint32    `json:"nfree"`
	MapOff          uint64    `json:"mapoff"`
	FlogOff         uint64    `json:"flogoff"`
	InfoOff         uint64    `json:"infooff"`
}

// poolFacts is the header of a pmemblk pool.
type poolFacts struct {
	Error       string `json:"error"` // why it is not believed; "" if it is
	PoolsetGUID string `json:"poolset_guid"`
	PartGUID    string `json:"part_guid"`
	Created     uint64 `json:"created"` // unix time
	BlockSize   uint32 `json:"bsize"`
	Compat      uint32 `json:"compat"`
	Incompat    uint32 `json:"incompat"`
	ROCompat    uint32 `json:"ro_compat"`
	Checksum    string `json:"checksum"` // "2048 bytes" or "4096 bytes"
	Dirty       bool   `json:"dirty"`
}

func newFacts(im *check.Image, survey []check.ArenaSurvey) *facts {
	f := &facts{
		Schema: schema, Path: im.Path, Size: im.Size, Format: im.Flavour.Name,
		Arenas: []arenaFacts{}, Findings: append([]check.Finding{}, im.Findings...),
	}
	for i := range im.Arenas {
		a := &im.Arenas[i]
		in := &a.Info
		disk := im.Flavour.SectorSize(in.ExternalLBASize)
		if i == 0 {
			f.Version = fmt.Sprintf("%d.%d", in.Major, in.Minor)
			f.UUID, f.ParentUUID, f.SectorSize = in.UUID, in.ParentUUID, in.ExternalLBASize
			f.DiskSectorSize, f.IntegrityBytes = disk, in.ExternalLBASize-disk
		}
		f.UsableSize += uint64(in.ExternalNLBA) * uint64(disk)
		f.Arenas = append(f.Arenas, newArenaFacts(a, &survey[i]))
	}
	if l := im.Lost; l != nil {
		f.Lost = &lostFacts{Offset: l.Offset, Primary: newLostCopy(&l.Primary), Backup: newLostCopy(&l.Backup)}
	}
	if im.Pool != nil {
		f.Pool = newPoolFacts(im.Pool)
	}
	return f
}

func newArenaFacts(a *check.Arena, s *check.ArenaSurvey) arenaFacts {
	in := &a.Info
	f := arenaFacts{
		Arena: a.Index, Offset: a.Offset, Size: in.Geometry().Size, FirstLBA: uint64(a.FirstLBA), Flags: in.Flags,
		ExternalLBASize: in.ExternalLBASize, ExternalNLBA: in.ExternalNLBA,
		InternalLBASize: in.InternalLBASize, InternalNLBA: in.InternalNLBA, Nfree: in.Nfree,
		NextOff: in.NextOff, DataOff: in.DataOff, MapOff: in.MapOff, FlogOff: in.FlogOff, InfoOff: in.InfoOff,
		Alignments: append([]uint32{}, a.Aligns...),
		FlogFlags:  s.FlogFlags, InFlight: s.InFlight, BadLanes: s.BadLanes,
		Counted: s.Counted,
		Primary: newCopyFacts(&a.Primary), Backup: newCopyFacts(&a.Backup),
		CopiesDiffer: append([]string{}, a.Differ()...),
	}
	if s.Counted {
		f.Initial, f.Zero, f.Error, f.Normal = &s.Initial, &s.Zero, &s.Error, &s.Normal
	}
	f.CopiesAgree = a.Primary.Err == nil && a.Backup.Err == nil && len(f.CopiesDiffer) == 0
	if a.Padding != 0 {
		f.Padding = a.Padding.String()
	}
	return f
}

func newCopyFacts(c *check.InfoCopy) copyFacts {
	cf := copyFacts{Offset: c.Offset}
	if c.Err != nil {
		cf.Error = c.Err.Error()
	}
	return cf
}

func newLostCopy(c *check.InfoCopy) lostCopy {
	in := &c.Info
	return lostCopy{
		copyFacts: newCopyFacts(c), Signature: c.HasSignature(),
		Version: fmt.Sprintf("%d.%d", in.Major, in.Minor), UUID: in.UUID, ParentUUID: in.ParentUUID,
		ExternalLBASize: in.ExternalLBASize, ExternalNLBA: in.ExternalNLBA,
		InternalLBASize: in.InternalLBASize, InternalNLBA: in.InternalNLBA,
		Nfree: in.Nfree, MapOff: in.MapOff, FlogOff: in.FlogOff, InfoOff: in.InfoOff,
	}
}

func newPoolFacts(p *check.PoolInfo) *poolFacts {
	f := &poolFacts{
		PoolsetGUID: layout.GUIDText(p.Poolset), PartGUID: layout.GUIDText(p.UUID), Created: p.Created, BlockSize: p.BlockSize,
		Compat: p.Compat, Incompat: p.Incompat, ROCompat: p.ROCompat, Checksum: "4096 bytes", Dirty: p.Shutdown.Dirty,
	}
	if p.Incompat&layout.PoolCksum2K != 0 {
		f.Checksum = "2048 bytes"
	}
	if p.Err != nil {
		f.Error = p.Err.Error()
	}
	return f
}
