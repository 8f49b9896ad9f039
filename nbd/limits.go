package nbd

import (
	"time"

	"golang.org/x/time/rate"
)

// limits are the rates of an export, shared by all its connections. Each may be
// nil.
type limits struct {
	ops   *rate.Limiter // requests
	bytes *rate.Limiter // of READ and WRITE
}

// newLimits returns the limits of e, nil if it has none. A second's worth may
// be used at once after a pause.
func newLimits(e *Export) *limits {
	if e.BytesPerSecond == 0 && e.OpsPerSecond == 0 {
		return nil
	}
	return &limits{ops: newLimiter(e.OpsPerSecond), bytes: newLimiter(e.BytesPerSecond)}
}

func newLimiter(perSecond uint64) *rate.Limiter {
	if perSecond == 0 {
		return nil
	}
	return rate.NewLimiter(rate.Limit(perSecond), int(min(perSecond, maxBurst)))
}

const (
	maxBurst = 1 << 30   // the most that is used at once
	paySize  = 256 << 10 // how many bytes are paid for at a time
)

// pay takes n from l and waits until that is paid for, if it is not, with all
// replies sent. A connection that is to end waits no longer.
func (c *conn) pay(l *rate.Limiter, n int) error {
	if l == nil {
		return nil
	}
	now := time.Now()
	for burst := l.Burst(); n > 0; n -= burst {
		wait := l.ReserveN(now, min(n, burst)).DelayFrom(now)
		if wait == 0 {
			continue
		}
		if err := c.flush(); err != nil {
			return err
		}
		t := time.NewTimer(wait)
		select {
		case <-t.C:
		case <-c.stop:
			t.Stop()
			return nil
		}
		now = time.Now()
	}
	return nil
}
