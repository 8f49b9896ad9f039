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
	"github.com/mdlayher/vsock"
	"golang.org/x/sys/unix"

	"github.com/bttnbd/bttnbd/internal/sandbox"
)

// listenAddr is a parsed ADDR of --listen.
type listenAddr struct {
	network string // "unix", "tcp", "vsock", "fd" or "systemd"
	address string // a path, host:port, a port, a number, or a name
	given   string // the flag, and the address as the user wrote it
}

// howToListen names the kinds of ADDR.
const howToListen = "write unix:/path, tcp:host:port, vsock:port, fd:number or systemd:name"

// maxSocketPath is what fits into sun_path of unix(7) with its final zero.
const maxSocketPath = 107

// parseListenAddr reads unix:PATH, tcp:HOST:PORT, tcp:PORT, vsock:PORT, fd:N,
// systemd or systemd:NAME. A port of TCP alone is one of localhost: there is no
// protection against whoever can connect.
func parseListenAddr(s string) (listenAddr, error) {
	network, rest, _ := strings.Cut(s, ":")
	given := "--listen " + s
	switch network {
	case "unix":
		return parseUnixAddr(given, rest)
	case "tcp":
		return parseTCPAddr(given, rest)
	case "vsock", "fd":
		if _, err := strconv.ParseUint(rest, 10, 31); err != nil {
			return listenAddr{}, usagef("%s: %q is not a number: write %s:number", given, rest, network)
		}
		return listenAddr{network, rest, given}, nil
	case "systemd":
		return listenAddr{network, rest, given}, nil
	}
	if kind := probably(s); kind != "" {
		return listenAddr{}, usagef("%s: unknown kind of address: did you mean %s? Otherwise %s", given, kind, howToListen)
	}
	return listenAddr{}, usagef("%s: unknown kind of address: %s", given, howToListen)
}

// probably is the address that s was meant to be, which lacks its kind; "" if there is
// no telling.
func probably(s string) string {
	host, port, found := strings.Cut(s, ":")
	if !found {
		host, port = "", s
	}
	_, err := strconv.ParseUint(port, 10, 16)
	switch {
	case err == nil && host == "":
		return "tcp:" + port
	case err == nil && !strings.Contains(host, "/"):
		return "tcp:" + s
	case !found && (strings.Contains(s, "/") || strings.HasSuffix(s, ".sock")):
		return "unix:" + s
	}
	return ""
}

// parseHTTPAddr is parseListenAddr for those of HTTP, unix and TCP alone.
func parseHTTPAddr(given, s string) (listenAddr, error) {
	switch network, rest, _ := strings.Cut(s, ":"); network {
	case "unix":
		return parseUnixAddr(given, rest)
	case "tcp":
		return parseTCPAddr(given, rest)
	}
	const how = "write tcp:port, tcp:host:port or unix:/path"
	if kind := probably(s); kind != "" {
		return listenAddr{}, usagef("%s: unknown kind of address: did you mean %s? Otherwise %s", given, kind, how)
	}
	return listenAddr{}, usagef("%s: unknown kind of address: %s", given, how)
}

func parseUnixAddr(given, path string) (listenAddr, error) {
	if path == "" {
		return listenAddr{}, usagef("%s: no path: write unix:/path", given)
	}
	if path[0] == '@' {
		path = "./" + path // for package net it would be an abstract socket
	}
	if len(path) > maxSocketPath {
		return listenAddr{}, usagef("%s: the path has %d bytes: a socket path has at most %d, choose a shorter one", given, len(path), maxSocketPath)
	}
	return listenAddr{"unix", path, given}, nil
}

