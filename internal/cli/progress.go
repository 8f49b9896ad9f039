package cli

import (
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"github.com/bttnbd/bttnbd/internal/units"
)

const (
	// progressInterval is the time between two looks at how far something is.
	progressInterval = 200 * time.Millisecond

	// progressDelay is how long something may take before a terminal hears of it.
	progressDelay = 400 * time.Millisecond

	// rateWindow is the time over which the rate is taken: long enough to be steady,
	// short enough to follow a medium that slows down.
	rateWindow = 8 * time.Second
)

// newProgressFlag is the flag --progress.
func newProgressFlag() choiceFlag { return newChoice("auto", "always", "never") }

// addProgress puts --progress on a command whose work may take long.
func addProgress(f *pflag.FlagSet, value *choiceFlag) {
	*value = newProgressFlag()
	f.Var(value, "progress", "show on stderr how far it is, how fast, and how long it may still take; auto: on a terminal")
}

// rateText words a number of something each second.
type rateText func(perSecond float64) string

// bytesRate is for work that is counted in bytes.
func bytesRate(perSecond float64) string { return units.Short(uint64(perSecond)) + "/s" }

// sectorRate is for work that is counted in map entries.
func sectorRate(perSecond float64) string { return units.Count(uint64(perSecond)) + " sectors/s" }

// progress shows on one line how far something is, its rate and the time left.
// Work that is gone through several times begins anew each time, as a pass.
type progress struct {
	w     io.Writer
	what  string
	rate  rateText
	now   func() time.Time
	next  time.Time // nothing is printed earlier
	pass  int
	marks []mark // of this pass, oldest first, at most rateWindow old but for one
	width int    // of what stands on the line
}

// mark is how far the work was at a time.
type mark struct {
	at   time.Time
	done uint64
}

// newProgress returns nil, on which all methods do nothing, unless it is wanted:
// "always", or "auto" and w is a terminal.
func newProgress(w io.Writer, when, what string, rate rateText) *progress {
	p := &progress{w: w, what: what, rate: rate, now: time.Now}
	switch {
	case when == "always":
	case when == "auto" && isTerminal(w):
		p.next = p.now().Add(progressDelay)
	default:
		return nil
	}
	return p
}

// update may be called often; it prints seldom. The end of a pass is printed, unless
// it comes before anything was due.
func (p *progress) update(done, total uint64) {
	if p == nil || total == 0 {
		return
	}
	now := p.now()
	if n := len(p.marks); n == 0 || done < p.marks[n-1].done {
		p.pass, p.marks = p.pass+1, append(p.marks[:0], mark{now, done})
	}
	early := now.Before(p.next)
	if early && (done < total || p.width == 0) {
		return
	}
	p.marks = append(p.marks, mark{now, done})
	for len(p.marks) > 2 && now.Sub(p.marks[1].at) > rateWindow {
		p.marks = p.marks[1:]
	}
	p.next = now.Add(progressInterval)
	p.print(p.line(done, total))
}

// line is the text at a moment, without what needs two moments.
func (p *progress) line(done, total uint64) string {
	var b strings.Builder
	b.WriteString(visible(p.what) + ": ")
	if p.pass > 1 {
		fmt.Fprintf(&b, "pass %d: ", p.pass)
	}
	fmt.Fprintf(&b, "%3.0f %%", float64(done)/float64(total)*100)
	first := p.marks[0]
	elapsed := p.marks[len(p.marks)-1].at.Sub(first.at)
	if elapsed <= 0 || done <= first.done {
		return b.String()
	}
	rate := float64(done-first.done) / elapsed.Seconds()
	b.WriteString(", " + p.rate(rate))
	if done < total {
		left := float64(total-done) / rate
		b.WriteString(", " + clock(left) + " left")
	}
	return b.String()
}

// clock is a time in seconds as a clock shows it: 0:07, 12:34, 1:02:03.
func clock(seconds float64) string {
	const most = 100 * 60 * 60
	if seconds >= most {
		return "more than 100 hours"
	}
	s := int(seconds + 0.5)
	if s < 60*60 {
		return fmt.Sprintf("%d:%02d", s/60, s%60)
	}
	return fmt.Sprintf("%d:%02d:%02d", s/3600, s/60%60, s%60)
}

// print puts a line over the one before.
func (p *progress) print(line string) {
	fill := strings.Repeat(" ", max(0, p.width-len(line)))
	p.width = len(line)
	fmt.Fprint(p.w, "\r"+line+fill)
}

// end leaves the line, so that what follows begins on a new one.
func (p *progress) end() {
	if p != nil && p.width > 0 {
		fmt.Fprintln(p.w)
	}
}
