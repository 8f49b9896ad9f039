package pmem

import (
	"errors"
	"fmt"
	"runtime/debug"
	"syscall"

	"golang.org/x/sys/unix"
)

// FaultError is a load, store or flush that the memory refused (SIGBUS, SIGSEGV).
// Err is EIO, or ENOSPC where a store needed a block of a full filesystem, or EROFS
// for a store to read-only device DAX. Off lies in the page that failed; a bulk
// operation may have met another byte of it than the first. The operation was not
// done, or half done; the region stays usable elsewhere.
type FaultError struct {
	Path string
	Off  uint64
	Err  error
	why  string
}

func (e *FaultError) Error() string {
	s := fmt.Sprintf("%s: offset %d: memory fault: %v", e.Path, e.Off, e.Err)
	if e.why != "" {
		s += ": " + e.why
	}
	return s
}

// Unwrap is Err.
func (e *FaultError) Unwrap() error { return e.Err }

// ArmFaults makes bad memory a panic on this goroutine, for CatchFault to catch,
// where Go would end the process. It is not inherited by goroutines started here.
// It takes a few nanoseconds and allocates nothing; a goroutine may arm itself once
// and ignore restore, which puts back what was before.
//
//	defer r.CatchFault(&err)
//	defer pmem.ArmFaults()()
func ArmFaults() (restore func()) {
	if debug.SetPanicOnFault(true) {
		return leaveArmed
	}
	return disarm
}

func leaveArmed() {}

func disarm() { debug.SetPanicOnFault(false) }

// CatchFault, deferred, stores a *FaultError in err when a memory fault inside the
// mapping panicked; see ArmFaults. It passes every other panic on.
func (r *Region) CatchFault(err *error) {
	v := recover()
	if v == nil {
		return
	}
	e := r.fault(v)
	if e == nil {
		panic(v)
	}
	*err = e
}

// fault is the error for a recovered panic value, nil if it is no fault of r.
func (r *Region) fault(v any) *FaultError {
	// The runtime's error for a fault knows the address. Its text does not help: it
	// speaks of a nil pointer.
	re, ok := v.(error)
	var at interface{ Addr() uintptr }
	if !ok || !errors.As(re, &at) || r.mem == nil {
		return nil
	}
	off := uint64(at.Addr() - address(r.mem)) // wraps around below the mapping
	page := uint64(unix.Getpagesize())
	if off >= (r.Size()+page-1)&^(page-1) {
		return nil
	}
	e := &FaultError{Path: r.name(), Off: off, Err: syscall.EIO}
	if r.file != nil {
		e.why, e.Err = r.file.diagnose(off, page)
	}
	return e
}

// nearlyFull is how many free blocks still count as a full filesystem: some keep
// a few back, and others may have freed one since the fault.
const nearlyFull = 16

// diagnose asks the file what a fault at off likely means.
func (f *file) diagnose(off, page uint64) (why string, err error) {
	if f.readOnly && !f.private {
		return "opened read-only, and this device allows no private copy: open it writable to recover it", syscall.EROFS
	}
	var st unix.Stat_t
	if err := unix.Fstat(f.fd, &st); err != nil {
		return err.Error(), syscall.EIO
	}
	if st.Mode&unix.S_IFMT == unix.S_IFREG {
		if off >= uint64(st.Size) {
			return fmt.Sprintf("the file was truncated to %d bytes while in use: restore it", st.Size), syscall.EIO
		}
		if f.hole(off&^(page-1), page) && f.full() {
			return "the filesystem is full and this part of the file has no block yet: free some space", syscall.ENOSPC
		}
	}
	return "bad memory or a failing disk: see the kernel log", syscall.EIO
}

// hole reports whether no byte of the page at off has a block.
func (f *file) hole(off, page uint64) bool {
	data, err := unix.Seek(f.fd, int64(off), unix.SEEK_DATA)
	return err == unix.ENXIO || err == nil && uint64(data) >= off+page
}

func (f *file) full() bool {
	var st unix.Statfs_t
	return unix.Fstatfs(f.fd, &st) == nil && st.Bavail <= nearlyFull
}
