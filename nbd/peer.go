package nbd

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"time"
)

// addConn returns a connection over nc, nil when there is no place for it or the
// server is shut down.
func (s *Server) addConn(nc net.Conn) *conn {
	from := ""
	if s.o.MaxConnectionsPerPeer > 0 {
		from = peerKey(nc)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.up.Err() != nil {
		return nil
	}
	s.accepted++
	if from != "" && s.peers[from] >= s.o.MaxConnectionsPerPeer {
		s.refuse(nc, "the peer has as many connections as it may")
		return nil
	}
	if s.o.MaxConnections > 0 && len(s.conns) >= s.o.MaxConnections && !s.evict() {
		s.refuse(nc, "there are as many connections as there may be")
		return nil
	}
	s.running.Add(1)
	c := newConn(s, nc)
	c.id, c.from = s.accepted, from
	s.conns[c] = struct{}{}
	if from != "" {
		s.peers[from]++
	}
	return c
}

// evict makes room for another connection: that which has been longest in its
// handshake goes. It returns false when all are in transmission.
func (s *Server) evict() bool {
	var oldest *conn
	for c := range s.conns {
		if c.serving.Load() == nil && (oldest == nil || c.id < oldest.id) {
			oldest = c
		}
	}
	if oldest == nil {
		return false
	}
	s.refuse(oldest.wire.Conn, "another connection takes the place of this one, which is still in its handshake")
	oldest.interrupt() // so that its end is not taken for its client's doing
	oldest.cut()
	delete(s.conns, oldest)
	return true
}

// refuse counts and logs a connection that is not served.
func (s *Server) refuse(nc net.Conn, why string) {
	s.refused++
	s.complain(nil, nc, why)
}

// complain logs what a client did wrong, unless clients do so too often: a flood
// of connections must not become a flood of lines.
func (s *Server) complain(err error, nc net.Conn, message string) {
	if !s.complaints.Allow() {
		s.unlogged.Add(1)
		return
	}
	e := s.o.Log.Warn().Err(err).Str("client", peer(nc))
	if n := s.unlogged.Swap(0); n > 0 {
		e = e.Uint64("unlogged", n)
	}
	e.Msg(message)
}

// Lines about clients: so many a second on average, and so many at once.
const (
	complaintsPerSecond = 2
	complaintsAtOnce    = 50
)

// prepare sets up a socket that was accepted. Replies go out at once by Go's
// default; a client whose machine has gone is found out after about a minute.
func prepare(nc net.Conn) {
	if t, ok := nc.(*net.TCPConn); ok {
		t.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true, Idle: 30 * time.Second, Interval: 10 * time.Second, Count: 3})
	}
}

// peer names the client's end of nc for the log.
func peer(nc net.Conn) string {
	if a := nc.RemoteAddr(); a != nil {
		if s := a.String(); s != "" && s != "@" {
			return s
		}
		return a.Network()
	}
	return "?"
}

// peerKey names the peer whose connections are counted together, "" when there
// is no telling. A host may take any address of its /64, so that is the peer with
// IPv6; ports do not matter, and with vsock they stand behind the CID.
func peerKey(nc net.Conn) string {
	switch a := nc.RemoteAddr().(type) {
	case nil:
		return ""
	case *net.TCPAddr:
		ip, _ := netip.AddrFromSlice(a.IP)
		if ip = ip.Unmap(); ip.Is6() && !ip.IsLoopback() {
			if p, err := ip.Prefix(64); err == nil {
				return p.String()
			}
		}
		return ip.String()
	case *net.UnixAddr:
		return localUser(nc)
	default:
		key, _, _ := strings.Cut(a.String(), ":")
		return a.Network() + " " + key
	}
}

// localUser names the user at the other end of a unix socket, as it was when
// that connected.
func localUser(nc net.Conn) string {
	sc, ok := nc.(syscall.Conn)
	if !ok {
		return ""
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return ""
	}
	user := ""
	raw.Control(func(fd uintptr) {
		if cred, err := syscall.GetsockoptUcred(int(fd), syscall.SOL_SOCKET, syscall.SO_PEERCRED); err == nil {
			user = fmt.Sprintf("uid %d", cred.Uid)
		}
	})
	return user
}
