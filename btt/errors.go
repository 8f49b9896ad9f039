package btt

import (
	"errors"
	"fmt"
	"syscall"
)

// Errors by which callers tell situations apart.
var (
	// ErrNoBTT: the region holds no BTT, not even a damaged one.
	ErrNoBTT = errors.New("no BTT found")
	// ErrNoLayout: the region is a pmemblk pool, but no BTT was laid out in it yet.
	// PMDK does that at the first write; here it is never done implicitly.
	ErrNoLayout = errors.New("the pool has no layout yet")
	// ErrReadOnlyPool: the region is a pmemblk pool with features that are not
	// known here, and that allow reading only.
	ErrReadOnlyPool = errors.New("the pool can only be read")
	// ErrAmbiguous: two BTTs of different flavours claim the region.
	ErrAmbiguous = errors.New("two BTTs claim this image")
)

// CorruptError says which metadata of which arena cannot be relied upon. The
// device does not open over it; nothing has been changed.
type CorruptError struct {
	Arena  int
	Offset uint64 // in the image, in bytes
	What   string
	Err    error
}

func (e *CorruptError) Error() string {
	return fmt.Sprintf("arena %d: %s at offset %d: %v (run bttcheck)", e.Arena, e.What, e.Offset, e.Err)
}

func (e *CorruptError) Unwrap() error { return e.Err }

// An ioError is the outcome of one request. It unwraps to a syscall.Errno, by
// which a protocol server chooses its answer. They are values made once, so that
// failing costs the data path no allocation.
type ioError struct {
	errno syscall.Errno
	text  string
}

func (e *ioError) Error() string { return e.text }
func (e *ioError) Unwrap() error { return e.errno }

var (
	errBadBlock   = &ioError{syscall.EIO, "the block is marked bad (error entry in the map); writing it anew makes it good"}
	errBadEntry   = &ioError{syscall.EIO, "the map entry names a block that does not exist; run bttcheck"}
	errArena      = &ioError{syscall.EIO, "the arena is in error and takes no writes; run bttcheck"}
	errReopen     = &ioError{syscall.EIO, "a write to the arena has failed half way; open the image again, which recovers it"}
	errReadOnly   = &ioError{syscall.EROFS, "the device is read-only"}
	errReadRange  = &ioError{syscall.EINVAL, "the range ends past the end of the device"}
	errWriteRange = &ioError{syscall.ENOSPC, "the range ends past the end of the device"}
)
