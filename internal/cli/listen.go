package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/coreos/go-systemd/v22/activation"
	"golang.org/x/sys/unix"
)

// listenAddr is a parsed ADDR of --listen.
type listenAddr struct {
	network string // "unix" or "tcp"
	address string // as package net wants it
	given   string // as the user wrote it
}

// maxSocketPath is what fits into sun_path of unix(7) with its final zero.
const maxSocketPath = 107

// parseListenAddr reads unix:PATH, tcp:HOST:PORT or tcp:PORT. The last listens on
// localhost: there is no protection against whoever can connect.
func parseListenAddr(s string) (listenAddr, error) {
	network, rest, _ := strings.Cut(s, ":")
	switch network {
	case "unix":
		return parseUnixAddr(s, rest)
	case "tcp":
		return parseTCPAddr(s, rest)
	}
	return listenAddr{}, usagef("--listen %s: unknown kind of address: write unix:/path or tcp:host:port", s)
}

func parseUnixAddr(given, path string) (listenAddr, error) {
	if path == "" {
		return listenAddr{}, usagef("--listen %s: no path: write unix:/path", given)
	}
	if path[0] == '@' {
		path = "./" + path // for package net it would be an abstract socket
	}
	if len(path) > maxSocketPath {
		return listenAddr{}, usagef("--listen %s: the path has %d bytes: a socket path has at most %d, choose a shorter one", given, len(path), maxSocketPath)
	}
	return listenAddr{"unix", path, given}, nil
}

func parseTCPAddr(given, rest string) (listenAddr, error) {
	host, port := "localhost", rest
	if strings.Contains(rest, ":") {
		var err error
		if host, port, err = net.SplitHostPort(rest); err != nil {
			return listenAddr{}, usagef("--listen %s: not a host and a port: write tcp:host:port, an IPv6 address in brackets", given)
		}
	}
	if _, err := strconv.ParseUint(port, 10, 16); err != nil {
		return listenAddr{}, usagef("--listen %s: port %q is not a number up to 65535: write tcp:host:port", given, port)
	}
	return listenAddr{"tcp", net.JoinHostPort(host, port), given}, nil
}

// parseListenAddrs parses all, and refuses the same one twice.
func parseListenAddrs(given []string) ([]listenAddr, error) {
	var addrs []listenAddr
	seen := map[string]bool{}
	for _, s := range given {
		a, err := parseListenAddr(s)
		if err != nil {
			return nil, err
		}
		if seen[a.network+a.address] {
			return nil, usagef("--listen %s: given twice: leave one out", s)
		}
		seen[a.network+a.address] = true
		addrs = append(addrs, a)
	}
	return addrs, nil
}

// listeners are open sockets. A unix socket that was made here is removed again,
// unless somebody else's has taken its place.
type listeners struct {
	made   []net.Listener         // for --listen
	paths  map[string]os.FileInfo // of the unix sockets among them
	passed []net.Listener         // by systemd
}

func (ls *listeners) all() []net.Listener { return slices.Concat(ls.made, ls.passed) }

// activated are the sockets that systemd, or whoever behaves like it, has passed.
func activated() (*listeners, error) {
	all, err := activation.Listeners()
	if err != nil {
		return nil, fmt.Errorf("sockets from systemd: %w", err)
	}
	for i, l := range all {
		if l == nil {
			return nil, fmt.Errorf("file descriptor %d from systemd is not a listening stream socket: use ListenStream= in the socket unit", 3+i)
		}
	}
	return &listeners{passed: all}, nil
}

// listenAll opens all addresses or none.
func listenAll(ctx context.Context, addrs []listenAddr) (*listeners, error) {
	ls := &listeners{paths: map[string]os.FileInfo{}}
	for _, a := range addrs {
		if err := ls.listen(ctx, a); err != nil {
			return nil, errors.Join(err, ls.close())
		}
	}
	return ls, nil
}

func (ls *listeners) listen(ctx context.Context, a listenAddr) error {
	var config net.ListenConfig
	if a.network == "unix" {
		if err := removeStale(a); err != nil {
			return err
		}
		config.Control = ownerOnly
	}
	l, err := config.Listen(ctx, a.network, a.address)
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return fmt.Errorf("--listen %s: the address is in use: stop the other server, or choose another address", a.given)
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("--listen %s: its directory does not exist: make it, or choose another path", a.given)
	case err != nil:
		return fmt.Errorf("--listen %s: %w: choose another address", a.given, errors.Unwrap(err))
	}
	ls.made = append(ls.made, l)
	if u, ok := l.(*net.UnixListener); ok {
		u.SetUnlinkOnClose(false)
		if ls.paths[a.address], err = os.Lstat(a.address); err != nil {
			return fmt.Errorf("--listen %s: somebody removed the socket: %w", a.given, err)
		}
	}
	return nil
}

// ownerOnly gives a unix socket mode 0600 before bind makes it visible. Linux
// takes the mode of the new name from the socket.
func ownerOnly(_, _ string, c syscall.RawConn) error {
	var chmodErr error
	err := c.Control(func(fd uintptr) { chmodErr = unix.Fchmod(int(fd), 0o600) })
	return errors.Join(err, chmodErr)
}

// refuseTaken refuses addresses that can never be listened on: those of the images
// themselves, and of other files.
func refuseTaken(addrs []listenAddr, exports []exportArg) error {
	for _, a := range addrs {
		if a.network != "unix" {
			continue
		}
		for _, e := range exports {
			if sameFile(a.address, e.path) {
				return usagef("--listen %s: that is the path of the image: choose another path for the socket", a.given)
			}
		}
		if st, err := os.Lstat(a.address); err == nil && st.Mode().Type() != fs.ModeSocket {
			return fmt.Errorf("--listen %s: %s is there: choose another path", a.given, kind(st.Mode()))
		}
	}
	return nil
}

// kind is in words what a directory entry is.
func kind(m fs.FileMode) string {
	switch m.Type() {
	case 0:
		return "a regular file"
	case fs.ModeDir:
		return "a directory"
	case fs.ModeSymlink:
		return "a symbolic link"
	case fs.ModeNamedPipe:
		return "a named pipe"
	}
	return "a device"
}

// removeStale removes a socket that a killed server has left: one on which nobody
// answers. Anything else in that place is refused.
func removeStale(a listenAddr) error {
	st, err := os.Lstat(a.address)
	if err != nil {
		return nil // nothing there, or listening will say what is wrong
	}
	if st.Mode().Type() != fs.ModeSocket {
		return fmt.Errorf("--listen %s: %s is there: choose another path", a.given, kind(st.Mode()))
	}
	c, err := net.Dial("unix", a.address)
	if err == nil {
		c.Close()
		return fmt.Errorf("--listen %s: a server is listening there: stop it, or choose another path", a.given)
	}
	if !errors.Is(err, syscall.ECONNREFUSED) {
		return fmt.Errorf("--listen %s: cannot tell whether a server is listening there: %w: choose another path", a.given, err)
	}
	return os.Remove(a.address)
}

// close closes what is still open and removes the sockets made here.
func (ls *listeners) close() error {
	var errs []error
	for _, l := range ls.all() {
		if err := l.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
			errs = append(errs, err)
		}
	}
	for path, ours := range ls.paths {
		if st, err := os.Lstat(path); err == nil && os.SameFile(st, ours) {
			errs = append(errs, os.Remove(path))
		}
	}
	return errors.Join(errs...)
}
