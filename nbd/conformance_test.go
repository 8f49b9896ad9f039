package nbd_test

import (
	"crypto/tls"
	"fmt"
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

// Goal: and all of it over TLS, offered or required.
func TestConformanceTLS(t *testing.T) {
	server, client := configs(t)
	for _, required := range []bool{false, true} {
		t.Run(fmt.Sprintf("required=%v", required), func(t *testing.T) {
			m := nbdtest.NewMemory(40 * mib)
			ro := nbd.Export{Name: "ro", Size: 40 * mib, ReadOnly: true, Backend: m}
			s := newServerWith(t, nbd.Options{TLS: server, TLSRequired: required}, full(m, 40*mib), ro)
			dial := func() net.Conn { return connect(t, s) }
			nbdtest.Conformance(t, dial, nbdtest.Options{ReadOnly: "ro", Complete: true, TLS: client, TLSRequired: required})
		})
	}
}

// Goal: and in small buffers, when there is no memory for large ones.
func TestConformanceSmall(t *testing.T) {
	server, client := configs(t)
	for _, over := range []*tls.Config{nil, client} {
		t.Run(fmt.Sprintf("tls=%v", over != nil), func(t *testing.T) {
			m := nbdtest.NewMemory(40 * mib)
			ro := nbd.Export{Name: "ro", Size: 40 * mib, ReadOnly: true, Backend: m}
			s := newServerWith(t, nbd.Options{TLS: server, MaxMemory: -1}, full(m, 40*mib), ro)
			dial := func() net.Conn { return connect(t, s) }
			nbdtest.Conformance(t, dial, nbdtest.Options{ReadOnly: "ro", Complete: true, TLS: over})
		})
	}
}

// Goal: the names of cases, by which deviations are listed, are different.
func TestConformanceNames(t *testing.T) {
	names := nbdtest.Cases()
	slices.Sort(names)
	if n := len(slices.Compact(slices.Clone(names))); n != len(names) {
		t.Errorf("%d cases have %d names", len(names), n)
	}
}
