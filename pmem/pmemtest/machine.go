// Package pmemtest is a persistent memory whose power can be cut: a heap buffer
// behind a [pmem.Region], and a [Machine] that knows of every store whether it
// has become durable. It shows the program that ships every state in which a
// crash can leave real memory, and no other.
//
// # Model
//
// Memory is lines of 64 bytes. A store of 4 or 8 bytes goes to the end of its
// line's list. What a crash leaves of a line is
//
//   - of stores through the cache, a prefix of the list, at least as long as what
//     has been flushed and then drained by the thread that flushed: a line may be
//     evicted at any moment but is always written back whole, and stores reach it
//     in order (x86; on arm64 because every store of package pmem is a release);
//   - of a bulk write, which goes around the cache, any subset of its aligned 8
//     bytes, until the thread that wrote it has drained. Four subsets stand for
//     all: all, none, only the first, all but the first.
//
// Lines are independent of each other. With [Machine.Unordered] stores through the
// cache survive in any combination, as they would on arm64 if they were no releases.
//
// With [Machine.AllowRacing] a program may copy what others are storing to: they may run
// before each half of the copy, which is then torn. Loads are never out of order.
//
// A machine of [NewFile] is a file behind the page cache: see file.go.
//
// # Lazy resolution
//
// After a crash a line's fate is not chosen until somebody reads it; a line that
// nobody reads needs no choice. (Gorjiara et al., "Jaaru", ASPLOS 2021.) The same
// holds across several crashes.
package pmemtest

import (
	"encoding/binary"
	"fmt"
	"math/bits"

	"github.com/bttnbd/bttnbd/pmem"
)

// LineSize is the size of a cache line in bytes.
const LineSize = 64

// Chooser decides what nature leaves open. Choose returns 0 ≤ k < n.
type Chooser interface{ Choose(n int) int }

// Machine is one memory from power-on to power-off. It is not for concurrent use:
// a simulation runs one goroutine at a time.
type Machine struct {
	mem    []byte // what programs see
	media  []byte // what survives for sure
	born   []byte // what the last crash has left, as far as that is decided; nil if there was none
	lines  []line
	dirty  []int // lines with anything in them, each once
	region *pmem.Region
	file   *file // of the page cache; nil for persistent memory

	// Chooser decides the fate of lines left open by the last crash.
	Chooser Chooser
	// Unordered is how stores through the cache would survive on arm64 if they were
	// no releases: those to one line in any combination, not only as a prefix. It
	// holds for the crashes of this machine.
	Unordered bool
	thread    int          // who is running; see Switch
	hidden    []int        // lines of which the running thread sees an old state
	reading   map[int]span // by thread: a bulk copy out of memory that may be under way
	// Race is the first bulk write that hit what another thread was copying out.
	Race error
	// Lanes is where the program looks first for a free lane, RTT slot and the like.
	Lanes uint32
	// AllowRacing lets the program copy what others may be storing to; without it
	// readers keep writers away.
	AllowRacing bool
	// OnDrain, if set, is called before each drain takes effect: the moments at
	// which most is undecided. An error is what the drain returns.
	OnDrain func() error
	// OnSync, if set, is called before each msync of a file. An error is what that
	// returns, once: the kernel takes the pages for clean from then on.
	OnSync func() error
	// OnWrite, if set, is called before each bulk write.
	OnWrite func(off, n uint64)
	// OnAwait, if set, is called wherever the program may be descheduled or must
	// wait. Without it, having to wait is a deadlock and panics.
	OnAwait func(ready func() bool)
	// OnAccess, if set, is called before each load, store, flush and drain.
	OnAccess func()

	Count Counts
}

type span struct{ off, n uint64 }

// Counts are what has happened on a machine since power-on.
type Counts struct {
	Drains        int
	UselessDrains int // with nothing written or flushed by the thread since its last
	CleanFlushes  int // lines flushed that held nothing undurable
	Choices       int // lines whose fate a read has decided
}

type line struct {
	open    []record // of the epochs before: fate undecided
	pending []record // of this epoch
}

