package cli

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/bttnbd/bttnbd/pmem"
)

// regionReader reads a region, device DAX included, which read(2) does not.
type regionReader struct{ r *pmem.Region }

func (rr regionReader) ReadAt(p []byte, off int64) (n int, err error) {
	defer rr.r.CatchFault(&err)
	defer pmem.ArmFaults()()
	if off < 0 || uint64(off) > rr.r.Size() {
		return 0, io.EOF
	}
	n = int(min(uint64(len(p)), rr.r.Size()-uint64(off)))
	rr.r.Read(p[:n], uint64(off))
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// openRegion is [pmem.Open] with errors that say what to do.
func openRegion(path string, o pmem.Options) (*pmem.Region, error) {
	r, err := pmem.Open(path, o)
	return r, advise(err, path)
}

// advise adds to an error of opening path what to do about it.
func advise(err error, path string) error {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%w: check the path, or make an image with bttnbd create --size 1G %s", err, path)
	case errors.Is(err, unix.ENOTDIR):
		return fmt.Errorf("%w: check the path", err)
	}
	return err
}

// adviseCreate adds to an error of making a new file what to do about it.
func adviseCreate(err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ENOTDIR):
		return fmt.Errorf("%w: make its directory first", err)
	case errors.Is(err, fs.ErrPermission), errors.Is(err, unix.EROFS):
		return fmt.Errorf("%w: choose a directory that you may write to", err)
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		return fmt.Errorf("%w: free some space", err)
	case errors.Is(err, unix.EFBIG), errors.Is(err, unix.EINVAL):
		return fmt.Errorf("%w: the filesystem has no files that large, choose a smaller size", err)
	}
	return err
}

// withPath puts the path in front of an error that does not begin with it.
func withPath(path string, err error) error {
	if strings.HasPrefix(err.Error(), path+": ") {
		return err
	}
	return fmt.Errorf("%s: %w", path, err)
}

func isRegular(path string) bool {
	st, err := os.Stat(path)
	return err == nil && st.Mode().IsRegular()
}

func isEmpty(path string) bool {
	st, err := os.Stat(path)
	return err == nil && st.Mode().IsRegular() && st.Size() == 0
}
