package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bttnbd/bttnbd/btt"
	"github.com/bttnbd/bttnbd/check"
	"github.com/bttnbd/bttnbd/internal/signature"
	"github.com/bttnbd/bttnbd/internal/units"
	"github.com/bttnbd/bttnbd/layout"
	"github.com/bttnbd/bttnbd/pmem"
)

// This file says what a file holds that is about to be overwritten, or that is no
// BTT where one was expected.

// contents is what r holds; found is false only when all of it reads as zeros. bar, which
// may be nil, shows how much of r has been looked at.
func contents(ctx context.Context, r *pmem.Region, bar *progress) (c signature.Content, found bool, err error) {
	if c, found, err = signature.Detect(regionReader{r}, r.Size()); found || err != nil {
		return c, found, err
	}
	at, found, err := firstByte(ctx, r, bar)
	if !found || err != nil {
		return c, false, err
	}
	return signature.Content{Name: fmt.Sprintf("data of no known format (the first byte that is not zero is at offset %d)", at)}, true, nil
}

// firstByte is the offset of the first byte of r that is not zero. Holes of a file
// are not read; a device has none.
func firstByte(ctx context.Context, r *pmem.Region, bar *progress) (at uint64, found bool, err error) {
	return firstByteFrom(ctx, r, 0, bar)
}

// firstByteFrom is firstByte at offset from or behind.
func firstByteFrom(ctx context.Context, r *pmem.Region, from uint64, bar *progress) (at uint64, found bool, err error) {
	err = r.WithFile(func(f *os.File) (err error) { // the path may name another by now
		at, found, err = firstByteOf(ctx, r, f, from, bar)
		return err
	})
	return at, found, err
}

func firstByteOf(ctx context.Context, r *pmem.Region, f *os.File, from uint64, bar *progress) (at uint64, found bool, err error) {
	st, err := f.Stat()
	if err != nil {
		return 0, false, err
	}
	next := func(off uint64) (extent, error) { return extent{off, r.Size() - off}, nil }
	if st.Mode().IsRegular() {
		next = func(off uint64) (extent, error) { return nextData(f, off, r.Size()) }
	}
	for off := from; off < r.Size(); {
		e, err := next(off)
		if e.n == 0 || err != nil {
			return 0, false, err
		}
		e.n = min(e.n, searchPiece)
		if at, found, err := signature.FirstByte(ctx, regionReader{r}, e.off, e.n); found || err != nil {
			return at, found, err
		}
		off = e.off + e.n
		bar.update(off-from, r.Size()-from)
	}
	return 0, false, nil
}

// searchPiece is how many bytes are searched between two looks at the progress.
const searchPiece = 64 << 20

// nextData is the first extent of f at off or behind that is no hole; empty if
// there is none below size.
func nextData(f *os.File, off, size uint64) (extent, error) {
	start, err := unix.Seek(int(f.Fd()), int64(off), unix.SEEK_DATA)
	switch {
	case err == unix.ENXIO:
		return extent{}, nil
	case err == unix.EINVAL: // the filesystem does not know its holes
		return extent{off, size - off}, nil
	case err != nil:
		return extent{}, fmt.Errorf("looking for data at %d: %w", off, err)
	}
	end, err := unix.Seek(int(f.Fd()), start, unix.SEEK_HOLE)
	if err != nil {
		return extent{}, fmt.Errorf("looking for a hole at %d: %w", start, err)
	}
	end = min(end, int64(size))
	return extent{uint64(start), uint64(max(end-start, 0))}, nil
}

// openInspected opens what may be damaged but must be an image. The error says what
// it is if it is none.
func openInspected(path string, o pmem.Options) (*pmem.Region, *check.Image, error) {
	r, err := openRegion(path, o)
	if err != nil {
		return nil, nil, err
	}
	im, err := inspect(r)
	if err != nil {
		return nil, nil, errors.Join(err, r.Close())
	}
	return r, im, nil
}

// inspect is [check.Inspect] with an error that says what r holds if that is no BTT.
func inspect(r *pmem.Region) (*check.Image, error) {
	im, err := check.Inspect(r, check.Options{})
	switch {
	case errors.Is(err, check.ErrNoBTT):
		return nil, notBTT(r)
	case err != nil:
		return nil, withPath(r.Path(), err)
	case len(im.Arenas) > 0:
		return im, nil
	}
	// What looks like a ruin of a BTT may be one within a disk image. The first page
	// is judged by itself, where no info block of the ruin takes precedence.
	for _, n := range []uint64{min(r.Size(), layout.InfoSize), r.Size()} {
		c, found, err := signature.Detect(regionReader{r}, n)
		if err != nil {
			return nil, withPath(r.Path(), err)
		}
		if found && c.DiskImage {
			return nil, notRaw(r.Path(), c)
		}
	}
	return im, nil
}

