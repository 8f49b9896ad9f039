package cli

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"sort"

	"github.com/google/uuid"
	"golang.org/x/sys/unix"

	"github.com/bttnbd/bttnbd/btt"
	"github.com/bttnbd/bttnbd/check"
	"github.com/bttnbd/bttnbd/internal/signature"
	"github.com/bttnbd/bttnbd/internal/units"
	"github.com/bttnbd/bttnbd/layout"
	"github.com/bttnbd/bttnbd/pmem"
)

// imageSpec is an image to be made.
type imageSpec struct {
	path       string
	size       uint64 // of the file in bytes; 0: what is there
	sectorSize uint32
	flavour    layout.Flavour
	uuid       uuid.UUID
	parentUUID uuid.UUID
	allocate   bool // take all the space now
	force      bool // overwrite what is there
	regular    bool // it is a file, not a device; known once it is open

	// bar makes the progress of work on the whole file; nil: there is none to be seen.
	bar func(what string) *progress
}

// progress is the bar for what is done to the image, or nil.
func (s *imageSpec) progress(what string) *progress {
	if s.bar == nil {
		return nil
	}
	return s.bar(s.path + ": " + what)
}

// extent is n bytes at off of the file.
type extent struct{ off, n uint64 }

// imagePlan is what a spec comes to.
type imagePlan struct {
	usable uint64 // bytes for data, as a client sees them
	unused uint64 // bytes at the end that no arena covers
	arenas []plannedArena
}

// plannedArena is an arena and its offset in the file.
type plannedArena struct {
	base uint64
	layout.Geometry
}

// plan settles what can be had out of size bytes. It touches nothing.
func (s *imageSpec) plan(size uint64) (imagePlan, error) {
	least := s.flavour.Start + layout.MinArenaSize
	complain := fmt.Errorf
	if s.size != 0 {
		complain = usagef
	}
	switch {
	case size < least:
		return imagePlan{}, complain("%s: %s is too small for a BTT of format %s, which takes at least %s: give it %s or more",
			s.path, units.Human(size), s.flavour.Name, units.Human(least), units.Compact(least))
	case size > math.MaxInt64:
		return imagePlan{}, complain("%s: %s is too large: a file has less than 8 EiB", s.path, units.Human(size))
	}
	var p imagePlan
	base, leastArena := s.flavour.Start, s.leastArena()
	for i, arena := range layout.Split(size-base, layout.MinArenaSize, layout.MaxArenaSize) {
		if arena < leastArena {
			return imagePlan{}, complain("%s: %s is too small for sectors of %d bytes: give it %s or more",
				s.path, units.Human(size), s.sectorSize, units.Compact(base+leastArena))
		}
		g, err := s.flavour.Geometry(arena, s.sectorSize, layout.DefaultNfree)
		if err != nil {
			return imagePlan{}, fmt.Errorf("%s: arena %d: %w", s.path, i, err)
		}
		p.arenas = append(p.arenas, plannedArena{base, g})
		p.usable += uint64(g.ExternalNLBA) * uint64(s.flavour.SectorSize(g.ExternalLBASize))
		base += g.Size
	}
	p.unused = size - base
	return p, nil
}

// leastArena is the size in bytes of the smallest arena for blocks of the sector size,
// in a pool of twice as many as there are lanes, which PMDK wants; 0: none is.
func (s *imageSpec) leastArena() uint64 {
	const page = 4096
	n, found := sort.Find(layout.MaxArenaSize/page+1, func(pages int) int {
		g, err := s.flavour.Geometry(uint64(pages)*page, s.sectorSize, layout.DefaultNfree)
		if err != nil || s.flavour.Pool && g.InternalNLBA < 2*g.Nfree {
			return 1
		}
		return 0
	})
	if !found {
		return 0
	}
	return uint64(n) * page
}

// written is what [btt.Format] writes: the info blocks and the flog, and on a
// file that is not known to be zero also the map, and where there can be no zero
// entries the data.
func (p *imagePlan) written(f layout.Flavour, zeroed bool) (extents []extent) {
	if (!zeroed || f.Pool) && p.arenas[0].base > 0 {
		extents = append(extents, extent{0, p.arenas[0].base})
	}
	for _, a := range p.arenas {
		rest := a.FlogOff // from here to the end of the arena
		switch {
		case zeroed:
		case f.ZeroEntriesSafe(a.ExternalLBASize):
			rest = a.MapOff
		default:
			rest = a.DataOff
		}
		extents = append(extents, extent{a.base, layout.InfoSize}, extent{a.base + rest, a.Size - rest})
	}
	return extents
}

