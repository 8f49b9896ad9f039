package nbd

import (
	"crypto/tls"
	"slices"
	"time"
)

// Client is a connection that is open.
type Client struct {
	ID       uint64    // rises with time, and is no other's
	Peer     string    // the client's address, or the kind of its socket
	Since    time.Time // when it connected
	Chosen   bool      // it is in transmission, and what follows is known
	Export   string
	TLS      string // its version, "" in clear
	Subject  string // of the client's certificate, "" for none
	Requests uint64
	Bytes    uint64 // of requests that succeeded
	Errors   uint64 // error replies
}

// Clients returns all open connections, the oldest first.
func (s *Server) Clients() []Client {
	s.mu.Lock()
	conns := make([]*conn, 0, len(s.conns))
	for c := range s.conns {
		conns = append(conns, c)
	}
	s.mu.Unlock()
	slices.SortFunc(conns, func(a, b *conn) int { return int(int64(a.id - b.id)) })
	all := make([]Client, len(conns))
	for i, c := range conns {
		all[i] = c.client()
	}
	return all
}

// client describes c. Any goroutine may call it: what is not atomic does not change
// any more once serving is set.
func (c *conn) client() Client {
	is := Client{ID: c.id, Peer: peer(c.wire.Conn), Since: c.since}
	e := c.serving.Load()
	if e == nil {
		return is
	}
	is.Chosen, is.Export = true, e.Name
	for i := range c.n.requests {
		is.Requests += c.n.requests[i].Load()
		is.Bytes += c.n.bytes[i].Load()
	}
	for i := range c.n.errors {
		is.Errors += c.n.errors[i].Load()
	}
	if c.tls != nil {
		st := c.tls.ConnectionState()
		is.TLS = tls.VersionName(st.Version)
		if len(st.PeerCertificates) > 0 {
			is.Subject = st.PeerCertificates[0].Subject.String()
		}
	}
	return is
}