// dead is the writer of what a killed process has left behind: no drain covers
// its bulk writes any more, but a flush of the line does.
const dead = -1

// record is one store to one line.
type record struct {
	bulk    bool
	at      uint8 // first byte, for a cached store
	n       uint8 // 4 or 8, for a cached store
	chunks  uint8 // which aligned 8 bytes, for a bulk write
	durable bool
	writer  int
	flushed uint32 // by which threads, a bit each
	value   uint64
	data    *[LineSize]byte // for a bulk write
}

// New is a machine whose memory holds image and is all durable.
func New(image []byte) *Machine {
	if len(image)%LineSize != 0 {
		panic("pmemtest: size is not a multiple of the line size")
	}
	m := newMachine(image)
	m.region = pmem.NewTraced(m.mem, m)
	return m
}

func newMachine(image []byte) *Machine {
	m := &Machine{mem: make([]byte, len(image)), media: make([]byte, len(image)), lines: make([]line, len(image)/LineSize), reading: map[int]span{}}
	copy(m.mem, image)
	copy(m.media, image)
	return m
}

// Region is the memory as the program under test maps it.
func (m *Machine) Region() *pmem.Region { return m.region }

// Peek is the memory as seen now, with all that was left open decided. The caller
// must not change it.
func (m *Machine) Peek() []byte {
	m.resolve(0, uint64(len(m.mem)))
	return m.mem
}

// Glance is the memory as seen now, with all that is still open taken for lost and
// nothing decided. The caller must not change it.
func (m *Machine) Glance() []byte { return m.mem }

// Undurable are the offsets of lines that hold stores a crash could still take,
// those that a killed predecessor has left apart.
func (m *Machine) Undurable() (offs []uint64) {
	for _, i := range m.dirty {
		for _, r := range m.lines[i].pending {
			if !r.durable && r.writer != dead {
				offs = append(offs, uint64(i)*LineSize)
				break
			}
		}
	}
	return offs
}

// Load implements [pmem.Tracer].
func (m *Machine) Load(off, n uint64) {
	if n > 8 && m.OnAccess != nil {
		// A large copy may be half done when others run.
		m.reading[m.thread] = span{off, n}
		defer delete(m.reading, m.thread) // also when the access panics, as bad memory does
		m.access()
	} else {
		m.access()
	}
	m.resolve(off, n)
}

// Store implements [pmem.Tracer].
func (m *Machine) Store(off, n, v uint64) {
	m.access()
	m.resolve(off, n)
	m.push(off/LineSize, record{at: uint8(off % LineSize), n: uint8(n), value: v, writer: m.thread})
}

// Bulk implements [pmem.Tracer].
func (m *Machine) Bulk(off uint64, p []byte) {
	m.access()
	if m.OnWrite != nil {
		m.OnWrite(off, uint64(len(p)))
	}
	m.bulk(off, uint64(len(p)), p)
}

// BulkZero implements [pmem.Tracer].
func (m *Machine) BulkZero(off, n uint64) {
	m.access()
	if m.OnWrite != nil {
		m.OnWrite(off, n)
	}
	m.bulk(off, n, nil)
}

func (m *Machine) bulk(off, n uint64, p []byte) {
	for thread, r := range m.reading {
		if thread != m.thread && off < r.off+r.n && r.off < off+n && m.Race == nil {
			m.Race = fmt.Errorf("thread %d writes %d bytes at %d while thread %d copies %d bytes at %d out", m.thread, n, off, thread, r.n, r.off)
		}
	}
	for end := off + n; off < end; {
		i, at := off/LineSize, off%LineSize
		k := min(LineSize-at, end-off)
		r := record{bulk: true, writer: m.thread, data: new([LineSize]byte)}
		if p != nil {
			copy(r.data[at:at+k], p)
			p = p[k:]
		}
		r.chunks = uint8((1<<(k/8) - 1) << (at / 8))
		if r.chunks == 0xff {
			m.forget(i) // overwritten whole: nobody will see what was there
		} else {
			m.resolve(off, k)
		}
		m.push(i, r)
		off += k
	}
}

