package cli

import (
	"crypto/tls"
	"slices"
	"sync/atomic"
)

// access is what is asked of clients, whatever export they want.
type access struct {
	tls      *tls.Config // nil: no TLS
	known    bool        // they must have a certificate
	subjects []string    // of certificates that are let in; none: all
}

func (s *settings) access(config *tls.Config) access {
	return access{config, s.verifyPeer(), s.TLSAllow}
}

// rules are who may use which export.
type rules struct {
	access
	byExport map[string][]string // subjects; what is not named is for everybody
}

func newRules(a access, exports []served) *rules {
	r := &rules{a, map[string][]string{}}
	for _, e := range exports {
		if len(e.tlsAllow) > 0 {
			r.byExport[e.name] = e.tlsAllow
		}
	}
	return r
}

func (r *rules) admit(export string, st *tls.ConnectionState) bool {
	subjects, restricted := r.byExport[export]
	if !r.known && !restricted {
		return true
	}
	if st == nil || len(st.PeerCertificates) == 0 {
		return false
	}
	leaf := st.PeerCertificates[0]
	return (len(r.subjects) == 0 || matchesSubject(leaf, r.subjects)) && (!restricted || matchesSubject(leaf, subjects))
}

// admission is the rules in force. While exports change these are two, the old ones
// and the new: a client, which may meet an export of either, must satisfy both.
type admission struct{ inForce atomic.Pointer[[]*rules] }

func (a *admission) put(inForce ...*rules) { a.inForce.Store(&inForce) }

func (a *admission) admit(export string, st *tls.ConnectionState) bool {
	return !slices.ContainsFunc(*a.inForce.Load(), func(r *rules) bool { return !r.admit(export, st) })
}