func parseTCPAddr(given, rest string) (listenAddr, error) {
	host, port := "localhost", rest
	if strings.Contains(rest, ":") {
		var err error
		if host, port, err = net.SplitHostPort(rest); err != nil {
			return listenAddr{}, usagef("%s: not a host and a port: write tcp:host:port, an IPv6 address in brackets", given)
		}
	}
	if _, err := strconv.ParseUint(port, 10, 16); err != nil {
		return listenAddr{}, usagef("%s: port %q is not a number up to 65535: write tcp:host:port", given, port)
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
	made   []madeListener // for --listen
	passed []*passedFile  // by systemd, or who behaves like it
}

// madeListener is a socket, or two for the two families of localhost, with what
// its clients are to be told.
type madeListener struct {
	net.Listener
	more   []net.Listener
	at     endpoint
	socket os.FileInfo // of a unix socket made here
}

// passedFile is a socket passed by systemd.
type passedFile struct {
	net.Listener
	name string // FileDescriptorName= of the socket unit
	used bool
}

// all are the sockets to accept from.
func (ls *listeners) all() (all []net.Listener) {
	for _, m := range ls.made {
		all = append(append(all, m.Listener), m.more...)
	}
	for _, p := range ls.passed {
		if p.used {
			all = append(all, p.Listener)
		}
	}
	return all
}

// sockets are the paths of the unix sockets made here.
func (ls *listeners) sockets() (paths []string) {
	for _, m := range ls.made {
		if m.socket != nil {
			paths = append(paths, m.at.addr.String())
		}
	}
	return paths
}

// activated are the sockets that systemd, or whoever behaves like it, has passed.
// The environment that told of them is emptied.
func activated() (*listeners, error) {
	ls := &listeners{}
	for _, f := range activation.Files(true) {
		l, err := fileListener(f)
		if err != nil {
			return ls, fmt.Errorf("%s from systemd is not a listening stream socket: use ListenStream= in the socket unit", f.Name())
		}
		ls.passed = append(ls.passed, &passedFile{Listener: l, name: f.Name()})
	}
	return ls, nil
}

// fileListener is the listening socket f, which it closes.
func fileListener(f *os.File) (net.Listener, error) {
	defer f.Close()
	domain, err := unix.GetsockoptInt(int(f.Fd()), unix.SOL_SOCKET, unix.SO_DOMAIN)
	if err != nil {
		return nil, err
	}
	accepts, err := unix.GetsockoptInt(int(f.Fd()), unix.SOL_SOCKET, unix.SO_ACCEPTCONN)
	if err != nil || accepts == 0 {
		return nil, errors.Join(err, syscall.EINVAL)
	}
	if domain == unix.AF_VSOCK {
		return vsock.FileListener(f)
	}
	return net.FileListener(f)
}

// choosePassed settles which of the passed sockets addrs mean: all of them if there
// is no address at all.
func (ls *listeners) choosePassed(addrs []listenAddr) error {
	asked := slices.ContainsFunc(addrs, func(a listenAddr) bool { return a.network == "systemd" })
	switch {
	case len(ls.passed) == 0 && len(addrs) == 0:
		return usagef("nowhere to listen: give --listen unix:/path or --listen tcp:host:port, or start it by a systemd socket unit")
	case len(ls.passed) > 0 && len(addrs) > 0 && !asked:
		return usagef("%s contradicts the sockets passed by socket activation: leave --listen out, or add --listen systemd", addrs[0].given)
	case len(addrs) == 0:
		addrs = []listenAddr{{network: "systemd"}}
	}
	for _, a := range addrs {
		if a.network != "systemd" {
			continue
		}
		found := false
		for _, p := range ls.passed {
			if a.address == "" || a.address == p.name {
				p.used, found = true, true
			}
		}
		if !found {
			return fmt.Errorf("%s: systemd has passed no such socket: see FileDescriptorName= of the socket unit", a.given)
		}
	}
	return ls.closeUnused()
}

// closeUnused closes what nobody will accept from, so that clients do not wait there.
func (ls *listeners) closeUnused() error {
	var errs []error
	for _, p := range ls.passed {
		if !p.used {
			errs = append(errs, closed(p.Listener))
		}
	}
	return errors.Join(errs...)
}

// listenAll opens all addresses, or none. Unix sockets get mode, and belong to as.
func (ls *listeners) listenAll(ctx context.Context, addrs []listenAddr, mode os.FileMode, as *sandbox.Account) error {
	for _, a := range addrs {
		var m madeListener
		var err error
		switch a.network {
		case "unix":
			m, err = listenUnix(a, mode, as)
		case "tcp":
			m, err = listenTCP(ctx, a)
		case "vsock":
			m, err = listenVsock(a)
		case "fd":
			m, err = listenFD(a)
		case "systemd":
			continue
		}
		if err != nil {
			return errors.Join(err, ls.close())
		}
		ls.made = append(ls.made, m)
	}
	return nil
}

// listenTCP listens on every address of the host, on one port.
func listenTCP(ctx context.Context, a listenAddr) (m madeListener, err error) {
	host, port, _ := net.SplitHostPort(a.address)
	addrs := []string{host}
	if host != "" && net.ParseIP(strings.Split(host, "%")[0]) == nil {
		if addrs, err = addressesOf(ctx, host); err != nil {
			return m, fmt.Errorf("%s: %w: choose another address", a.given, err)
		}
		m.at.host = host
	}
	var config net.ListenConfig
	for _, ip := range addrs {
		l, listenErr := config.Listen(ctx, "tcp", net.JoinHostPort(ip, port))
		switch {
		case listenErr == nil && m.Listener == nil:
			m.Listener, m.at.addr = l, l.Addr()
			port = strconv.Itoa(l.Addr().(*net.TCPAddr).Port) // also for the other family
		case listenErr == nil:
			m.more = append(m.more, l)
		case !errors.Is(listenErr, syscall.EADDRNOTAVAIL) && !errors.Is(listenErr, syscall.EAFNOSUPPORT):
			return m, errors.Join(listenError(a, listenErr), m.close())
		default:
			err = listenErr // a family that this machine does not have
		}
	}
	if m.Listener == nil {
		return m, listenError(a, err)
	}
	return m, nil
}

// addressesOf are all of the host. Localhost has two, whatever the machine's table of
// hosts says (RFC 6761).
func addressesOf(ctx context.Context, host string) ([]string, error) {
	if host == "localhost" {
		return []string{"127.0.0.1", "::1"}, nil
	}
	return net.DefaultResolver.LookupHost(ctx, host)
}

func listenError(a listenAddr, err error) error {
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return fmt.Errorf("%s: the address is in use: stop the other server, or choose another address", a.given)
	case errors.Is(err, fs.ErrPermission) && a.network == "unix":
		return fmt.Errorf("%s: no permission to make a socket there: choose a directory that you may write to", a.given)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%s: no permission to listen there: run as root, or choose a port from 1024 on", a.given)
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%s: its directory does not exist: make it, or choose another path", a.given)
	}
	var op *net.OpError
	if errors.As(err, &op) {
		err = op.Err
	}
	return fmt.Errorf("%s: %w: choose another address", a.given, err)
}

