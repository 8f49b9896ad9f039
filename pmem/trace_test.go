package pmem

import (
	"errors"
	"fmt"
	"slices"
	"testing"
)

// recorder notes each announcement with the first word of memory at that moment.
type recorder struct {
	mem   []byte
	log   []string
	drain error
}

func (t *recorder) add(f string, a ...any) {
	t.log = append(t.log, fmt.Sprintf(f, a...)+fmt.Sprintf(" @%d", t.mem[0]))
}
func (t *recorder) Racing(off, n uint64) bool { t.add("racing %d %d", off, n); return off < 32 }
func (t *recorder) Load(off, n uint64)        { t.add("load %d %d", off, n) }
func (t *recorder) Store(off, n, v uint64)    { t.add("store %d %d %d", off, n, v) }
func (t *recorder) Bulk(off uint64, p []byte) { t.add("bulk %d %d", off, p[0]) }
func (t *recorder) BulkZero(off, n uint64)    { t.add("zero %d %d", off, n) }
func (t *recorder) Flush(off, n uint64)       { t.add("flush %d %d", off, n) }
func (t *recorder) Drain() error              { t.add("drain"); return t.drain }
func (t *recorder) Await(ready func() bool)   { t.add("await %v", ready()) }
func (t *recorder) Hint() uint32              { t.add("hint"); return 42 }

// Goal: the tracer hears of every operation, with its arguments, once, and before
// it happens.
func TestTracerSeesOpsFirst(t *testing.T) {
	buf := alignedHeap(64, 8)
	rec := &recorder{mem: buf}
	r := NewTraced(buf, rec)
	r.Store32(0, 1)
	r.Store64(0, 2)
	r.Load32(4)
	r.Load64(8)
	r.Write(0, []byte{3, 0, 0, 0, 0, 0, 0, 0})
	r.Read(make([]byte, 3), 1)
	if p := make([]byte, 5); !r.ReadRacing(p, 0) || p[0] != 3 || r.ReadRacing(p, 30) {
		t.Errorf("a racing read brought %v, or one that the tracer refuses was done", p)
	}
	r.Zero(0, 16)
	r.Flush(0, 1)
	r.Touch(0)
	_ = r.Drain()
	_ = r.Persist(8, 8)
	r.Await(func() bool { return true })
	if h := r.Hint(); h != 42 {
		t.Errorf("Hint = %d, want the tracer's 42", h)
	}
	want := []string{
		"store 0 4 1 @0", "store 0 8 2 @1", "load 4 4 @2", "load 8 8 @2", "bulk 0 3 @2", "load 1 3 @3",
		"racing 0 2 @3", "racing 2 3 @3", "racing 30 2 @3", "racing 32 3 @3",
		"zero 0 16 @3", "flush 0 1 @0", "drain @0", "flush 8 8 @0", "drain @0", "await true @0", "hint @0",
	}
	if !slices.Equal(rec.log, want) {
		t.Errorf("trace\n%q\nwant\n%q", rec.log, want)
	}
	if !r.Traced() || NewHeap(8).Traced() {
		t.Error("Traced is wrong")
	}
}

// Goal: a tracer can fail a drain, and misuse is refused before it is announced.
func TestTracerDrainErrorAndMisuse(t *testing.T) {
	buf := alignedHeap(64, 8)
	rec := &recorder{mem: buf, drain: errors.New("power cut")}
	r := NewTraced(buf, rec)
	if err := r.Drain(); !errors.Is(err, rec.drain) {
		t.Errorf("Drain = %v", err)
	}
	rec.log = nil
	for _, misuse := range []func(){
		func() { r.Load32(64) }, func() { r.Store64(60, 1) }, func() { r.Write(0, make([]byte, 9)) },
		func() { r.Zero(56, 16) }, func() { r.Flush(65, 0) }, func() { r.Touch(64) },
	} {
		if panicText(misuse) == "" {
			t.Error("misuse of a traced region did not panic")
		}
	}
	if len(rec.log) != 0 {
		t.Errorf("misuse was announced: %q", rec.log)
	}
}

// Goal: Await without a tracer does not call ready and does not wait.
func TestAwaitUntraced(t *testing.T) {
	NewHeap(8).Await(func() bool { t.Error("ready was called"); return false })
}
