package nbdtest

import (
	"bytes"
	"sync"
	"syscall"

	"github.com/bttnbd/bttnbd/nbd"
)

// Memory is a backend on the heap. It is safe for concurrent use.
type Memory struct {
	mu     sync.RWMutex
	b      []byte
	bad    map[int64]bool // by block of memoryBlock bytes
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

// memoryBlock is the unit of what Extents tells and MarkBad marks, in bytes.
const memoryBlock = 512

// MarkBad makes the blocks of 512 bytes that n bytes at off touch unreadable,
// until something is written to each.
func (m *Memory) MarkBad(off, n int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.bad == nil {
		m.bad = make(map[int64]bool)
	}
	for b := off / memoryBlock; b*memoryBlock < off+n; b++ {
		m.bad[b] = true
	}
}

// firstBad is the first byte from off on, of n, that cannot be read; off+n if
// there is none.
func (m *Memory) firstBad(off, n int64) int64 {
	if len(m.bad) != 0 {
		for b := off / memoryBlock; b*memoryBlock < off+n; b++ {
			if m.bad[b] {
				return max(off, b*memoryBlock)
			}
		}
	}
	return off + n
}

func (m *Memory) makeGood(off, n int64) {
	if len(m.bad) == 0 {
		return
	}
	for b := off / memoryBlock; b*memoryBlock < off+n; b++ {
		delete(m.bad, b)
	}
}

// ReadAt copies out, up to what has been marked bad.
func (m *Memory) ReadAt(p []byte, off int64) (int, error) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	if !m.inside(off, int64(len(p))) {
		return 0, syscall.EINVAL
	}
	if bad := m.firstBad(off, int64(len(p))); bad < off+int64(len(p)) {
		return copy(p, m.b[off:bad]), syscall.EIO
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
		m.makeGood(offs[i], int64(len(p)))
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
	if m.firstBad(off, n) < off+n {
		return syscall.EIO
	}
	return nil
}

// Extents tells blocks of 512 bytes that hold zeros alone as zeros and holes, and
// those marked bad as errors. It looks at 4 MiB in a call.
func (m *Memory) Extents(off, n int64, emit func(length int64, state uint8) bool) error {
	m.mu.RLock()
	defer m.mu.RUnlock()
	if !m.inside(off, n) {
		return syscall.EINVAL
	}
	for end := off + min(n, 4<<20); off < end; {
		next := min(end, off/memoryBlock*memoryBlock+memoryBlock)
		var state uint8
		switch {
		case m.bad[off/memoryBlock]:
			state = nbd.StateError
		case bytes.Equal(m.b[off:next], zeros[:next-off]):
			state = nbd.StateZero | nbd.StateHole
		}
		if !emit(next-off, state) {
			return nil
		}
		off = next
	}
	return nil
}

var zeros [memoryBlock]byte

func (m *Memory) clear(off, n int64) error {
	if !m.inside(off, n) {
		return syscall.EINVAL
	}
	clear(m.b[off : off+n])
	m.makeGood(off, n)
	return nil
}

// inside says whether a backend may be asked for n bytes at off: the server
// has to have checked.
func (m *Memory) inside(off, n int64) bool {
	return off >= 0 && n > 0 && off <= int64(len(m.b)) && n <= int64(len(m.b))-off
}
