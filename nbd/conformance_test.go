package nbd_test

import (
	"net"
	"slices"
	"testing"

	"github.com/bttnbd/bttnbd/nbd"
	"github.com/bttnbd/bttnbd/nbd/nbdtest"
)

// Goal: every case of the suite passes against a server that offers everything,
// with nothing left out.
func TestConformance(t *testing.T) {
	m := nbdtest.NewMemory(40 * mib)
	ro := nbd.Export{Name: "ro", Size: 40 * mib, ReadOnly: true, Backend: m}
	s := newServer(t, full(m, 40*mib), ro)
	dial := func() net.Conn { return connect(t, s) }
	nbdtest.Conformance(t, dial, nbdtest.Options{ReadOnly: "ro", Complete: true})
}

// Goal: and against one that takes whole sectors alone, and no fast zeroing.
func TestConformanceSectors(t *testing.T) {
	m := nbdtest.NewMemory(40 * mib)
	e := nbd.Export{Name: "a name", Size: 40 * mib, MinBlock: 512, Trim: true, Zero: true, Backend: m}
	s := newServer(t, e)
	dial := func() net.Conn { return connect(t, s) }
	nbdtest.Conformance(t, dial, nbdtest.Options{Export: "a name"})
}

// Goal: the names of cases, by which deviations are listed, are different.
func TestConformanceNames(t *testing.T) {
	names := nbdtest.Cases()
	slices.Sort(names)
	if n := len(slices.Compact(slices.Clone(names))); n != len(names) {
		t.Errorf("%d cases have %d names", len(names), n)
	}
}
