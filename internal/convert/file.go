package convert

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/bttnbd/bttnbd/btt"
	"github.com/bttnbd/bttnbd/layout"
	"github.com/bttnbd/bttnbd/pmem"
)

// Target returns p with the flavour and the block size for an image that is to hold
// the blocks of d, and the size in bytes that it needs. Blocks with room for
// integrity data keep it in a namespace; a pool gets the sectors alone. It refuses
// what the systems that know the flavour could not use.
func Target(d *btt.Device, p btt.FormatParams) (btt.FormatParams, uint64, error) {
	p.SectorSize = d.SectorSize()
	if !d.Flavour().Pool && !p.Flavour.Pool {
		p.SectorSize = d.Arenas()[0].Geometry.ExternalLBASize
	}
	s := p.SectorSize
	switch shown := p.Flavour.SectorSize(s); {
	case p.Flavour.Pool:
	case shown != d.SectorSize():
		return p, 0, fmt.Errorf("blocks of %d bytes, all of them data: format %s takes such for sectors of %d with %d bytes of integrity data; keep format %s", s, p.Flavour.Name, shown, s-shown, d.Flavour().Name)
	case shown < 512 || shown&(shown-1) != 0 || shown == 1024 || shown == 2048:
		return p, 0, fmt.Errorf("sectors of %d bytes: Linux has them of 512 and 4096, and would show an image of format %s with others as a disk of another size; keep format %s", s, p.Flavour.Name, d.Flavour().Name)
	}
	size, err := sizeFor(p.Flavour, s, d.Size()/uint64(d.SectorSize()))
	return p, size, err
}

// sizeFor is the size of the smallest image with at least so many blocks.
func sizeFor(f layout.Flavour, sector uint32, blocks uint64) (size uint64, err error) {
	whole, err := f.Geometry(layout.MaxArenaSize, sector, layout.DefaultNfree)
	if err != nil {
		return 0, err
	}
	perArena := uint64(whole.ExternalNLBA)
	size = f.Start + blocks/perArena*layout.MaxArenaSize
	left := blocks % perArena
	if left == 0 {
		return size, nil
	}
	// From below: flog, map padding and info blocks are still to come on top.
	const page = 4096
	least := (left + layout.DefaultNfree) * uint64(whole.InternalLBASize+4) / page * page
	for arena := max(layout.MinArenaSize, least); ; arena += page {
		g, err := f.Geometry(arena, sector, layout.DefaultNfree)
		if err == nil && uint64(g.ExternalNLBA) >= left && (!f.Pool || g.InternalNLBA >= 2*g.Nfree) {
			return size + arena, nil
		}
	}
}

// File copies every block of d into a new image at path: data, zeros, and blocks
// that cannot be read as such; no integrity data. The image has the flavour and uuids
// of p, and the sector size of d; see [Target]. It appears at path when it is complete and
// durable, and not at all if File fails. d may be in use, but what is written to it
// meanwhile may or may not arrive. progress is that of [Copy].
func File(ctx context.Context, d *btt.Device, path string, p btt.FormatParams, progress func(done, total uint64)) (err error) {
	p, size, err := Target(d, p)
	if err != nil {
		return err
	}
	if _, err := os.Lstat(path); err == nil {
		return fmt.Errorf("%s: exists: choose another path for the new image", path)
	}
	partial := path + ".partial"
	r, err := pmem.Create(partial, size, pmem.Options{})
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(partial))
		}
	}()
	if err := fill(ctx, d, r, p, progress); err != nil {
		return errors.Join(err, r.Close())
	}
	if err := r.Close(); err != nil {
		return err
	}
	if err := unix.Renameat2(unix.AT_FDCWD, partial, unix.AT_FDCWD, path, unix.RENAME_NOREPLACE); err != nil {
		return fmt.Errorf("%s: giving the complete image its name: %w", path, err)
	}
	return syncDir(filepath.Dir(path))
}

// fill formats r, which is all zeros, and copies.
func fill(ctx context.Context, d *btt.Device, r *pmem.Region, p btt.FormatParams, progress func(done, total uint64)) error {
	p.Zeroed = true
	if err := btt.Format(r, p); err != nil {
		return err
	}
	to, err := btt.Open(r, btt.Options{})
	if err != nil {
		return fmt.Errorf("opening the new image: %w", err)
	}
	return Copy(ctx, to, d, progress)
}

// Copy copies every block of from into to, which reads as zeros, has the same
// sector size and at least as many blocks. progress, if not nil, is told how many bytes
// of from are done. If ctx is cancelled Copy ends with its cause.
func Copy(ctx context.Context, to, from *btt.Device, progress func(done, total uint64)) error {
	if to.SectorSize() != from.SectorSize() || to.Size() < from.Size() {
		return fmt.Errorf("%d blocks of %d bytes do not go into %d of %d", from.Size()/uint64(from.SectorSize()), from.SectorSize(), to.Size()/uint64(to.SectorSize()), to.SectorSize())
	}
	sector := int64(from.SectorSize())
	run := max(1, (1<<20)/sector) * sector
	buf := make([]byte, run)
	for off, size := int64(0), int64(from.Size()); off < size; off += run {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		p := buf[:min(run, size-off)]
		if err := copyRun(to, from, p, off); err != nil {
			return err
		}
		if progress != nil {
			progress(uint64(off)+uint64(len(p)), uint64(size))
		}
	}
	return nil
}

// copyRun copies len(p) bytes, whole blocks, at off: at once if all is well, else
// block by block.
func copyRun(to, from *btt.Device, p []byte, off int64) error {
	if from.Readable(off, int64(len(p))) == nil {
		if _, err := from.ReadAt(p, off); err != nil {
			return fmt.Errorf("reading %d bytes at %d: %w", len(p), off, err)
		}
		return writeData(to, p, off)
	}
	sector := int(from.SectorSize())
	for ; len(p) > 0; p, off = p[sector:], off+int64(sector) {
		block := p[:sector]
		var err error
		switch {
		case from.Readable(off, int64(sector)) != nil:
			err = to.SetError(layout.ExternalLBA(off / int64(sector)))
		default:
			if _, err = from.ReadAt(block, off); err == nil {
				err = writeData(to, block, off)
			}
		}
		if err != nil {
			return fmt.Errorf("block at %d: %w", off, err)
		}
	}
	return nil
}

// writeData writes the blocks of p that are not zeros, run by run.
func writeData(to *btt.Device, p []byte, off int64) error {
	sector := int(to.SectorSize())
	zeros := make([]byte, sector)
	isZero := func(i int) bool { return bytes.Equal(p[i:i+sector], zeros) }
	for i := 0; i < len(p); {
		if isZero(i) {
			i += sector
			continue
		}
		end := i + sector
		for end < len(p) && !isZero(end) {
			end += sector
		}
		if _, err := to.WriteAt(p[i:end], off+int64(i)); err != nil {
			return fmt.Errorf("writing %d bytes at %d: %w", end-i, off+int64(i), err)
		}
		i = end
	}
	return nil
}

// syncDir makes a new name in dir durable.
func syncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}
