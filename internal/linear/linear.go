// Package linear judges what clients saw of one block: whether some order of
// their reads and writes, one at a time and within the times at which each was
// under way, explains every answer. A history may run through crashes.
//
// Every write writes a value of its own, so a read tells which write it saw, and
// the question can be decided in O(n log n) (Gibbons and Korach, "Testing shared
// memories", SIAM J. Comput. 1997): all operations on one value form a cluster,
// each cluster takes up a zone of time, and only the zones need comparing.
package linear

import (
	"cmp"
	"fmt"
	"math"
	"slices"
)

// Initial is the value that the block has before any write.
const Initial uint64 = 0

// Never is the time of a return that did not come.
const Never int64 = math.MaxInt64

// Op is one read or write as a client saw it. Times are of one clock; a call is
// taken before the request is sent, a return after the answer has come.
type Op struct {
	Write  bool
	Value  uint64 // written, and of no other write; or seen
	Call   int64
	Return int64
	// Lost says that no answer came. A lost read tells nothing. A lost write took
	// effect before Return, or never: Return is then the moment of the crash after
	// which it cannot take effect any more.
	Lost bool
}

// cluster is everything about one value. The write happened before the first
// return of any of its operations, and the value was still there at the last call.
type cluster struct {
	value       uint64
	write       *Op // nil for Initial
	read        bool
	firstReturn int64
	lastCall    int64
}

// Check returns nil if the history of one block can be explained, or else the
// operations that cannot.
func Check(ops []Op) error {
	clusters, err := gather(ops)
	if err != nil {
		return err
	}
	// A forward zone is a stretch of time all through which the value was there.
	// A backward zone is one somewhere in which it was there for a moment.
	var forward, backward []*cluster
	for _, c := range clusters {
		if c.firstReturn < c.lastCall {
			forward = append(forward, c)
		} else {
			backward = append(backward, c)
		}
	}
	slices.SortFunc(forward, func(a, b *cluster) int { return cmp.Compare(a.firstReturn, b.firstReturn) })
	for i := 1; i < len(forward); i++ {
		a, b := forward[i-1], forward[i]
		if b.firstReturn < a.lastCall {
			return fmt.Errorf("value %#x was there from %d to %d, and so was value %#x from %d to %d",
				a.value, a.firstReturn, a.lastCall, b.value, b.firstReturn, b.lastCall)
		}
	}
	for _, b := range backward {
		i, _ := slices.BinarySearchFunc(forward, b.lastCall, func(f *cluster, t int64) int { return cmp.Compare(f.firstReturn, t) })
		if i == 0 {
			continue
		}
		if f := forward[i-1]; f.firstReturn < b.lastCall && b.firstReturn < f.lastCall {
			return fmt.Errorf("value %#x was there some time from %d to %d, but all that time, from %d to %d, it was value %#x",
				b.value, b.lastCall, b.firstReturn, f.firstReturn, f.lastCall, f.value)
		}
	}
	return nil
}

// gather makes the clusters. A lost write that nobody has read may never have
// happened, and then explains itself.
func gather(ops []Op) ([]*cluster, error) {
	byValue := map[uint64]*cluster{Initial: {firstReturn: math.MinInt64, lastCall: math.MinInt64}}
	for i := range ops {
		o := &ops[i]
		if !o.Write {
			continue
		}
		if other := byValue[o.Value]; other != nil {
			return nil, fmt.Errorf("value %#x is written twice: the history cannot be judged", o.Value)
		}
		byValue[o.Value] = &cluster{value: o.Value, write: o, firstReturn: o.Return, lastCall: o.Call}
	}
	for i := range ops {
		o := &ops[i]
		if o.Write || o.Lost {
			continue
		}
		c := byValue[o.Value]
		if c == nil {
			return nil, fmt.Errorf("value %#x was read at %d to %d, and nobody has written it", o.Value, o.Call, o.Return)
		}
		if c.write != nil && o.Return < c.write.Call {
			return nil, fmt.Errorf("value %#x was read at %d to %d, before it was written at %d", o.Value, o.Call, o.Return, c.write.Call)
		}
		c.read = true
		c.firstReturn = min(c.firstReturn, o.Return)
		c.lastCall = max(c.lastCall, o.Call)
	}
	clusters := make([]*cluster, 0, len(byValue))
	for _, c := range byValue {
		if c.read || c.write == nil || !c.write.Lost {
			clusters = append(clusters, c)
		}
	}
	return clusters, nil
}
