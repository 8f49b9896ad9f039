package linear

import (
	"math/rand/v2"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
)

// Goal: the small histories whose verdict anybody can see.
func TestCheck(t *testing.T) {
	w := func(v uint64, from, til int64) Op { return Op{Write: true, Value: v, Call: from, Return: til} }
	r := func(v uint64, from, til int64) Op { return Op{Value: v, Call: from, Return: til} }
	lost := func(o Op) Op { o.Lost = true; return o }
	for _, c := range []struct {
		name string
		ops  []Op
		ok   bool
	}{
		{"nothing", nil, true},
		{"initial", []Op{r(0, 1, 2)}, true},
		{"read your write", []Op{w(1, 1, 2), r(1, 3, 4)}, true},
		{"acknowledged write lost", []Op{w(1, 1, 2), r(0, 3, 4)}, false},
		{"old while the write is under way", []Op{w(1, 1, 9), r(0, 3, 4)}, true},
		{"new, then old again", []Op{w(1, 1, 9), r(1, 2, 3), r(0, 4, 5)}, false},
		{"two writers in either order", []Op{w(1, 1, 9), w(2, 1, 9), r(2, 10, 11)}, true},
		{"overwritten, then back", []Op{w(1, 1, 2), w(2, 3, 4), r(1, 5, 6)}, false},
		{"read before the write", []Op{r(1, 1, 2), w(1, 3, 4)}, false},
		{"from nowhere", []Op{r(7, 1, 2)}, false},
		{"lost write, not there", []Op{lost(w(1, 1, 5)), r(0, 6, 7)}, true},
		{"lost write, there", []Op{lost(w(1, 1, 5)), r(1, 6, 7)}, true},
		{"lost write, there after not", []Op{lost(w(1, 1, 5)), r(0, 6, 7), r(1, 8, 9)}, false},
		{"lost write comes late, over an acknowledged one", []Op{lost(w(1, 1, 5)), w(2, 6, 7), r(1, 8, 9)}, false},
		{"lost read", []Op{w(1, 1, 2), lost(r(0, 3, 4))}, true},
		{"written twice", []Op{w(1, 1, 2), w(1, 3, 4)}, false},
	} {
		if err := Check(c.ops); (err == nil) != c.ok {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

// register is the block as porcupine knows it. A lost write is two operations to
// it: one that may have happened, or one that did nothing.
var register = porcupine.Model{
	Init: func() any { return Initial },
	Step: func(state, in, out any) (bool, any) {
		o := in.(Op)
		if o.Write {
			return true, o.Value
		}
		return o.Lost || state == o.Value, state
	},
}

// Goal: the verdicts are those of an independent checker. Method: random histories
// of a register that is sometimes wrong, some with lost operations, judged by
// porcupine as well; lost writes that nobody read are left out for it, and others
// are taken as having happened, which is what they come to.
func TestAgainstPorcupine(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	verdicts := map[bool]int{}
	for round := range 4000 {
		ops := randomHistory(rng)
		read := map[uint64]bool{}
		for _, o := range ops {
			if !o.Write && !o.Lost {
				read[o.Value] = true
			}
		}
		var theirs []porcupine.Operation
		for i, o := range ops {
			if o.Lost && !(o.Write && read[o.Value]) {
				continue
			}
			theirs = append(theirs, porcupine.Operation{ClientId: i, Input: o, Call: o.Call, Return: o.Return})
		}
		want := porcupine.CheckOperations(register, theirs)
		err := Check(ops)
		if (err == nil) != want {
			t.Fatalf("round %d: porcupine says %v, Check says %v\n%+v", round, want, err, ops)
		}
		verdicts[want]++
	}
	t.Logf("%d histories can be explained, %d cannot", verdicts[true], verdicts[false])
	if verdicts[true] < 500 || verdicts[false] < 500 {
		t.Error("the histories are too one-sided to show anything")
	}
}

// randomHistory is of a few clients on a register that takes effect at a random
// time within each operation, and now and then gives an old value.
func randomHistory(rng *rand.Rand) (ops []Op) {
	type effect struct {
		at int64
		op int
	}
	var effects []effect
	for client := range 3 {
		now := rng.Int64N(5)
		for k := range 5 {
			o := Op{Write: rng.IntN(2) == 0, Value: uint64(client*100 + k + 1), Call: now, Lost: rng.IntN(12) == 0}
			now += 2 + rng.Int64N(12)
			o.Return = now
			now += 1 + rng.Int64N(4)
			effects = append(effects, effect{o.Call + 1 + rng.Int64N(o.Return-o.Call), len(ops)})
			ops = append(ops, o)
		}
	}
	state, old := Initial, Initial
	for t := int64(0); t < 200; t++ {
		for _, e := range effects {
			o := &ops[e.op]
			switch {
			case e.at != t:
			case !o.Write && rng.IntN(8) == 0:
				o.Value = old
			case !o.Write:
				o.Value = state
			case !o.Lost || rng.IntN(2) == 0:
				old, state = state, o.Value
			}
		}
	}
	return ops
}

// Goal: a history as long as a soak run makes is judged at once.
func TestLongHistory(t *testing.T) {
	var ops []Op
	for i := int64(1); i <= 300_000; i++ {
		ops = append(ops, Op{Write: true, Value: uint64(i), Call: 4 * i, Return: 4*i + 1}, Op{Value: uint64(i), Call: 4*i + 2, Return: 4*i + 3})
	}
	start := time.Now()
	if err := Check(ops); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d operations in %v", len(ops), time.Since(start))
	ops[len(ops)/2].Value-- // one lost write
	if Check(ops) == nil {
		t.Error("a lost write among 300000 was not found")
	}
}