// Flush implements [pmem.Tracer].
func (m *Machine) Flush(off, n uint64) {
	m.access()
	for i := off / LineSize; i*LineSize < off+n; i++ {
		clean := true
		for j := range m.lines[i].pending {
			if r := &m.lines[i].pending[j]; !r.durable && (!r.bulk || r.writer == dead) {
				r.flushed |= 1 << m.thread
				clean = false
			}
		}
		if clean {
			m.Count.CleanFlushes++
		}
	}
}

// Drain implements [pmem.Tracer].
func (m *Machine) Drain() error {
	m.access()
	if m.OnDrain != nil {
		if err := m.OnDrain(); err != nil {
			return err
		}
	}
	m.Count.Drains++
	if m.file != nil {
		return nil // the msync comes after it, if there is one
	}
	useless := m.settleAll(func(_ int, l *line) bool { return l.drain(m.thread) })
	if useless {
		m.Count.UselessDrains++
	}
	return nil
}

// settleAll makes durable what mark marks, and reports whether that is nothing.
func (m *Machine) settleAll(mark func(i int, l *line) (any bool)) (useless bool) {
	useless = true
	keep := m.dirty[:0]
	for _, i := range m.dirty {
		l := &m.lines[i]
		if mark(i, l) {
			useless = false
		}
		if m.settle(i); len(l.pending)+len(l.open) > 0 {
			keep = append(keep, i)
		}
	}
	m.dirty = keep
	return useless
}

// drain marks what a drain by thread makes durable, and reports whether that is
// anything. A durable cached store makes those before it durable: a line is
// written back whole.
func (l *line) drain(thread int) (any bool) {
	last := -1
	for j := range l.pending {
		r := &l.pending[j]
		switch {
		case r.durable:
		case r.bulk && (r.writer == thread || r.flushed&(1<<thread) != 0):
			r.durable, any = true, true
		case !r.bulk && r.flushed&(1<<thread) != 0:
			last = j
		}
	}
	for j := 0; j <= last; j++ {
		if r := &l.pending[j]; !r.bulk && !r.durable {
			r.durable, any = true, true
		}
	}
	return any
}

// settle moves the contents of a line that is all durable to media.
func (m *Machine) settle(i int) {
	l := &m.lines[i]
	for j := range l.pending {
		if !l.pending[j].durable {
			return
		}
	}
	for j := range l.pending {
		l.pending[j].apply(m.media[i*LineSize:], l.pending[j].chunks)
	}
	l.pending = l.pending[:0]
}

// Await implements [pmem.Tracer].
func (m *Machine) Await(ready func() bool) {
	switch {
	case m.OnAwait != nil:
		m.OnAwait(ready)
	case ready != nil && !ready():
		panic("pmemtest: deadlock: the only thread waits")
	}
}

// Hint implements [pmem.Tracer].
func (m *Machine) Hint() uint32 { return m.Lanes }

func (m *Machine) access() {
	if m.OnAccess != nil {
		m.OnAccess()
	}
}

func (m *Machine) push(i uint64, r record) {
	l := &m.lines[i]
	if m.file != nil {
		delete(m.file.clean, i*LineSize/pageSize)
	}
	if len(l.pending)+len(l.open) == 0 {
		m.dirty = append(m.dirty, int(i))
	}
	l.pending = append(l.pending, r)
}

func (r *record) apply(line []byte, chunks uint8) {
	switch {
	case r.bulk:
		for ; chunks != 0; chunks &= chunks - 1 {
			c := bits.TrailingZeros8(chunks) * 8
			copy(line[c:c+8], r.data[c:])
		}
	case r.n == 4:
		binary.LittleEndian.PutUint32(line[r.at:], uint32(r.value))
	default:
		binary.LittleEndian.PutUint64(line[r.at:], r.value)
	}
}

func (m *Machine) String() string {
	return fmt.Sprintf("machine of %d bytes, %d lines undecided or dirty, %+v", len(m.mem), len(m.dirty), m.Count)
}
