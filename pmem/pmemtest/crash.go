package pmemtest

import (
	"hash/maphash"
	"slices"

	"github.com/bttnbd/bttnbd/pmem"
)

// Crash is the machine after a power cut at this moment and a power-on. The old
// machine is not changed and can be crashed again, with other choices. c decides,
// as lines are read, what has survived of each.
//
// reuse, if not nil, is a machine of the same size that nobody needs any more.
func (m *Machine) Crash(c Chooser, reuse *Machine) *Machine {
	n := reuse
	if n == nil {
		n = newMachine(m.media)
	} else {
		n.reset(m.media)
	}
	n.mapAs(m)
	n.Chooser, n.Unordered = c, m.Unordered
	for _, i := range m.dirty {
		l := &m.lines[i]
		// A line still open from an earlier crash has never been looked at, or it
		// would not be open, so nothing can be pending on top of it.
		if len(l.pending) > 0 {
			n.leaveOpen(i, l.pending)
		} else if len(l.open) > 0 {
			n.leaveOpen(i, l.open)
		}
	}
	copy(n.mem, n.media)
	if n.born == nil {
		n.born = make([]byte, len(n.media))
	}
	copy(n.born, n.media)
	return n
}

// Fingerprint is a hash of all that a crash at this moment depends on: two moments
// with the same one leave the same images. seed is the same for all of a run.
func (m *Machine) Fingerprint(seed maphash.Seed) uint64 {
	var h maphash.Hash
	h.SetSeed(seed)
	h.Write(m.media)
	slices.Sort(m.dirty)
	for _, i := range m.dirty {
		maphash.WriteComparable(&h, i)
		hashRecords(&h, m.lines[i].open)
		hashRecords(&h, m.lines[i].pending)
	}
	return h.Sum64()
}

// Origin is a hash of what this machine began with when the power came back: what
// was read of it as it was decided, the rest with all that it may still turn out to
// be. A program that does the same on two machines with the same origin, and reads
// nothing that is still open, cannot tell them apart. ok is false for a machine that
// was not made by a power cut. seed is the same for all of a run.
func (m *Machine) Origin(seed maphash.Seed) (hash uint64, ok bool) {
	if m.born == nil {
		return 0, false
	}
	var h maphash.Hash
	h.SetSeed(seed)
	h.Write(m.born)
	slices.Sort(m.dirty)
	for _, i := range m.dirty {
		if open := m.lines[i].open; len(open) > 0 {
			maphash.WriteComparable(&h, i)
			hashRecords(&h, open)
		}
	}
	return h.Sum64(), true
}

func hashRecords(h *maphash.Hash, records []record) {
	maphash.WriteComparable(h, len(records))
	for i := range records {
		r := &records[i]
		data := [LineSize]byte{}
		if r.data != nil {
			data = *r.data
		}
		maphash.WriteComparable(h, [...]uint64{uint64(r.at), uint64(r.n), uint64(r.chunks), r.value})
		maphash.WriteComparable(h, data)
		maphash.WriteComparable(h, r.durable)
	}
}

// Kill is the machine after the process was killed with the power on: everything
// stored is seen by the next process, but no more of it is durable than before,
// and a flush that nobody drained counts for nothing.
func (m *Machine) Kill(c Chooser) *Machine {
	n := newMachine(m.media)
	n.mapAs(m)
	n.Chooser, n.Unordered = c, m.Unordered
	copy(n.mem, m.mem)
	for _, i := range m.dirty {
		l := &m.lines[i]
		if len(l.pending) == 0 && len(l.open) > 0 {
			n.leaveOpen(i, l.open)
			continue
		}
		for _, r := range l.pending {
			r.flushed, r.writer = 0, dead
			n.push(uint64(i), r)
		}
		n.show(i) // also what the running thread did not see yet
	}
	if m.file != nil {
		n.reopen(m.file.clean)
	}
	return n
}

// mapAs gives a machine, to begin with, the kind of memory that m has.
func (n *Machine) mapAs(m *Machine) {
	switch {
	case m.file != nil:
		n.mapFile()
	case n.region == nil:
		n.region = pmem.NewTraced(n.mem, n)
	}
}

