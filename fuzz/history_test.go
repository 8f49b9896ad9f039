package fuzz

import "math"

// event is one operation on one block, as a client saw it.
type event struct {
	apply     func(content) content // of a write; nil for a read
	saw       content               // of a read
	from, til int                   // logical times of call and return
}

const pending = math.MaxInt

// history is what happened to each block.
type history [len(lbas)][]event

// admits reports whether block i may hold c now: whether there is an order of the
// events that agrees with their times, in which every read saw what the write
// before it wrote, and c is there at the end. An event without a return may have
// happened or not. This is durable linearizability of the block as a register
// (Izraelevitz et al., DISC 2016); with so few events trying all orders will do.
func (h *history) admits(i int, c content) bool {
	return linearize(h[i], 0, zero, c)
}

func linearize(es []event, done uint, now, end content) bool {
	first := pending // the earliest return among the events to come
	left := 0
	for k, e := range es {
		if done&(1<<k) == 0 && e.til != pending {
			first = min(first, e.til)
			left++
		}
	}
	if left == 0 && now == end {
		return true
	}
	for k, e := range es {
		switch {
		case done&(1<<k) != 0 || e.from > first:
		case e.apply != nil:
			if linearize(es, done|1<<k, e.apply(now), end) {
				return true
			}
		case e.til == pending || e.saw == now:
			if linearize(es, done|1<<k, now, end) {
				return true
			}
		}
	}
	return false
}

// promise lists what each block may hold now, of the candidates.
func (h *history) promise(candidates []content) (p promise) {
	for i := range p {
		for _, c := range candidates {
			if h.admits(i, c) {
				p[i] = append(p[i], c)
			}
		}
	}
	return p
}