// makeNew makes a file that is not there yet. When it fails, it leaves none.
func (s *imageSpec) makeNew(ctx context.Context) (p imagePlan, err error) {
	if target := dangling(s.path); target != "" {
		return p, danglingError(s.path, target)
	}
	if p, err = s.plan(s.size); err != nil {
		return p, err
	}
	r, err := pmem.Create(s.path, s.size, pmem.Options{})
	if err != nil {
		return p, adviseCreate(err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, removeOwn(r)) // while nobody else can own it
		}
		err = errors.Join(err, r.Close())
	}()
	s.regular = true
	return p, s.layOut(ctx, r, p, true)
}

// removeOwn removes the file of r, if its path still names it.
func removeOwn(r *pmem.Region) error {
	mine, err := r.Stat()
	if err != nil {
		return err
	}
	if named, err := os.Lstat(r.Path()); err != nil || !os.SameFile(mine, named) {
		return nil
	}
	return os.Remove(r.Path())
}

// makeOver lays the image out over an existing file or device. It refuses when
// something is there, unless forced to.
func (s *imageSpec) makeOver(ctx context.Context) (p imagePlan, err error) {
	var o pmem.Options
	if isEmpty(s.path) { // as mktemp leaves it
		if s.size == 0 {
			return p, usagef("%s: the file is empty: give it a size, like --size 1G", s.path)
		}
		if _, err := s.plan(s.size); err != nil {
			return p, err
		}
		o.SizeIfEmpty = s.size
	}
	r, err := openRegion(s.path, o)
	if err != nil {
		return p, err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	if r.Sized() {
		return s.layOutEmpty(ctx, r)
	}
	return s.overwrite(ctx, r)
}

// overwrite is makeOver of what is open: it never goes by the path, which may name
// another file by now.
func (s *imageSpec) overwrite(ctx context.Context, r *pmem.Region) (p imagePlan, err error) {
	if s.regular, err = isRegular(r); err != nil {
		return p, err
	}
	if err := refuseWaited(r); err != nil {
		return p, err
	}
	if p, err = s.mayOverwrite(ctx, r); err != nil {
		return p, err
	}
	if s.allocate && !s.regular {
		return p, usagef("%s: a device has all its space: leave --allocate out", s.path)
	}
	if ctx.Err() != nil {
		return p, context.Cause(ctx) // nothing is changed yet
	}
	defer func() {
		err = interruptLeaves(err, "%s: nothing is laid out yet, and what was there is gone: run the same command again with --force", s.path)
	}()
	if !s.regular {
		return p, s.layOut(ctx, r, p, false)
	}
	if s.force {
		if err := btt.Wipe(r); err != nil {
			return p, withPath(s.path, err)
		}
	}
	zeroed, err := s.clear(r)
	if err != nil {
		return p, err
	}
	if s.size == 0 || s.size == r.Size() {
		return p, s.layOut(ctx, r, p, zeroed)
	}
	resized, err := r.Reopen() // under the lock of r, which has the old size
	if err != nil {
		return p, err
	}
	return p, errors.Join(s.layOut(ctx, resized, p, zeroed), resized.Close())
}

// layOutEmpty is layOut of a file that was empty and has got its size when it was
// opened. When it fails, the file is empty again, before anybody else can own it.
func (s *imageSpec) layOutEmpty(ctx context.Context, r *pmem.Region) (p imagePlan, err error) {
	s.regular = true
	if p, err = s.plan(r.Size()); err == nil {
		err = s.layOut(ctx, r, p, true)
	}
	if err != nil {
		err = errors.Join(err, r.WithFile(func(f *os.File) error { return f.Truncate(0) }))
	}
	return p, err
}

// mayOverwrite refuses what must not be lost: a byte other than zero, wherever it
// is. It changes nothing.
func (s *imageSpec) mayOverwrite(ctx context.Context, r *pmem.Region) (imagePlan, error) {
	size := r.Size()
	resize := s.size != 0 && s.size != size
	switch {
	case resize && !s.regular:
		return imagePlan{}, usagef("%s: the device has %s, not %s: leave --size out", s.path, units.Human(size), units.Human(s.size))
	case resize && s.force:
		size = s.size
	case resize:
		return imagePlan{}, s.wrongSize(ctx, r)
	}
	p, err := s.plan(size)
	if err == nil && !s.force {
		err = s.refuseContents(ctx, r)
	}
	return p, err
}

// refuseContents is the error for a region that holds anything.
func (s *imageSpec) refuseContents(ctx context.Context, r *pmem.Region) error {
	bar := s.progress("looking for data")
	c, found, err := contents(ctx, r, bar)
	bar.end()
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case err != nil:
		return withPath(s.path, err)
	case found:
		return fmt.Errorf("%s: holds %s: %schoose another path, or overwrite it with --force", s.path, c.Name, s.enlarge(r, c))
	}
	return nil
}

