package nbd

// Backend holds the bytes of one export.
//
// Every method may be called by many goroutines at once. Ranges are not empty,
// lie inside the export, and are multiples of the export's minimum block: the
// server has checked. Slices belong to the server and must not be kept after
// the call.
//
// An error chooses its number on the wire by being (in the sense of errors.Is)
// a syscall.Errno; one that is none goes out as NBD_EIO.
type Backend interface {
	// ReadAt fills p from off. Less than len(p) bytes is an error; with an
	// error the contents of p are undefined.
	ReadAt(p []byte, off int64) (int, error)

	// WriteGroup writes data[i] at offs[i] for every i as one commit group and
	// puts the outcome of each into errs[i], which is nil at the call. Where
	// entries overlap, the later one must win. What has no error is durable on
	// return; what has one may be there, in part or not at all.
	WriteGroup(offs []int64, data [][]byte, errs []error)

	// ZeroAt makes n bytes at off read as zeros, durably on return.
	ZeroAt(off, n int64) error

	// TrimAt tells that the n bytes at off are not needed any more. They read
	// as anything afterwards.
	TrimAt(off, n int64) error

	// Flush returns when every change that was complete before the call is
	// durable, by whichever connection it came.
	Flush() error

	// Readable returns the error that a read of n bytes at off would meet, as
	// far as metadata tells. It moves no data. The server asks before it sends
	// a READ too large for one buffer, since an error found after the header
	// has gone out costs the connection.
	Readable(off, n int64) error

	// Extents tells the states of consecutive extents from off on, by calling
	// emit with the length in bytes and the State bits of one after the other.
	// It ends when they cover n bytes, when emit returns false, or, after at
	// least one, when it has done work enough for one call. It never tells of
	// more than n bytes. Neighbours may have the same state.
	//
	// What it tells must have been true, and durable, at one moment of the call
	// for each extent by itself, as what ReadAt reads: a client that is told of
	// zeros does not read them.
	Extents(off, n int64, emit func(length int64, state uint8) bool) error
}

// State bits of an extent. None of them means data, or not known to be
// anything else, which is always a true answer.
const (
	StateHole  uint8 = 1 << iota // has no storage of its own: writing it may meet ENOSPC
	StateZero                    // reads as zeros
	StateError                   // cannot be read (EIO) until it is written
)
