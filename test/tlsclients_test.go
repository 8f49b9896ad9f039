package clienttest

import (
	"path/filepath"
	"strings"
	"testing"
)

// serveTLS starts a server that knows its clients by their certificates, and makes
// the URI one with which libnbd's programs connect.
func serveTLS(t *testing.T, p *pki, img image) *server {
	t.Helper()
	s := serveOn(t, "tcp:0", img, "--tls", "require", "--tls-certificates", p.server, "--tls-verify-peer")
	s.uri += "?tls-certificates=" + p.alice
	return s
}

// tcpPort is the port in a server's URI.
func tcpPort(s *server) string {
	return s.uri[strings.LastIndex(s.uri, ":")+1 : strings.Index(s.uri, "/?")]
}

// Goal: data goes both ways over TLS, through nbdcopy with several connections, as
// it does without.
func TestCopyTLS(t *testing.T) {
	need(t, "nbdinfo", "nbdcopy")
	p := newPKI(t)
	onEveryImage(t, 64*mib, func(t *testing.T, img image) {
		s := serveTLS(t, p, img)
		src, dst := randomFile(t, exportSize(t, s.uri)), filepath.Join(t.TempDir(), "back")
		run(t, "nbdcopy", "--connections=4", "--requests=64", "--flush", src, s.uri)
		run(t, "nbdcopy", "--connections=4", "--requests=64", s.uri, dst)
		sameFiles(t, src, dst)
		s.stop(t)
		img.check(t)
	})
}

// Goal: libnbd's Python module finds over TLS what it finds without: errors, chunks
// and block status, many requests on many connections.
func TestLibnbdTLS(t *testing.T) {
	p := newPKI(t)
	img := create(t, tmpfs(t), 32*mib, 4096)
	s := serveTLS(t, p, img)
	for _, check := range []string{"errors", "multi_conn", "parallel"} {
		libnbd(t, s, check)
	}
	if m := run(t, "nbdinfo", "--map", s.uri); !strings.Contains(m, "data") {
		t.Errorf("nbdinfo --map:\n%s", m)
	}
	s.stop(t)
	img.check(t)
}

// Goal: so does qemu.
func TestQemuTLS(t *testing.T) {
	need(t, "qemu-io")
	p := newPKI(t)
	img := create(t, tmpfs(t), 32*mib, 4096)
	s := serveTLS(t, p, img)
	args := []string{"--object", "tls-creds-x509,id=t,endpoint=client,dir=" + p.alice, "--image-opts", "driver=nbd,host=localhost,port=" + tcpPort(s) + ",tls-creds=t"}
	for _, c := range []string{
		"write -P 0x5a 0 8M", "read -P 0x5a 0 8M", "write -z 1M 1M", "read -P 0 1M 1M", "write -P 1 4097 1",
		"read -P 0x5a 4096 1", "read -P 1 4097 1", "aio_write -P 3 9M 1M", "aio_write -P 4 10M 1M", "aio_flush",
		"read -P 3 9M 1M", "read -P 4 10M 1M", "discard 8M 1M", "flush",
	} {
		args = append(args, "-c", c)
	}
	if out := run(t, "qemu-io", args...); strings.Contains(out, "verification failed") || strings.Contains(out, "failed:") {
		t.Errorf("qemu-io:\n%s", out)
	}
	s.stop(t)
	img.check(t)
}

// Goal: nbdkit's nbd plugin, another client of GnuTLS, passes on what we serve
// over TLS, and a client of nbdkit writes through it.
func TestNbdkitTLS(t *testing.T) {
	need(t, "nbdkit", "nbdcopy", "nbdinfo")
	p := newPKI(t)
	img := create(t, tmpfs(t), 32*mib, 4096)
	s := serveTLS(t, p, img)
	socket := filepath.Join(socketDir(t), "nbd.sock")
	startPeer(t, socket, []string{
		"nbdkit", "--foreground", "--unix", socket, "nbd", "shared=true", "hostname=localhost", "port=" + tcpPort(s),
		"tls=require", "tls-certificates=" + p.alice,
	})
	proxy := "nbd+unix:///?socket=" + socket
	src, dst := randomFile(t, exportSize(t, proxy)), filepath.Join(t.TempDir(), "back")
	run(t, "nbdcopy", "--flush", src, proxy)
	run(t, "nbdcopy", s.uri, dst)
	sameFiles(t, src, dst)
}
