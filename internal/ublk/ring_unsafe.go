package ublk

import (
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// setup is io_uring_setup(2).
func setup(entries uint32, params *[paramsSize]byte) (fd int, errno syscall.Errno) {
	n, _, errno := unix.Syscall(unix.SYS_IO_URING_SETUP, uintptr(entries), uintptr(unsafe.Pointer(params)), 0)
	return int(n), errno
}

// word is that of a mapping at an offset, which is a multiple of 4.
func word(mapping []byte, off int) *uint32 {
	_ = mapping[off+3]
	return (*uint32)(unsafe.Pointer(&mapping[off]))
}

// address is what the kernel knows memory by that is never moved, see [anonymous].
func address(b []byte) uint64 { return uint64(uintptr(unsafe.Pointer(&b[0]))) }
