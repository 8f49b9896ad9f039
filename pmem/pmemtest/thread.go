package pmemtest

// Switch makes thread the running one. Bulk writes of other threads that have not
// been drained are then not seen: they may still be in the other CPU's
// write-combining buffers, and stores that came after them may be visible before
// they are.
func (m *Machine) Switch(thread int) {
	if thread == m.thread {
		return
	}
	m.thread = thread
	for _, i := range m.hidden {
		m.show(i)
	}
	m.hidden = m.hidden[:0]
	for _, i := range m.dirty {
		for _, r := range m.lines[i].pending {
			if r.bulk && !r.durable && r.writer != thread && r.writer != dead {
				m.hidden = append(m.hidden, i)
				m.show(i)
				break
			}
		}
	}
}

// show makes the memory of a line what the running thread sees of it.
func (m *Machine) show(i int) {
	content := m.mem[i*LineSize:][:LineSize]
	copy(content, m.media[i*LineSize:])
	for j := range m.lines[i].pending {
		r := &m.lines[i].pending[j]
		if !r.bulk || r.durable || r.writer == m.thread || r.writer == dead {
			r.apply(content, r.chunks)
		}
	}
}

// Racing implements [pmem.Tracer]: others may run before each half, and what is copied
// while they store is torn. It is no [Machine.Race].
func (m *Machine) Racing(off, n uint64) bool {
	if !m.AllowRacing {
		return false
	}
	m.access()
	m.resolve(off, n)
	return true
}
