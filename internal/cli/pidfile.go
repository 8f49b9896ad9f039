package cli

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/bttnbd/bttnbd/internal/sandbox"
)

// refusePIDFile refuses to put the pid over anything but the pid of a server that is
// gone.
func (o *serveOptions) refusePIDFile(specs []exportSpec) error {
	if o.PIDFile == "" {
		return nil
	}
	if i := slices.IndexFunc(specs, func(e exportSpec) bool { return sameFile(o.PIDFile, e.path) }); i >= 0 {
		return usagef("--pid-file %s: that is the path of the image: choose another path", o.PIDFile)
	}
	st, err := os.Lstat(o.PIDFile)
	if err != nil {
		return nil // nothing there, or writing will say what is wrong
	}
	if !st.Mode().IsRegular() {
		return fmt.Errorf("--pid-file %s: %s is there: choose another path", o.PIDFile, kind(st.Mode()))
	}
	text, err := os.ReadFile(o.PIDFile)
	if err != nil {
		return fmt.Errorf("--pid-file: %w", err)
	}
	if strings.Trim(string(text), "0123456789\n") != "" || len(text) > 20 {
		return fmt.Errorf("--pid-file %s: holds something other than a process id: choose another path", o.PIDFile)
	}
	return refuseLivePIDFile(o.PIDFile)
}

// refuseLivePIDFile refuses the pid file of a server that runs: it has a lock on it,
// which ends with the process.
func refuseLivePIDFile(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return nil
	}
	defer f.Close() // and with it the lock
	if errors.Is(unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB), unix.EWOULDBLOCK) {
		text, _ := os.ReadFile(path)
		return fmt.Errorf("--pid-file %s: it is that of a server that runs, process %s: stop that, or choose another path", path, strings.TrimSpace(string(text)))
	}
	return nil
}

// writePIDFile writes the pid, and returns the file, which is locked until it is
// closed. A reader finds the whole number or no file. Of two servers that start at
// once one is refused.
func writePIDFile(path string, as *sandbox.Account) (f *os.File, err error) {
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return nil, advisePIDFile(err)
	}
	defer dir.Close()
	if err := lockDirectory(dir); err != nil {
		return nil, fmt.Errorf("--pid-file %s: %w", path, err)
	}
	if err := refuseLivePIDFile(path); err != nil {
		return nil, err
	}
	own, err := ownDirectory(dir)
	if err != nil {
		return nil, advisePIDFile(err)
	}
	defer own.remove()
	temporary := fmt.Sprintf("/proc/self/fd/%d/pid", own.Fd())
	if f, err = os.OpenFile(temporary, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644); err != nil {
		return nil, advisePIDFile(err)
	}
	_ = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) // nobody else knows it; where there are no locks, without
	_, err = fmt.Fprintln(f, os.Getpid())
	if err = errors.Join(err, as.Own(temporary)); err == nil {
		err = os.Rename(temporary, path)
	}
	if err != nil {
		return nil, advisePIDFile(errors.Join(err, f.Close(), os.Remove(temporary)))
	}
	return f, nil
}

// advisePIDFile adds to an error of writing the file what to do about it.
func advisePIDFile(err error) error {
	advice := "choose another path"
	switch {
	case errors.Is(err, fs.ErrNotExist):
		advice = "make its directory, or choose another path"
	case errors.Is(err, fs.ErrPermission):
		advice = "choose a directory that the server may write to"
	}
	return fmt.Errorf("--pid-file: %w: %s", err, advice)
}

// removePIDFile removes the pid file f from path, if it is still there.
func removePIDFile(path string, f *os.File) error {
	defer f.Close()
	there, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	ours, statErr := f.Stat()
	if err = errors.Join(err, statErr); err != nil || !os.SameFile(there, ours) {
		return err
	}
	return os.Remove(path)
}
