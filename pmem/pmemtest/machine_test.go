package pmemtest

import (
	"bytes"
	"fmt"
	"maps"
	"math/bits"
	"slices"
	"strings"
	"testing"

	"github.com/bttnbd/bttnbd/pmem"
)

const lines = 4

// left is every state that a crash of m can leave, as the 8-byte words that are not
// zero: "0=1 8=2" has 1 at offset 0 and 2 at offset 8.
func left(m *Machine, crash func(*Machine, Chooser) *Machine) []string {
	states := map[string]bool{}
	for o := new(Odometer); ; {
		n := crash(m, o)
		var s []string
		for off := uint64(0); off < lines*LineSize; off += 8 {
			if v := n.Region().Load64(off); v != 0 {
				s = append(s, fmt.Sprint(off, "=", v))
			}
		}
		states[strings.Join(s, " ")] = true
		if !o.Next() {
			return slices.Sorted(maps.Keys(states))
		}
	}
}

func powerCut(m *Machine, c Chooser) *Machine { return m.Crash(c, nil) }
func kill(m *Machine, c Chooser) *Machine     { return m.Kill(c) }

// killAndCut is a kill with a power cut while the successor does something.
func killAndCut(then func(*Machine)) func(*Machine, Chooser) *Machine {
	return func(m *Machine, c Chooser) *Machine {
		n := m.Kill(c)
		then(n)
		return n.Crash(c, nil)
	}
}

