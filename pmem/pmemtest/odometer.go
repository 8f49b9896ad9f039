package pmemtest

import "math/rand/v2"

// Odometer is a [Chooser] that walks through every combination of choices, depth
// first, for a run that is repeated from its start each time:
//
//	for o := new(Odometer); ; {
//		run(o)
//		if !o.Next() {
//			break
//		}
//	}
type Odometer struct {
	path []choice
	pos  int
}

type choice struct{ k, n int }

// Choose implements [Chooser].
func (o *Odometer) Choose(n int) int {
	if o.pos == len(o.path) {
		o.path = append(o.path, choice{0, n})
	}
	c := o.path[o.pos]
	if c.n != n {
		panic("pmemtest: the run did not repeat itself: another number of choices at the same place")
	}
	o.pos++
	return c.k
}

// Next goes on to the next combination, and is false when there is none.
func (o *Odometer) Next() bool {
	o.path = o.path[:o.pos] // what was not reached this time is not part of the run
	o.pos = 0
	for len(o.path) > 0 {
		last := &o.path[len(o.path)-1]
		if last.k++; last.k < last.n {
			return true
		}
		o.path = o.path[:len(o.path)-1]
	}
	return false
}

// Random is a [Chooser] that samples.
type Random struct{ *rand.Rand }

// Choose implements [Chooser].
func (r Random) Choose(n int) int { return r.IntN(n) }

// Bytes is a [Chooser] driven by the input of a fuzzer; when it runs out,
// everything survives.
type Bytes []byte

// Choose implements [Chooser].
func (b *Bytes) Choose(n int) int {
	if len(*b) == 0 {
		return 0
	}
	k := int((*b)[0]) % n
	*b = (*b)[1:]
	return k
}