// enlarge is what to do instead with an image that is smaller than asked for.
func (s *imageSpec) enlarge(r *pmem.Region, c signature.Content) string {
	if s.size <= r.Size() || c.DiskImage {
		return ""
	}
	im, err := check.Inspect(r, check.Options{})
	if err != nil || len(im.Arenas) == 0 || im.Flavour.Pool {
		return ""
	}
	return fmt.Sprintf("to enlarge it: bttnbd grow --size %s %s; to make another one: ", units.Compact(s.size), shellWord(s.path))
}

// wrongSize is the error for a file of another size than asked for. What it holds
// counts for more than that.
func (s *imageSpec) wrongSize(ctx context.Context, r *pmem.Region) error {
	if err := s.refuseContents(ctx, r); err != nil {
		return err
	}
	return usagef("%s: the file has %s, not %s: leave --size out, or resize it: truncate -s %d %s",
		s.path, units.Human(r.Size()), units.Human(s.size), s.size, shellWord(s.path))
}

// clear gives a regular file the wanted size and, when forced, makes it all
// holes. It reports whether the file is known to read as zeros.
func (s *imageSpec) clear(r *pmem.Region) (zeroed bool, err error) {
	err = r.WithFile(func(f *os.File) (err error) {
		zeroed, err = s.clearFile(f, r.Size())
		return err
	})
	return zeroed, err
}

func (s *imageSpec) clearFile(f *os.File, size uint64) (zeroed bool, err error) {
	if s.size != 0 && s.size != size {
		if err := f.Truncate(int64(s.size)); err != nil {
			return false, err
		}
		size = s.size
	}
	if s.force {
		const punch = unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE
		if err := unix.Fallocate(int(f.Fd()), punch, 0, int64(size)); err == nil {
			return true, f.Sync()
		}
	}
	_, err = f.Seek(0, unix.SEEK_DATA)
	return errors.Is(err, unix.ENXIO), nil // no data anywhere
}

// layOut reserves the space that the image must have, and formats.
func (s *imageSpec) layOut(ctx context.Context, r *pmem.Region, p imagePlan, zeroed bool) error {
	defer pmem.ArmFaults()()
	if s.regular {
		extents := p.written(s.flavour, zeroed)
		if s.allocate {
			extents = []extent{{0, r.Size()}}
		}
		if err := r.WithFile(func(f *os.File) error { return s.reserve(f, extents) }); err != nil {
			return err
		}
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	bar := s.progress("zeroing")
	err := btt.Format(r, btt.FormatParams{
		Flavour: s.flavour, SectorSize: s.sectorSize,
		UUID: s.uuid, ParentUUID: s.parentUUID, Zeroed: zeroed,
		Progress: func(done, total uint64) error {
			bar.update(done, total)
			return context.Cause(ctx)
		},
	})
	bar.end()
	if err != nil {
		return withPath(s.path, err)
	}
	return nil
}

// reserve gives the extents of a regular file their space on disk, so that a full
// disk is refused here and not in the middle of formatting.
func (s *imageSpec) reserve(f *os.File, extents []extent) error {
	for _, e := range extents {
		err := unix.Fallocate(int(f.Fd()), 0, int64(e.off), int64(e.n))
		switch {
		case err == unix.EOPNOTSUPP && !s.allocate:
			return nil // the filesystem cannot promise space
		case err == unix.EOPNOTSUPP:
			return fmt.Errorf("%s: the filesystem cannot reserve space: leave --allocate out", s.path)
		case err == unix.ENOSPC || err == unix.EDQUOT:
			return fmt.Errorf("%s: %w, and the image needs %s to begin with: free some space", s.path, err, units.Human(total(extents)))
		case err != nil:
			return fmt.Errorf("%s: reserving %s at %d: %w", s.path, units.Bytes(e.n), e.off, err)
		}
	}
	return f.Sync()
}

func total(extents []extent) (n uint64) {
	for _, e := range extents {
		n += e.n
	}
	return n
}
