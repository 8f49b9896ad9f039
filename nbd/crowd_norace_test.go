//go:build !race

package nbd

import (
	"os"
	"testing"
	"time"
)

// Goal: to look at the machine allocates nothing. (Race builds have what is read on the
// heap.)
func TestLooksDoNotAllocate(t *testing.T) {
	f, err := os.Open("/proc/loadavg")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	c, looked := &crowd{file: f}, false
	if n := testing.AllocsPerRun(100, func() {
		before := c.due.Load()
		c.sample(time.Duration(before))
		looked = c.due.Load() != before
	}); n != 0 || !looked {
		t.Errorf("%v allocations, looked: %v", n, looked)
	}
}