// listenVsock listens for the virtual machines of this host, or for its host.
func listenVsock(a listenAddr) (m madeListener, err error) {
	port, _ := strconv.ParseUint(a.address, 10, 32)
	if port == 0 {
		port = unix.VMADDR_PORT_ANY
	}
	l, err := vsock.ListenContextID(unix.VMADDR_CID_ANY, uint32(port), nil)
	if errors.Is(err, syscall.EAFNOSUPPORT) {
		return m, fmt.Errorf("%s: this kernel has no vsock: load the module vsock, or listen elsewhere", a.given)
	}
	if err != nil {
		return m, listenError(a, err)
	}
	return madeListener{Listener: l, at: endpoint{addr: l.Addr()}}, nil
}

// listenFD takes over a socket that whoever started this process has left open.
func listenFD(a listenAddr) (m madeListener, err error) {
	fd, _ := strconv.Atoi(a.address)
	unix.CloseOnExec(fd)
	l, err := fileListener(os.NewFile(uintptr(fd), a.given))
	if err != nil {
		return m, fmt.Errorf("%s: file descriptor %d is not a listening stream socket: pass one, or leave it out", a.given, fd)
	}
	return madeListener{Listener: l, at: endpoint{addr: l.Addr()}}, nil
}

// refuseTaken refuses addresses that can never be listened on: those of the images
// themselves, and of other files.
func refuseTaken(addrs []listenAddr, exports []exportSpec) error {
	for _, a := range addrs {
		if a.network != "unix" {
			continue
		}
		for _, e := range exports {
			if sameFile(a.address, e.path) {
				return usagef("%s: that is the path of the image: choose another path for the socket", a.given)
			}
		}
		if st, err := os.Lstat(a.address); err == nil && st.Mode().Type() != fs.ModeSocket {
			return fmt.Errorf("%s: %s is there: choose another path", a.given, kind(st.Mode()))
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

// close closes what is still open and removes the sockets made here.
func (ls *listeners) close() error {
	var errs []error
	for _, m := range ls.made {
		errs = append(errs, m.close())
	}
	for _, p := range ls.passed {
		errs = append(errs, closed(p.Listener))
	}
	return errors.Join(errs...)
}

func (m *madeListener) close() error {
	var errs []error
	for _, l := range append(m.more, m.Listener) {
		if l != nil {
			errs = append(errs, closed(l))
		}
	}
	if m.socket != nil {
		errs = append(errs, removeSocket(m.at.addr.String(), m.socket))
	}
	return errors.Join(errs...)
}

func closed(l net.Listener) error {
	if err := l.Close(); !errors.Is(err, net.ErrClosed) && !errors.Is(err, os.ErrClosed) {
		return err
	}
	return nil
}
