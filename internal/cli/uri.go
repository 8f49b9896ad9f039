package cli

import (
	"net"
	"path/filepath"
	"strconv"
	"strings"
)

// exportURI is the NBD URI of the export name at addr, by doc/uri.md of the NBD
// project. A server on all addresses is given as localhost.
func exportURI(addr net.Addr, name string) string {
	if tcp, ok := addr.(*net.TCPAddr); ok {
		host := "localhost"
		if !tcp.IP.IsUnspecified() {
			host = tcp.IP.String()
			if tcp.Zone != "" {
				host += "%25" + tcp.Zone // RFC 6874
			}
		}
		return "nbd://" + net.JoinHostPort(host, strconv.Itoa(tcp.Port)) + "/" + percentEncode(name)
	}
	socket := addr.String()
	if abs, err := filepath.Abs(socket); err == nil {
		socket = abs
	}
	return "nbd+unix:///" + percentEncode(name) + "?socket=" + percentEncode(socket)
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
