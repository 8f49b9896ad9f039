package nbdtest

import (
	"sync"
	"syscall"

	"github.com/bttnbd/bttnbd/nbd"
)

// Memory is a backend on the heap. It is safe for concurrent use.
type Memory struct {
	mu     sync.RWMutex
	b      []byte
	groups []int
	calls  Calls
}

// Calls counts the calls of a [Memory] that move no data.
type Calls struct {
	Flush, Trim, Zero, Readable int
}

var _ nbd.Backend = (*Memory)(nil)

// NewMemory returns size bytes of zeros.
func NewMemory(size int) *Memory { return &Memory{b: make([]byte, size)} }

// Bytes returns a copy of the contents.
func (m *Memory) Bytes() []byte {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return append([]byte(nil), m.b...)
}

// Groups returns the sizes of the groups written so far, in order.
func (m *Memory) Groups() []int {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return append([]int(nil), m.groups...)
}

// Calls returns the counts so far.
func (m *Memory) Calls() Calls {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.calls
}

// ReadAt copies out.
func (m *Memory) ReadAt(p []byte, off int64) (int, error) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	if !m.inside(off, int64(len(p))) {
		return 0, syscall.EINVAL
	}
	return copy(p, m.b[off:]), nil
}

// WriteGroup copies in, in order.
func (m *Memory) WriteGroup(offs []int64, data [][]byte, errs []error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for i, p := range data {
		if !m.inside(offs[i], int64(len(p))) {
			errs[i] = syscall.ENOSPC
			continue
		}
		copy(m.b[offs[i]:], p)
	}
	if len(m.groups) < maxGroups {
		m.groups = append(m.groups, len(data))
	}
}

// maxGroups bounds the memory of Groups, so that long runs can use Memory.
const maxGroups = 1 << 12

// ZeroAt clears.
func (m *Memory) ZeroAt(off, n int64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.calls.Zero++
	return m.clear(off, n)
}

// TrimAt clears too.
func (m *Memory) TrimAt(off, n int64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.calls.Trim++
	return m.clear(off, n)
}

// Flush counts.
func (m *Memory) Flush() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.calls.Flush++
	return nil
}

// Readable counts and checks the range.
func (m *Memory) Readable(off, n int64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.calls.Readable++
	if !m.inside(off, n) {
		return syscall.EINVAL
	}
	return nil
}

func (m *Memory) clear(off, n int64) error {
	if !m.inside(off, n) {
		return syscall.EINVAL
	}
	clear(m.b[off : off+n])
	return nil
}

// inside says whether a backend may be asked for n bytes at off: the server
// has to have checked.
func (m *Memory) inside(off, n int64) bool {
	return off >= 0 && n > 0 && off <= int64(len(m.b)) && n <= int64(len(m.b))-off
}
