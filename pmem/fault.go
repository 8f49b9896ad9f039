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
	// Medium: it is the memory at Off that is bad. It is not that the file is too
	// short or its filesystem full, or that the medium as a whole refuses.
	Medium bool
	why    string
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
	if SetFaults(true) {
		return leaveArmed
	}
	return disarm
}

// SetFaults is ArmFaults, or its opposite, for those who put back themselves what
// was before.
func SetFaults(armed bool) (were bool) { return debug.SetPanicOnFault(armed) }

func leaveArmed() {}

func disarm() { SetFaults(false) }

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

// IsFault reports whether a recovered panic value is a memory fault, of whatever region.
func IsFault(v any) bool {
	_, is := faultAt(v)
	return is
}

// faultAt is the address of the fault that a recovered panic value is. The runtime's
// error knows it. Its text does not help: it speaks of a nil pointer.
func faultAt(v any) (addr uintptr, is bool) {
	err, ok := v.(error)
	var at interface{ Addr() uintptr }
	if !ok || !errors.As(err, &at) {
		return 0, false
	}
	return at.Addr(), true
}

// fault is the error for a recovered panic value, nil if it is no fault of r.
func (r *Region) fault(v any) *FaultError {
	addr, ok := faultAt(v)
	if !ok || r.mem == nil {
		return nil
	}
	off := uint64(addr - address(r.mem)) // wraps around below the mapping
	page := uint64(unix.Getpagesize())
	if off >= (r.Size()+page-1)&^(page-1) {
		return nil
	}
	e := &FaultError{Path: r.name(), Off: off, Err: syscall.EIO, Medium: true}
	if r.file != nil {
		e.why, e.Err = r.file.diagnose(off)
		e.Medium = e.why == badMemory && r.file.refuses(off) && !r.file.refuses(0)
	}
	return e
}

// nearlyFull is how many free blocks still count as a full filesystem: some keep
// a few back, and others may have freed one since the fault.
const nearlyFull = 16

const badMemory = "bad memory or a failing disk: see the kernel log"

// diagnose asks the file what a fault at off likely means.
func (f *file) diagnose(off uint64) (why string, err error) {
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
		if f.holeNear(off, uint64(st.Size)) && f.full() {
			return "the filesystem is full and this part of the file has no block yet: free some space", syscall.ENOSPC
		}
	}
	return badMemory, syscall.EIO
}

// refuses reports whether the byte at off cannot be read by read(2) either. Device
// DAX has no read(2); there it is the memory, as nothing else stands in between.
func (f *file) refuses(off uint64) bool {
	var b [1]byte
	_, err := retry(func() (int, error) { return unix.Pread(f.fd, b[:], int64(off)) })
	return err == unix.EIO || err == unix.EINVAL && off > 0
}

// maxFolio is the most that the kernel makes writable at once. Where a block of a
// folio cannot be had, a store to any page of it fails, to those with a block too
// (ext4, Linux 6.16).
const maxFolio = 2 << 20

// holeNear reports whether a block is missing in what the kernel may have tried to
// make writable for a store at off.
func (f *file) holeNear(off, size uint64) bool {
	from := off &^ (maxFolio - 1)
	hole, err := unix.Seek(f.fd, int64(from), unix.SEEK_HOLE)
	return err == nil && uint64(hole) < min(from+maxFolio, size)
}

func (f *file) full() bool {
	var st unix.Statfs_t
	return unix.Fstatfs(f.fd, &st) == nil && st.Bavail <= nearlyFull
}
