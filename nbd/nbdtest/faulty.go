package nbdtest

import "github.com/bttnbd/bttnbd/nbd"

// Fault decides what a [Faulty] does: it is asked before every operation, one
// of the Op constants, and returns the error to meet, or nil.
type Fault func(op Op, off, n int64) error

// Op names a method of a backend.
type Op string

// The operations of a backend. A WriteGroup asks for each of its entries.
const (
	OpRead     Op = "read"
	OpWrite    Op = "write"
	OpZero     Op = "zero"
	OpTrim     Op = "trim"
	OpFlush    Op = "flush"
	OpReadable Op = "readable"
	OpExtents  Op = "extents"
)

// Faulty is a backend that fails where Fault says so. What does not fail is
// done by Backend.
type Faulty struct {
	nbd.Backend
	Fault Fault
}

// ReadAt asks Fault, then reads.
func (f *Faulty) ReadAt(p []byte, off int64) (int, error) {
	if err := f.Fault(OpRead, off, int64(len(p))); err != nil {
		return 0, err
	}
	return f.Backend.ReadAt(p, off)
}

// WriteGroup asks Fault for each entry, and writes those that do not fail, each
// as a group of its own.
func (f *Faulty) WriteGroup(offs []int64, data [][]byte, errs []error) {
	for i := range offs {
		if err := f.Fault(OpWrite, offs[i], int64(len(data[i]))); err != nil {
			errs[i] = err
			continue
		}
		f.Backend.WriteGroup(offs[i:i+1], data[i:i+1], errs[i:i+1])
	}
}

// ZeroAt asks Fault, then zeros.
func (f *Faulty) ZeroAt(off, n int64) error {
	if err := f.Fault(OpZero, off, n); err != nil {
		return err
	}
	return f.Backend.ZeroAt(off, n)
}

// TrimAt asks Fault, then trims.
func (f *Faulty) TrimAt(off, n int64) error {
	if err := f.Fault(OpTrim, off, n); err != nil {
		return err
	}
	return f.Backend.TrimAt(off, n)
}

// Flush asks Fault, then flushes.
func (f *Faulty) Flush() error {
	if err := f.Fault(OpFlush, 0, 0); err != nil {
		return err
	}
	return f.Backend.Flush()
}

// Readable asks Fault, then Backend.
func (f *Faulty) Readable(off, n int64) error {
	if err := f.Fault(OpReadable, off, n); err != nil {
		return err
	}
	return f.Backend.Readable(off, n)
}

// Extents asks Fault, then Backend.
func (f *Faulty) Extents(off, n int64, emit func(length int64, state uint8) bool) error {
	if err := f.Fault(OpExtents, off, n); err != nil {
		return err
	}
	return f.Backend.Extents(off, n, emit)
}
