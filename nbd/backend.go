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
}