// Goal: a crash leaves exactly what the model says, no state less and none more.
// Method: a few stores, and every state that the machine comes up with.
func TestModel(t *testing.T) {
	bulk := func(words ...uint64) []byte {
		var b []byte
		for _, w := range words {
			b = append(b, byte(w), 0, 0, 0, 0, 0, 0, 0)
		}
		return b
	}
	for _, c := range []struct {
		name  string
		do    func(m *Machine, r *pmem.Region)
		crash func(*Machine, Chooser) *Machine
		want  []string
	}{
		{"a line keeps a prefix", func(m *Machine, r *pmem.Region) {
			r.Store64(8, 1)
			r.Store64(0, 2)
			r.Store64(8, 3)
		}, powerCut, []string{"", "8=1", "0=2 8=1", "0=2 8=3"}},
		{"halves of 8 bytes are two stores", func(m *Machine, r *pmem.Region) {
			r.Store32(0, 1)
			r.Store32(4, 1)
		}, powerCut, []string{"", "0=1", "0=4294967297"}},
		{"lines are independent", func(m *Machine, r *pmem.Region) {
			r.Store64(0, 1)
			r.Store64(64, 2)
		}, powerCut, []string{"", "0=1", "64=2", "0=1 64=2"}},
		{"a flush alone is nothing", func(m *Machine, r *pmem.Region) {
			r.Store64(0, 1)
			r.Flush(0, 8)
		}, powerCut, []string{"", "0=1"}},
		{"a drain alone is nothing", func(m *Machine, r *pmem.Region) {
			r.Store64(0, 1)
			r.Drain()
		}, powerCut, []string{"", "0=1"}},
		{"flushed and drained, and one more", func(m *Machine, r *pmem.Region) {
			r.Store64(0, 1)
			r.Flush(0, 8)
			r.Store64(8, 2)
			r.Drain()
		}, powerCut, []string{"0=1", "0=1 8=2"}},
		{"the drain of another thread", func(m *Machine, r *pmem.Region) {
			r.Store64(0, 1)
			r.Flush(0, 8)
			r.Write(64, bulk(7))
			m.Switch(1)
			r.Drain()
		}, powerCut, []string{"", "0=1", "64=7", "0=1 64=7"}},
		{"a bulk write", func(m *Machine, r *pmem.Region) {
			r.Write(0, bulk(1, 2, 3))
		}, powerCut, []string{"", "0=1", "8=2 16=3", "0=1 8=2 16=3"}},
		{"a bulk write, drained", func(m *Machine, r *pmem.Region) {
			r.Write(0, bulk(1, 2, 3))
			r.Drain()
		}, powerCut, []string{"0=1 8=2 16=3"}},
		{"stores out of order", func(m *Machine, r *pmem.Region) {
			m.Unordered = true
			r.Store64(0, 1)
			r.Flush(0, 8)
			r.Drain()
			r.Store64(8, 2)
			r.Store64(16, 3)
		}, powerCut, []string{"0=1", "0=1 16=3", "0=1 8=2", "0=1 8=2 16=3"}},
		{"a kill loses nothing", func(m *Machine, r *pmem.Region) {
			r.Store64(0, 1)
			r.Write(64, bulk(2))
			m.Switch(1)
		}, kill, []string{"0=1 64=2"}},
		{"a kill makes nothing durable", func(m *Machine, r *pmem.Region) {
			r.Store64(0, 1)
			r.Flush(0, 8)
			r.Write(64, bulk(2))
		}, killAndCut(func(m *Machine) { m.Region().Drain() }), []string{"", "0=1", "64=2", "0=1 64=2"}},
		{"but the successor can", func(m *Machine, r *pmem.Region) {
			r.Store64(0, 1)
			r.Write(64, bulk(2))
		}, killAndCut(func(m *Machine) { m.Region().Flush(0, 128); m.Region().Drain() }), []string{"0=1 64=2"}},
		{"two crashes, with nothing read between", func(m *Machine, r *pmem.Region) {
			r.Store64(0, 1)
			r.Store64(8, 2)
		}, func(m *Machine, c Chooser) *Machine { return m.Crash(c, nil).Crash(c, nil) }, []string{"", "0=1", "0=1 8=2"}},
	} {
		m := New(make([]byte, lines*LineSize))
		c.do(m, m.Region())
		slices.Sort(c.want)
		if got := left(m, c.crash); !slices.Equal(got, c.want) {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
}

// Goal: what was read once after a crash stays; what nobody reads is not decided.
func TestLazy(t *testing.T) {
	m := New(make([]byte, lines*LineSize))
	for off := uint64(0); off < lines*LineSize; off += LineSize {
		m.Region().Store64(off, 1)
	}
	n := m.Crash(new(Odometer), nil)
	first := n.Region().Load64(0)
	if n.Count.Choices != 1 {
		t.Errorf("%d lines decided by one read", n.Count.Choices)
	}
	if again := n.Crash(&Bytes{1, 1, 1, 1}, nil).Region().Load64(0); again != first {
		t.Errorf("%d was read, and %d after another crash", first, again)
	}
	if !bytes.Equal(n.Glance()[LineSize:], make([]byte, (lines-1)*LineSize)) || n.Count.Choices != 1 {
		t.Error("a glance shows or decides what is open")
	}
	if bits.OnesCount8(n.Peek()[LineSize]) != 1 || n.Count.Choices != lines {
		t.Errorf("%d lines decided in all", n.Count.Choices)
	}
}

// Goal: another thread sees stores at once and a bulk write once it is drained.
func TestVisible(t *testing.T) {
	m := New(make([]byte, lines*LineSize))
	r := m.Region()
	r.Write(0, []byte{7, 0, 0, 0, 0, 0, 0, 0})
	r.Store64(64, 8)
	m.Switch(1)
	if bulk, store := r.Load64(0), r.Load64(64); bulk != 0 || store != 8 {
		t.Errorf("another thread sees %d and %d, want 0 and 8", bulk, store)
	}
	m.Switch(0)
	if r.Load64(0) != 7 {
		t.Error("the writer does not see what it wrote")
	}
	r.Drain()
	m.Switch(1)
	if r.Load64(0) != 7 {
		t.Error("another thread does not see what was drained")
	}
	if len(m.Undurable()) != 1 {
		t.Errorf("not durable: %v, want the line that was not flushed", m.Undurable())
	}
}
