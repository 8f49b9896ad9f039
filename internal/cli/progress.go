package cli

import (
	"fmt"
	"io"
	"time"
)

// progressInterval is the time between two looks at how far something is.
const progressInterval = 200 * time.Millisecond

// newProgressFlag is the flag --progress.
func newProgressFlag() choiceFlag { return newChoice("auto", "always", "never") }

// progress shows on one line of a terminal how far something is.
type progress struct {
	w     io.Writer
	what  string
	next  time.Time // nothing is printed earlier
	shown bool
}

// newProgress returns nil, on which all methods do nothing, unless it is wanted:
// "always", or "auto" and w is a terminal.
func newProgress(w io.Writer, when, what string) *progress {
	if when == "always" || when == "auto" && isTerminal(w) {
		return &progress{w: w, what: what}
	}
	return nil
}

// update may be called often; it prints seldom.
func (p *progress) update(done, total uint64) {
	if p == nil || total == 0 {
		return
	}
	now := time.Now()
	if now.Before(p.next) && done < total {
		return
	}
	p.next, p.shown = now.Add(progressInterval), true
	fmt.Fprintf(p.w, "\r%s: %3.0f %%", p.what, float64(done)/float64(total)*100)
}

// end leaves the line, so that what follows begins on a new one.
func (p *progress) end() {
	if p != nil && p.shown {
		fmt.Fprintln(p.w)
	}
}
