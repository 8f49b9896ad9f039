package fuzz

import (
	"errors"
	"testing"

	"github.com/bttnbd/bttnbd/layout"
	"github.com/bttnbd/bttnbd/pmem/pmemtest"
)

var errPowerCut = errors.New("power cut")

// FuzzCrash is one crash image per input:
//
//	byte 0      number of operations, and whether the process is killed instead
//	byte 1      the drain before which the power is cut
//	byte 2…     the operations, indices into the alphabet
//	the rest    what has survived of each line that recovery reads
//
// Sequences are longer here than an exhaustive run can have them.
func FuzzCrash(f *testing.F) {
	f.Add([]byte{1, 1, 0, 1})
	f.Add([]byte{4, 7, 4, 6, 5, 0, 1, 1, 1})
	f.Add([]byte{9, 20, 0, 0, 0, 1, 2, 3, 4, 4, 9, 1, 0, 1, 2, 3})
	f.Add([]byte{0x83, 6, 8, 6, 4, 1, 1})
	f.Fuzz(func(t *testing.T, in []byte) {
		if len(in) < 2 {
			return
		}
		count, cut := int(in[0]&31), int(in[1])
		in = in[2:]
		ops := make([]op, 0, count)
		for len(ops) < count && len(in) > 0 {
			ops = append(ops, alphabet[int(in[0])%len(alphabet)])
			in = in[1:]
		}
		kill := count&16 != 0
		if err := crashOnce(ops, cut, kill, (*pmemtest.Bytes)(&in)); err != nil {
			t.Fatalf("%v, cut at drain %d, kill %v: %v", ops, cut, kill, err)
		}
	})
}

// crashOnce carries ops out until the power is cut, and verifies the one image
// that c chooses.
func crashOnce(ops []op, cut int, kill bool, c pmemtest.Chooser) error {
	w := newWorld(layout.UEFI)
	w.m.OnDrain = func() error {
		if cut--; cut < 0 {
			panic(errPowerCut)
		}
		return nil
	}
	p, err := untilPowerCut(w, ops)
	if err != nil {
		return err
	}
	e := &explorer{flavour: layout.UEFI}
	if kill {
		return e.verify(w.m.Kill(c), w, p, 0)
	}
	return e.verify(w.m.Crash(c, nil), w, p, 0)
}

// untilPowerCut carries ops out and returns what is promised when the power goes
// off, or when all is done.
func untilPowerCut(w *world, ops []op) (p promise, err error) {
	defer func() {
		if v := recover(); v != nil && v != errPowerCut {
			panic(v)
		}
	}()
	for _, o := range ops {
		p, _ = w.during(o)
		if err := w.do(o); err != nil {
			return p, err
		}
	}
	return w.now, nil
}
