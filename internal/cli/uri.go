package cli

import (
	"net"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/mdlayher/vsock"
	"golang.org/x/sys/unix"
)

// endpoint is how clients reach a listener.
type endpoint struct {
	addr net.Addr
	host string // of addr as the user named it; "" if it was given as an address
}

// uri is the NBD URI of the export name, by doc/uri.md of the NBD project. A server
// on all addresses is given as localhost. tls is for one that insists on TLS.
func (e endpoint) uri(name string, tls bool) string {
	scheme := "nbd"
	if tls {
		scheme = "nbds"
	}
	switch addr := e.addr.(type) {
	case *net.TCPAddr:
		return scheme + "://" + net.JoinHostPort(e.hostOf(addr), e.port()) + "/" + percentEncode(name)
	case *vsock.Addr:
		return scheme + "+vsock://" + strconv.Itoa(unix.VMADDR_CID_LOCAL) + ":" + e.port() + "/" + percentEncode(name)
	}
	return scheme + "+unix:///" + percentEncode(name) + "?socket=" + percentEncode(e.socket())
}

func (e endpoint) hostOf(addr *net.TCPAddr) string {
	switch {
	case e.host != "":
		return e.host
	case addr.IP.IsUnspecified():
		return "localhost"
	case addr.Zone != "":
		return addr.IP.String() + "%25" + addr.Zone // RFC 6874
	}
	return addr.IP.String()
}

// port is "" for a unix socket.
func (e endpoint) port() string {
	switch addr := e.addr.(type) {
	case *net.TCPAddr:
		return strconv.Itoa(addr.Port)
	case *vsock.Addr:
		return strconv.FormatUint(uint64(addr.Port), 10)
	}
	return ""
}

// socket is the absolute path of a unix socket, "" for anything else.
func (e endpoint) socket() string {
	u, ok := e.addr.(*net.UnixAddr)
	if !ok {
		return ""
	}
	if abs, err := filepath.Abs(u.Name); err == nil {
		return abs
	}
	return u.Name
}

// percentEncode leaves only what needs no encoding in a path and in a query. The
// plus sign is not among it: some clients take it for a space.
func percentEncode(s string) string {
	const plain = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._~/"
	const hex = "0123456789ABCDEF"
	var b strings.Builder
	for i := range len(s) {
		if strings.IndexByte(plain, s[i]) >= 0 {
			b.WriteByte(s[i])
		} else {
			b.Write([]byte{'%', hex[s[i]>>4], hex[s[i]&15]})
		}
	}
	return b.String()
}
