package fuzz

import (
	"os"
	"slices"
	"sync"

	"github.com/bttnbd/bttnbd/pmem/pmemtest"
)

// crashModel is what a test can see of a crash. All but full are weaker than the
// simulator: they show, mutant by mutant, what it is needed for (make
// mutants-models). BTTNBD_MODEL chooses one.
type crashModel string

const (
	noCrash   crashModel = "none"        // functions and schedules only; a clean reopen at the end
	killOnly  crashModel = "kill"        // a crash before every access that keeps all stores, as SIGKILL does
	allOrNone crashModel = "all-or-none" // the same, and one that loses all that is not drained
	images    crashModel = "images"      // every image, but no lints
	full      crashModel = "full"        // every image, and the lints of what was stored and drained
)

// model is read when a test first asks, not before: only what a running test looks
// up makes the go command run it again when it changes.
var model = sync.OnceValue(func() crashModel {
	m := crashModel(os.Getenv("BTTNBD_MODEL"))
	if m == "" {
		return full
	}
	if !slices.Contains([]crashModel{noCrash, killOnly, allOrNone, images, full}, m) {
		panic("BTTNBD_MODEL: no model " + m)
	}
	return m
})

// exhaustive: every image of a crash, and kills with the power on.
func (m crashModel) exhaustive() bool { return m == full || m == images }

// uniform keeps all, or loses all, of what is undecided.
type uniform struct{ fate, last int }

func (u *uniform) Choose(n int) int { return min(u.fate, n-1) }

func (u *uniform) Next() bool {
	u.fate++
	return u.fate <= u.last
}

// fates walk through what may be left of a crash.
type fates interface {
	pmemtest.Chooser
	Next() bool
}

func newFates() fates {
	switch {
	case model().exhaustive():
		return new(pmemtest.Odometer)
	case model() == allOrNone:
		return &uniform{last: 1}
	}
	return new(uniform)
}

// onCrash makes crash be called at every moment of an operation at which the
// power, or the process, may go: before each drain, where most is undecided, or,
// where stores are never lost apart from each other, before each access.
func onCrash(m *pmemtest.Machine, crash func() error) {
	m.OnDrain = nil
	switch {
	case crash == nil:
		m.OnAccess = nil
	case model().exhaustive():
		m.OnDrain = crash
	case model() != noCrash:
		m.OnAccess = func() {
			if err := crash(); err != nil {
				panic(err)
			}
		}
	}
}
