package pmem

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// One owner at a time, or any number of readers. Two locks far beyond any data:
//
//	2^62      exclusion: open file description lock, held until the mapping and
//	          the descriptor are gone, also after kill -9
//	2^62 + 1  who: classic lock, which has a pid, where the other has none
//
// The second is only information. It belongs to the process and vanishes when the
// process closes any descriptor of the file, so it decides nothing. Both are
// shared for readers and exclusive for an owner. Filesystems and devices that
// refuse them get flock(2), which knows no pid.
const (
	lockByte = 1 << 62
	pidByte  = 1<<62 + 1
)

// InUseError says that somebody else owns what was to be opened, or reads what was
// to be owned. PID is 0 where the kernel does not tell: a mount, another machine,
// another pid namespace.
type InUseError struct {
	Path string
	PID  int
}

func (e *InUseError) Error() string {
	if e.PID > 0 {
		return fmt.Sprintf("%s: in use by pid %d: stop that process first", e.Path, e.PID)
	}
	return fmt.Sprintf("%s: in use: unmount it, or stop the program that has it open", e.Path)
}

// Unwrap makes the error match EBUSY.
func (e *InUseError) Unwrap() error { return unix.EBUSY }

// takeLock makes this region the owner, or one of the readers, until Close.
func (f *file) takeLock() error {
	err := setLock(f.fd, unix.F_OFD_SETLK, f.lockKind(), lockByte)
	switch {
	case err == nil:
		f.lockPID()
		return nil
	case refused(err):
		return f.takeFlock()
	}
	return f.lockError(err)
}

func (f *file) lockKind() int16 {
	if f.readOnly {
		return unix.F_RDLCK
	}
	return unix.F_WRLCK
}

// lockPID tells others who has the lock. Where it fails the lock holds all the same,
// only anonymously.
func (f *file) lockPID() { _ = setLock(f.fd, unix.F_SETLK, f.lockKind(), pidByte) }

func (f *file) takeFlock() error {
	how := unix.LOCK_EX | unix.LOCK_NB
	if f.readOnly {
		how = unix.LOCK_SH | unix.LOCK_NB
	}
	_, err := retry(func() (int, error) { return 0, unix.Flock(f.fd, how) })
	if err != nil {
		return f.lockError(err)
	}
	return nil
}

func (f *file) lockError(err error) error {
	if err == unix.EAGAIN || err == unix.EACCES {
		pid, _ := lockHolder(f.fd, pidByte)
		return &InUseError{Path: f.path, PID: pid}
	}
	return fmt.Errorf("%s: lock: %w", f.path, err)
}

// refused reports that there are no such locks here, as opposed to taken ones.
func refused(err error) bool {
	return errors.Is(err, errors.ErrUnsupported) || err == unix.EINVAL || err == unix.ENOLCK
}

// Owner reports whether path is in use by an owner or a reader, and by which pid
// (0 if that is not known). It only looks, so the answer may be out of date.
func Owner(path string) (pid int, inUse bool, err error) {
	fd, err := retry(func() (int, error) {
		return unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	})
	if err != nil {
		return 0, false, fmt.Errorf("%s: open: %w", path, err)
	}
	defer unix.Close(fd)
	if _, inUse = lockHolder(fd, lockByte); inUse {
		pid, _ = lockHolder(fd, pidByte)
		return pid, true, nil
	}
	return 0, false, nil
}

// lockHolder asks who would refuse an exclusive lock of the byte. It asks as an
// open file description, to which the locks of this process are foreign too.
func lockHolder(fd int, at int64) (pid int, held bool) {
	lk := unix.Flock_t{Type: unix.F_WRLCK, Whence: 0, Start: at, Len: 1}
	_, err := retry(func() (int, error) { return 0, unix.FcntlFlock(uintptr(fd), unix.F_OFD_GETLK, &lk) })
	if err != nil || lk.Type == unix.F_UNLCK {
		return 0, false
	}
	return max(0, int(lk.Pid)), true
}

func setLock(fd, cmd int, kind int16, at int64) error {
	lk := unix.Flock_t{Type: kind, Whence: 0, Start: at, Len: 1}
	_, err := retry(func() (int, error) { return 0, unix.FcntlFlock(uintptr(fd), cmd, &lk) })
	return err
}
