package cli

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/user"
	"strconv"
	"strings"
	"syscall"

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
	return r, advise(err, path, o.ReadOnly, "")
}

// advise says of an error of opening path what to do about it. otherwise is what
// else could be done without the permission to write, with a comma in front.
func advise(err error, path string, readOnly bool, otherwise string) error {
	right := "write"
	if readOnly {
		right, otherwise = "read", ""
	}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if target := dangling(path); target != "" {
			return danglingError(path, target)
		}
		return fmt.Errorf("%w: check the path, or make an image with bttnbd create --size 1G %s", err, path)
	case errors.Is(err, unix.ENOTDIR):
		return fmt.Errorf("%w: check the path", err)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%s: no permission to %s: %s%s", path, right, who(path), otherwise)
	case errors.Is(err, unix.EROFS):
		return fmt.Errorf("%s: no permission to write: %w: mount it writable%s", path, unix.EROFS, otherwise)
	case err != nil && isEmpty(path):
		return fmt.Errorf("%s: the file is empty: make it an image with bttnbd create --size 1G %s", path, path)
	}
	return err
}

// who says as whom the program would have the permissions that it lacks.
func who(path string) string {
	st, err := os.Stat(path)
	if err != nil {
		return "run as a user who may search its directories"
	}
	uid := strconv.FormatUint(uint64(st.Sys().(*syscall.Stat_t).Uid), 10)
	owner, give := uid, ""
	if u, err := user.LookupId(owner); err == nil {
		owner = u.Username
	}
	if owner != "root" {
		owner += " or root"
	}
	if me, err := user.Current(); err == nil && me.Uid != "0" && me.Uid != uid { // a service's user
		give = fmt.Sprintf(", or as root chown %s %s", me.Username, path)
	}
	return fmt.Sprintf("its mode is %04o: run as %s%s", st.Mode().Perm(), owner, give)
}

// dangling is where the symbolic link path leads if nothing is there, else "".
func dangling(path string) string {
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		return ""
	}
	target, err := os.Readlink(path)
	if err != nil {
		return ""
	}
	return target
}

func danglingError(path, target string) error {
	return fmt.Errorf("%s: a symbolic link to %s, which does not exist: name that itself, or mend the link", path, target)
}

// adviseCreate adds to an error of making a new file what to do about it.
func adviseCreate(err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ENOTDIR):
		return fmt.Errorf("%w: make its directory first", err)
	case errors.Is(err, fs.ErrPermission), errors.Is(err, unix.EROFS):
		return fmt.Errorf("%w: no permission to write to its directory: choose another one", err)
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

// isRegular reports whether r is a file and no device, whatever its path names by now.
func isRegular(r *pmem.Region) (bool, error) {
	st, err := r.Stat()
	return err == nil && st.Mode().IsRegular(), err
}

func isEmpty(path string) bool {
	st, err := os.Stat(path)
	return err == nil && st.Mode().IsRegular() && st.Size() == 0
}
