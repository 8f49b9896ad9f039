package pmemtest

import (
	"slices"
	"syscall"

	"github.com/bttnbd/bttnbd/pmem"
)

// pageSize is the unit of the page cache in bytes.
const pageSize = 4096

// file is the page cache in front of a disk. A flush notes a range, in package pmem,
// and a drain is an msync of the pages of all that was noted since the last one,
// whoever noted it.
//
//	stores ──> page in the cache ──(msync, or whenever the kernel likes)──> disk
//
// A disk promises that a logical block, 512 bytes or more, is after a power failure
// one of those that it was sent (a torn one fails to read, NVMe's AWUPF is at least
// one block). That would be worth something if a block were sent as it was at one
// moment. It is not: the page stays mapped while the disk fetches it, cache line by
// cache line, and stores go on, unless the filesystem asks for stable pages. A page
// may also be sent several times. So every line of a block is from a moment of its
// own, and what survives is what survives of lines of persistent memory, with another
// rule for what is durable: all that was stored to the pages of an msync.
//
// An msync that fails leaves pages that are clean and not on disk. No later one
// writes them, until they are stored to again; then it writes all of them.
type file struct {
	clean map[uint64]bool // pages whose write failed, by number
}

// NewFile is a machine whose memory is a mapped file that holds image, all durable.
func NewFile(image []byte) *Machine {
	m := newMachine(image)
	m.mapFile()
	return m
}

// mapFile is what a process does that begins to use the file.
func (m *Machine) mapFile() {
	m.file = &file{clean: map[uint64]bool{}}
	m.region = pmem.NewTracedFile(m.mem, m, m.msync)
}

// msync is msync(2).
func (m *Machine) msync(lo, hi uint64) error {
	if lo%pageSize != 0 {
		return syscall.EINVAL
	}
	first, end := lo/pageSize, (hi+pageSize-1)/pageSize
	if m.OnSync != nil {
		if err := m.OnSync(); err != nil {
			for page := first; page < end; page++ {
				m.file.clean[page] = true
			}
			return err
		}
	}
	useless := m.settleAll(func(i int, l *line) (any bool) {
		page := uint64(i) * LineSize / pageSize
		if page < first || page >= end || m.file.clean[page] {
			return false
		}
		for j := range l.pending {
			any = any || !l.pending[j].durable
			l.pending[j].durable = true
		}
		return any
	})
	if useless {
		m.Count.UselessDrains++
	}
	return nil
}

// reopen is what package pmem does with a file whose pages a killed process may have
// left dirty, before it maps it: fdatasync, and the pages that are clean are read
// again. So of those in the set clean, that are on disk or not, the disk has the say.
func (m *Machine) reopen(clean map[uint64]bool) {
	m.settleAll(func(i int, l *line) bool {
		if clean[uint64(i)*LineSize/pageSize] {
			l.open, l.pending = slices.Clone(l.pending), nil
			copy(m.mem[i*LineSize:][:LineSize], m.media[i*LineSize:])
			return false
		}
		for j := range l.pending {
			l.pending[j].durable = true
		}
		return true
	})
}
