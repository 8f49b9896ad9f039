package nbd

// extent is a run of bytes of one state.
type extent struct {
	length int64
	state  uint8
}

// extentList takes what Backend.Extents tells, neighbours of one state merged.
// It is made once a workspace, and costs no allocation from then on.
type extentList struct {
	list []extent // its capacity never grows
	emit func(length int64, state uint8) bool
}

func (l *extentList) init(n int) {
	l.list = make([]extent, 0, n)
	l.emit = l.add
}

// ask fills the list with what b tells about n bytes at off: one extent at the
// least, and at most n bytes.
func (l *extentList) ask(b Backend, off, n int64) error {
	l.list = l.list[:0]
	if err := b.Extents(off, n, l.emit); err != nil {
		return err
	}
	if len(l.list) == 0 {
		panic("nbd: the backend told of no extent")
	}
	return nil
}

// add takes the next extent, and returns false when there is no room for it.
func (l *extentList) add(length int64, state uint8) bool {
	if n := len(l.list); n > 0 && l.list[n-1].state == state {
		l.list[n-1].length += length
		return true
	}
	if len(l.list) == cap(l.list) {
		return false
	}
	l.list = append(l.list, extent{length, state})
	return true
}

// forRead reduces the states to those that matter to a READ: errors, zeros that
// are worth a chunk of their own, and all else as data.
func (l *extentList) forRead() {
	all := l.list
	l.list = l.list[:0]
	for _, e := range all {
		switch {
		case e.state&StateError != 0:
			l.add(e.length, StateError)
		case e.state&StateZero != 0 && e.length >= minHole:
			l.add(e.length, StateZero)
		default:
			l.add(e.length, 0)
		}
	}
}
