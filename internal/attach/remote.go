package attach

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bttnbd/bttnbd/internal/kernel"
)

// A Remote is an export of another server, by its NBD URI (doc/uri.md of the NBD
// project).
type Remote struct {
	URI     string
	network string // "tcp" or "unix"
	address string
	export  string
}

// IsURI reports whether s is one, and no path.
func IsURI(s string) bool {
	scheme, _, ok := strings.Cut(s, "://")
	return ok && strings.HasPrefix(scheme, "nbd")
}

// ParseURI reads nbd://host[:port]/export and nbd+unix:///export?socket=path.
func ParseURI(s string) (Remote, error) {
	u, err := url.Parse(s)
	if err != nil {
		return Remote{}, fmt.Errorf("%s: no URI: write nbd://host/export or nbd+unix:///export?socket=/path", s)
	}
	r := Remote{URI: s, export: strings.TrimPrefix(u.Path, "/")}
	query := u.Query()
	socket := query.Get("socket")
	query.Del("socket")
	for key := range query {
		return r, fmt.Errorf("%s: cannot do what %s= asks for: leave it out", s, key)
	}
	switch u.Scheme {
	case "nbd":
		if socket != "" || u.Hostname() == "" {
			return r, fmt.Errorf("%s: write nbd://host/export", s)
		}
		port := u.Port()
		if port == "" {
			port = "10809"
		}
		r.network, r.address = "tcp", net.JoinHostPort(u.Hostname(), port)
	case "nbd+unix":
		if socket == "" || u.Host != "" {
			return r, fmt.Errorf("%s: write nbd+unix:///export?socket=/path", s)
		}
		r.network, r.address = "unix", socket
	default:
		return r, fmt.Errorf("%s: the kernel's client speaks nbd and nbd+unix only, no TLS", s)
	}
	return r, nil
}

// dialTimeout bounds connecting and the handshake.
const dialTimeout = 10 * time.Second

// remoteSource makes connections to the other server, for the kernel to talk over.
type remoteSource struct{ Remote }

func (s *remoteSource) backend() string { return s.URI }

func (s *remoteSource) close() error { return nil }

func (s *remoteSource) connect() (connection, int, error) {
	nc, err := net.DialTimeout(s.network, s.address, dialTimeout)
	if err != nil {
		return nil, -1, err
	}
	defer nc.Close() // what is kept is a duplicate
	nc.SetDeadline(time.Now().Add(dialTimeout))
	e, err := kernel.Negotiate(nc, s.export)
	if err != nil {
		return nil, -1, err
	}
	raw, err := nc.(interface{ File() (*os.File, error) }).File()
	if err != nil {
		return nil, -1, err
	}
	theirs, err := unix.FcntlInt(raw.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		raw.Close()
		return nil, -1, err
	}
	return &remoteConn{raw, e}, theirs, nil
}

// remoteConn is our descriptor of a socket that the kernel uses.
type remoteConn struct {
	socket *os.File
	export kernel.Export
}

// offered takes the least block that the kernel and the server both can do.
func (c *remoteConn) offered() (kernel.Export, uint32) {
	return c.export, min(max(c.export.MinBlock, 512), uint32(os.Getpagesize()))
}

// await waits for the end of the socket only: poll does not wake for data.
func (c *remoteConn) await() (goodbye bool, err error) {
	p := []unix.PollFd{{Fd: int32(c.socket.Fd()), Events: unix.POLLRDHUP}}
	for {
		_, err := unix.Poll(p, -1)
		if !errors.Is(err, unix.EINTR) {
			return false, err
		}
	}
}

func (c *remoteConn) close() { c.socket.Close() }

// cut ends the connection for the kernel, too, which has the same socket.
func (c *remoteConn) cut() {
	_ = unix.Shutdown(int(c.socket.Fd()), unix.SHUT_RDWR) // fails if it is dead already
	c.socket.Close()
}

// leave does nothing: the kernel has the socket, and goes on without us.
func (c *remoteConn) leave() {}