// searchTime bounds the search for data where it only serves to word an error.
const searchTime = 2 * time.Second

// notBTT is the error for a region without any sign of a BTT. It advises to lay one
// out only where there is nothing to lose.
func notBTT(r *pmem.Region) error {
	ctx, stop := context.WithTimeout(context.Background(), searchTime)
	defer stop()
	c, found, err := contents(ctx, r, nil)
	path := r.Path()
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("%s: no BTT here: check the path", path)
	case err != nil:
		return withPath(path, err)
	case !found:
		return fmt.Errorf("%s: no BTT here, only zeros: check the path, or lay one out with bttnbd create %s", path, path)
	case c.DiskImage:
		return notRaw(path, c)
	}
	if isDisk(c) {
		return fmt.Errorf("%s: no BTT here: it holds %s: check the path, or copy it into a new image: %s", path, c.Name,
			copyInto(path, units.Compact(roomFor(r.Size())), "nbdcopy %s \"$uri\""))
	}
	return fmt.Errorf("%s: no BTT here: it holds %s: check the path", path, c.Name)
}

// isDisk says whether c is what a disk holds that somebody uses, as it is.
func isDisk(c signature.Content) bool {
	return slices.ContainsFunc([]string{" filesystem", " partition table", " volume"}, func(kind string) bool { return strings.HasSuffix(c.Name, kind) })
}

func notRaw(path string, c signature.Content) error {
	return fmt.Errorf("%s: no BTT here: it holds %s: copy what is in it into a new image, SIZE being that of the disk in it, 1 %% and 2 MiB: %s",
		path, c.Name, copyInto(path, "SIZE", "qemu-img convert -n -O raw %s \"$uri\""))
}

// copyInto is a command that makes an image of the size, in the current directory, and
// copies what is at path into it, by the command given.
func copyInto(path, size, command string) string {
	name := filepath.Base(path)
	to := strings.TrimSuffix(name, filepath.Ext(name)) + ".btt"
	if to == name {
		to = name + ".btt"
	}
	to = shellWord(to)
	return fmt.Sprintf("bttnbd create --size %s %s && bttnbd serve --run %s %s", size, to, shellQuote(fmt.Sprintf(command, shellWord(path))), to)
}

// roomFor is a size of an image that has room for n bytes, in whole MiB: a map takes
// 4 bytes for each 4096, and the free blocks and the flog of an arena some more.
func roomFor(n uint64) uint64 {
	const mib = 1 << 20
	arenas := n/layout.MaxArenaSize + 1
	return (max(n+n/512+arenas*(mib+mib/16), layout.MinArenaSize+mib) + mib - 1) &^ (mib - 1)
}

// adviseBTT says what to do about an image that does not open.
func adviseBTT(path string, err error) error {
	var corrupt *btt.CorruptError
	switch {
	case errors.Is(err, btt.ErrAmbiguous):
		return fmt.Errorf("%s: %w: see bttnbd info %s", path, err, path)
	case errors.Is(err, btt.ErrNoBTT), errors.As(err, &corrupt):
		if why := ruin(path); why != nil {
			return why
		}
	}
	if errors.Is(err, btt.ErrNoBTT) {
		return fmt.Errorf("%s: %w: see bttcheck %s", path, err, path)
	}
	return withPath(path, err)
}

// ruin looks at the file again, as info does, for what people understand sooner
// than the first field that is wrong; nil if there is no such thing.
func ruin(path string) (why error) {
	r, err := openRegion(path, pmem.Options{ReadOnly: true, NoLock: true})
	if err != nil {
		return nil // it could be opened just now; the first error stands
	}
	defer func() { why = errors.Join(why, r.Close()) }()
	im, err := inspect(r)
	if err != nil {
		return err
	}
	for i := range im.Arenas {
		if a := &im.Arenas[i]; a.Missing > 0 {
			return fmt.Errorf("%s: the file was truncated: %d bytes of arena %d are missing: look for a whole copy of the file, or see bttcheck %s", path, a.Missing, a.Index, path)
		}
	}
	return nil
}
