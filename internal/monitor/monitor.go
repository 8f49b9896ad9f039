package monitor

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"

	"github.com/bttnbd/bttnbd/nbd"
)

// Options of a [Monitor].
type Options struct {
	Server     func() *nbd.Server // whose counters; nil: there is none in this process
	Images     func() []Image     // what is served now
	MaxBuffers int64              // of the server: nbd.Options.MaxMemory

	Version  string // of the program
	Revision string // commit, "" for none
	PID      int
	Host     string // by which its listener on TCP was named; "": by an address, or not at all

	Profiles bool // serve /debug/pprof/
	Log      zerolog.Logger
}

// Monitor answers over HTTP. See [Monitor.Handler].
type Monitor struct {
	o       Options
	started time.Time
	now     func() time.Time
	ending  atomic.Pointer[string] // why it is not ready any more; nil: it is

	health recent

	mu      sync.Mutex
	history []*Status // at most two, the older first
}

// samplePause is how often the counters are noted, for rates: those that are shown
// are of the last one to two pauses.
const samplePause = 5 * time.Second

// New returns a monitor that is asked from now on.
func New(o Options) *Monitor {
	m := &Monitor{o: o, started: time.Now(), now: time.Now}
	m.sample()
	return m
}

// Stopping makes it unhealthy, for the reason given.
func (m *Monitor) Stopping(why string) { m.ending.Store(&why) }

// Sample notes the counters every few seconds until ctx ends.
func (m *Monitor) Sample(ctx context.Context) {
	t := time.NewTicker(samplePause)
	defer t.Stop()
	for {
		select {
		case <-t.C:
			m.sample()
		case <-ctx.Done():
			return
		}
	}
}

func (m *Monitor) sample() {
	now := m.look()
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.history = append(m.history, now); len(m.history) > 2 {
		m.history = m.history[1:]
	}
}

// Status is what is known now.
func (m *Monitor) Status() *Status {
	m.mu.Lock()
	older := m.history[0]
	m.mu.Unlock()
	s := m.look()
	s.Compare(older)
	return s
}
