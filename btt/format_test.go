package btt

import (
	"errors"
	"testing"

	"github.com/bttnbd/bttnbd/layout"
	"github.com/bttnbd/bttnbd/pmem"
)

// Goal: Format tells how far the zeroing is, up to the whole; stopped there it leaves no
// BTT and touches nothing more.
func TestFormatStopped(t *testing.T) {
	const size, pieces = 200 << 20, 4 // of 64 MiB, the last one shorter
	stop := errors.New("stop")
	for after := 1; after <= pieces+1; after++ {
		r := pmem.NewHeap(size)
		p := testParams(layout.Kernel)
		p.SectorSize, p.MaxArena, p.Zeroed = 512, 0, true // of which the data must be zeroed
		p.MinArena = 0
		if err := Format(r, p); err != nil {
			t.Fatal(err)
		}
		lastBlock := uint64(190 << 20)
		r.Store64(lastBlock, 1)
		var calls int
		var done, total uint64
		p.Zeroed = false
		p.Progress = func(d, n uint64) error {
			if d <= done || d > n || total != 0 && n != total {
				t.Errorf("%d of %d after %d of %d", d, n, done, total)
			}
			done, total = d, n
			if calls++; calls == after {
				return stop
			}
			return nil
		}
		err := Format(r, p)
		_, openErr := Open(r, Options{})
		if after <= pieces {
			if !errors.Is(err, stop) || !errors.Is(openErr, ErrNoBTT) {
				t.Errorf("stopped after %d: %v; there is a BTT: %v", after, err, openErr)
			}
			if touched := r.Load64(lastBlock) == 0; touched != (after >= 3) {
				t.Errorf("stopped after %d: zeroed beyond that: %v", after, touched)
			}
			continue
		}
		if err != nil || openErr != nil || calls != pieces || done != total {
			t.Errorf("%v, %v, %d calls, %d of %d", err, openErr, calls, done, total)
		}
	}
}
