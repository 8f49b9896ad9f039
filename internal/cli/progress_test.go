package cli

import (
	"bytes"
	"strings"
	"testing"
	"time"
)

// testClock is a time that the test moves.
type testClock struct{ t time.Time }

func (c *testClock) now() time.Time { return c.t }

func newTestProgress(b *bytes.Buffer, rate rateText) (*progress, *testClock) {
	c := &testClock{time.Unix(1000, 0)}
	p := newProgress(b, "always", "x", rate)
	p.now = c.now
	return p, c
}

// Goal: progress has percentage, rate and the time left, of each pass for itself, and is
// printed neither too often nor over the remains of a longer line.
func TestProgress(t *testing.T) {
	var b bytes.Buffer
	p, c := newTestProgress(&b, bytesRate)
	for _, step := range []struct {
		after time.Duration
		done  uint64
	}{
		{0, 0}, {time.Second, 1 << 30}, {time.Millisecond, 2 << 30}, // too soon after the one before
		{time.Second - time.Millisecond, 3 << 30}, {time.Second, 4 << 30},
		{time.Second, 0}, {time.Second, 2 << 30}, // once more from the beginning
	} {
		c.t = c.t.Add(step.after)
		p.update(step.done, 4<<30)
	}
	p.end()
	want := []string{
		"", "x:   0 %", "x:  25 %, 1 GiB/s, 0:03 left", "x:  75 %, 1.5 GiB/s, 0:01 left", "x: 100 %, 1.33 GiB/s          ",
		"x: pass 2:   0 %    ", "x: pass 2:  50 %, 2 GiB/s, 0:01 left\n",
	}
	if got := strings.Split(b.String(), "\r"); strings.Join(got, "|") != strings.Join(want, "|") {
		t.Errorf("printed\n%q, want\n%q", got, want)
	}
}

// Goal: the rate follows a medium that has become slow.
func TestProgressWindow(t *testing.T) {
	var b bytes.Buffer
	p, c := newTestProgress(&b, sectorRate)
	done := uint64(0)
	for range 20 {
		p.update(done, 1e9)
		c.t, done = c.t.Add(time.Second), done+10_000_000
	}
	for range 20 {
		p.update(done, 1e9)
		c.t, done = c.t.Add(time.Second), done+100_000
	}
	if last := b.String()[strings.LastIndex(b.String(), "\r"):]; !strings.Contains(last, " 100.0 k sectors/s, 2:") {
		t.Errorf("printed %q", last)
	}
}

// Goal: what is no terminal hears nothing unless it is asked for, and what never begins
// leaves no empty line.
func TestProgressUnwanted(t *testing.T) {
	var b bytes.Buffer
	if newProgress(&b, "auto", "x", bytesRate) != nil || newProgress(&b, "never", "x", bytesRate) != nil {
		t.Error("progress on what is no terminal")
	}
	var none *progress
	none.update(1, 2)
	none.end()
	p, _ := newTestProgress(&b, bytesRate)
	p.update(0, 0)
	p.end()
	if b.Len() > 0 {
		t.Errorf("printed %q", b.String())
	}
}

// Goal: a time left reads like a clock.
func TestClock(t *testing.T) {
	for seconds, want := range map[float64]string{
		0: "0:00", 0.4: "0:00", 7: "0:07", 59.6: "1:00", 754: "12:34", 3599.9: "1:00:00", 3723: "1:02:03", 1e9: "more than 100 hours",
	} {
		if got := clock(seconds); got != want {
			t.Errorf("%v: %q, want %q", seconds, got, want)
		}
	}
}
