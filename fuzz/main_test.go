package fuzz

import (
	"flag"
	"os"
	"runtime/debug"
	"testing"
)

// Little is alive here at any time, and half a million devices are opened: with
// the usual limit half of the time would go into collecting them.
func TestMain(m *testing.M) {
	debug.SetGCPercent(800)
	os.Exit(m.Run())
}

// beside lets a subtest run beside the others of its parent. It is false when there
// is no need to: one of them has failed, and -failfast, which stops only what has
// not begun, and all of these have, asks for no more.
func beside(t, parent *testing.T) bool {
	t.Parallel()
	return !parent.Failed() || flag.Lookup("test.failfast").Value.String() != "true"
}
