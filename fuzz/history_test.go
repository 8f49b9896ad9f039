package fuzz

import (
	"bytes"
	"math"
	"slices"
)

// event is one operation on one block, as a client saw it.
type event struct {
	apply     func(content) content // of a write; nil for a read
	saw       content               // of a read
	from, til int                   // logical times of call and return
}

const pending = math.MaxInt

// history is what happened to each block since it was last known for sure.
type history struct {
	start  [len(lbas)]content
	events [len(lbas)][]event // at most 64 of each
}

// outcomes are all that block i may hold now: the ends of all orders of its events
// that agree with their times and in which every read saw what the write before it
// wrote; none, if nothing explains what was read. An event without a return may
// have happened or not. This is durable linearizability of the block as a register
// (Izraelevitz et al., DISC 2016), decided by trying all orders, each state once.
func (h *history) outcomes(i int) (ends []content) {
	type state struct {
		done uint64 // which events have taken effect
		now  content
	}
	es := h.events[i]
	states := []state{{0, h.start[i]}}
	for k := 0; k < len(states); k++ {
		s := states[k]
		first, left := pending, false // the earliest return among the events to come
		for n := range es {
			if s.done&(1<<n) == 0 && es[n].til != pending {
				first, left = min(first, es[n].til), true
			}
		}
		if !left && !slices.Contains(ends, s.now) {
			ends = append(ends, s.now)
		}
		for n := range es {
			e := &es[n]
			if s.done&(1<<n) != 0 || e.from > first || e.apply == nil && (e.til == pending || e.saw != s.now) {
				continue
			}
			next := state{s.done | 1<<n, s.now}
			if e.apply != nil {
				next.now = e.apply(s.now)
			}
			if !slices.Contains(states, next) {
				states = append(states, next)
			}
		}
	}
	slices.SortFunc(ends, content.compare) // the same promise in the same words
	return ends
}

func (c content) compare(d content) int {
	if c.bad != d.bad {
		if c.bad {
			return 1
		}
		return -1
	}
	return bytes.Compare(c.data[:], d.data[:])
}

// promise lists what each block may hold now.
func (h *history) promise() (p promise) {
	for i := range p {
		p[i] = h.outcomes(i)
	}
	return p
}
