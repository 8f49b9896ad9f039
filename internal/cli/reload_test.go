package cli

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/bttnbd/bttnbd/nbd"
	"github.com/bttnbd/bttnbd/nbd/nbdtest"
)

func certified(name string) *tls.ConnectionState {
	return &tls.ConnectionState{PeerCertificates: []*x509.Certificate{{Subject: pkix.Name{CommonName: name}}}}
}

// Goal: while exports change, a client needs what the old rules ask and what the new
// ones ask.
func TestAdmissionOfBoth(t *testing.T) {
	alice := exportSpec{exportArg: exportArg{name: "x"}, tlsAllow: []string{"alice"}}
	both := exportSpec{exportArg: exportArg{name: "x"}, tlsAllow: []string{"alice", "bob"}}
	open := exportSpec{exportArg: exportArg{name: "x"}}
	of := func(a access, e exportSpec) *rules { return newRules(a, []served{{exportSpec: e}}) }
	known := access{known: true}
	for _, c := range []struct {
		name     string
		was, now *rules
		st       *tls.ConnectionState
		want     bool
	}{
		{"nothing asked", of(access{}, open), of(access{}, open), nil, true},
		{"goes", of(access{}, alice), newRules(access{}, nil), nil, false},
		{"comes", newRules(access{}, nil), of(access{}, alice), certified("bob"), false},
		{"in both", of(known, both), of(known, alice), certified("alice"), true},
		{"in one", of(known, both), of(known, alice), certified("bob"), false},
		{"certificates asked from now on", of(access{}, open), of(known, open), nil, false},
		{"certificates asked until now", of(known, open), of(access{}, open), nil, false},
		{"not among all subjects", of(known, open), of(access{known: true, subjects: []string{"alice"}}, open), certified("bob"), false},
		{"not among all subjects but its own", of(access{known: true, subjects: []string{"alice"}}, both), of(known, both), certified("bob"), false},
	} {
		var a admission
		a.put(c.was, c.now)
		if got := a.admit("x", c.st); got != c.want {
			t.Errorf("%s: admitted: %v, want %v", c.name, got, c.want)
		}
	}
}

// Goal: an export that ends keeps its rule until it has ended, and the new TLS is in
// force before anything new is.
// Method: a client that takes no replies keeps the change from ending.
func TestRulesWhileExportsEnd(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	s := &service{serveOptions: serveOptions{settings: newSettings()}, log: zerolog.New(io.Discard)}
	s.TLS.value = "off"
	s.Create = 32 << 20
	spec := s.spec(exportArg{"secret", filepath.Join(t.TempDir(), "a.img")})
	im, err := s.open(ctx, spec)
	if err != nil {
		t.Fatal(err)
	}
	defer im.close()
	s.exports = []served{{spec, im}} // for everybody, until a client is in
	s.admission.put(newRules(s.access, s.exports))
	if s.server, err = nbd.NewServer(nbdExports(s.exports), s.options()); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go s.server.Serve(ctx, l)
	defer s.server.Shutdown(ctx)
	c, _, err := nbdtest.Dial("tcp", l.Addr().String(), "secret")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for cookie := range uint64(64) {
		if err := c.Send(nbdtest.Read(cookie, 0, 1<<20)); err != nil {
			t.Fatal(err)
		}
	}
	s.exports[0].tlsAllow = []string{"alice"}
	next := access{tls: &tls.Config{MinVersion: tls.VersionTLS12}}
	done := make(chan error)
	change, end := context.WithCancel(ctx)
	defer end()
	go func() { done <- s.setExports(change, nil, next) }()
	await(t, "a change in which both rules are in force", func() bool { return len(*s.admission.inForce.Load()) == 2 })
	await(t, "the new TLS", func() bool { return s.tls.current.Load() == next.tls })
	if s.admission.admit("secret", nil) {
		t.Error("everybody may use the export while it ends")
	}
	end()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if !s.admission.admit("secret", nil) || len(*s.admission.inForce.Load()) != 1 {
		t.Error("the old rules are in force after the end")
	}
}

func await(t *testing.T, what string, there func() bool) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for deadline := time.After(30 * time.Second); !there(); {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("no sign of %s", what)
		}
	}
}

// Goal: thousands of files in a directory cost what they are, and not their square;
// and a signal ends the look at them.
func TestDistinctIsLinear(t *testing.T) {
	var found []exportSpec
	for i := range 20000 {
		name := fmt.Sprint(i)
		found = append(found, exportSpec{exportArg: exportArg{name, filepath.Join("none", name)}, found: true})
	}
	begin := time.Now()
	specs, err := distinct(t.Context(), zerolog.New(io.Discard), found)
	if took := time.Since(begin); err != nil || len(specs) != len(found) || took > 5*time.Second {
		t.Errorf("%d of %d, %v, in %v", len(specs), len(found), err, took)
	}
	ended, cancel := context.WithCancelCause(t.Context())
	cancel(errInterrupted)
	if _, err := distinct(ended, zerolog.New(io.Discard), found); !errors.Is(err, errInterrupted) {
		t.Errorf("ended: %v", err)
	}
}