func (m *Machine) leaveOpen(i int, records []record) {
	m.lines[i].open = records
	m.dirty = append(m.dirty, i)
}

// reset makes the machine as New(image) would, keeping its buffers.
func (m *Machine) reset(image []byte) {
	copy(m.media, image)
	for _, i := range m.dirty {
		m.lines[i] = line{pending: m.lines[i].pending[:0]}
	}
	m.dirty = m.dirty[:0]
	*m = Machine{mem: m.mem, media: m.media, lines: m.lines, dirty: m.dirty, region: m.region, reading: m.reading, born: m.born}
	clear(m.reading)
}

// manyLines is the number of undecided lines in one read from which on their
// fates are chosen together: a checksummed block is good or not, and 4^64 ways of
// not being good are one too many.
const manyLines = 4

// resolve decides the fate of every open line in the range.
func (m *Machine) resolve(off, n uint64) {
	if n == 0 {
		return
	}
	first, last := off/LineSize, (off+n-1)/LineSize
	open := 0
	for i := first; i <= last; i++ {
		if len(m.lines[i].open) > 0 {
			open++
		}
	}
	switch {
	case open == 0:
	case open > manyLines:
		m.resolveTogether(first, last, open)
	default:
		for i := first; i <= last; i++ {
			if len(m.lines[i].open) > 0 {
				m.decide(i, m.Chooser.Choose)
			}
		}
	}
}

// resolveTogether gives many lines one of a few joint fates: all or none of their
// stores, those of the first half, of the first or the last line only, of all but
// the first or the last.
func (m *Machine) resolveTogether(first, last uint64, open int) {
	fate := m.Chooser.Choose(7)
	k := 0
	for i := first; i <= last; i++ {
		if len(m.lines[i].open) == 0 {
			continue
		}
		keep := [...]bool{true, false, k < open/2, k == 0, k == open-1, k != 0, k != open-1}[fate]
		m.decide(i, func(n int) int {
			if keep {
				return 0
			}
			return 1
		})
		k++
	}
}

// decide chooses what has survived of an open line and makes it its content. Of
// the choices, 0 is always "all" and 1 "none".
func (m *Machine) decide(i uint64, choose func(n int) int) {
	l := &m.lines[i]
	cached, certain := 0, 0 // stores through the cache, and how many survive for sure
	for j := range l.open {
		if r := &l.open[j]; !r.bulk {
			if cached++; r.durable {
				certain = cached
			}
		}
	}
	keep := cached
	if certain < cached && !m.Unordered {
		if k := choose(cached - certain + 1); k > 0 {
			keep = certain + k - 1
		}
	}
	content := m.media[i*LineSize:][:LineSize]
	for j := range l.open {
		r := &l.open[j]
		switch {
		case r.bulk:
			r.apply(content, r.survivors(choose))
		case m.Unordered && !r.durable && choose(2) == 1:
		case keep > 0:
			r.apply(content, 0)
			keep--
		}
	}
	copy(m.mem[i*LineSize:], content)
	if m.born != nil {
		copy(m.born[i*LineSize:], content)
	}
	l.open = nil
	m.Count.Choices++
	m.clean(i)
}

// survivors chooses which 8-byte chunks of a bulk write have survived.
func (r *record) survivors(choose func(n int) int) uint8 {
	first := r.chunks & -r.chunks
	switch {
	case r.durable:
		return r.chunks
	case r.chunks == first:
		return [...]uint8{r.chunks, 0}[choose(2)]
	}
	return [...]uint8{r.chunks, 0, first, r.chunks &^ first}[choose(4)]
}

// forget drops what was left open of a line that is being overwritten whole.
func (m *Machine) forget(i uint64) {
	if len(m.lines[i].open) > 0 {
		m.decide(i, func(int) int { return 0 })
		m.Count.Choices--
	}
}

// clean takes a line with nothing in it off the dirty list.
func (m *Machine) clean(i uint64) {
	if len(m.lines[i].pending) > 0 {
		return
	}
	for j, d := range m.dirty {
		if d == int(i) {
			m.dirty[j] = m.dirty[len(m.dirty)-1]
			m.dirty = m.dirty[:len(m.dirty)-1]
			return
		}
	}
}
