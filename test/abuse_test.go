package clienttest

import (
	"net"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/bttnbd/bttnbd/nbd/nbdtest"
)

// Goal: hostile clients of the real server, over TCP, with TLS and without, never
// disturb one that behaves; when they have gone the server has as many files open as
// before, all writers find a lane, and the image is sound.
func TestAbuse(t *testing.T) {
	need(t, "nbdcopy")
	p := newPKI(t)
	config := p.config(t, p.alice)
	img := create(t, tmpfs(t), 64*mib, 4096)
	s := serveOn(t, "tcp:0", img, "--tls", "on", "--tls-certificates", p.server,
		"--handshake-timeout", "1s", "--write-timeout", "1s", "--max-connections", "300", "--max-memory", "16M")
	address := net.JoinHostPort("localhost", tcpPort(&server{uri: s.uri + "?"}))
	dial := func() (net.Conn, error) { return net.Dial("tcp", address) }

	c, _, err := nbdtest.Dial("tcp", address, "")
	if err != nil {
		t.Fatal(err)
	}
	good := nbdtest.NewNeighbour(c, 40*mib)
	before := openFiles(t, s)
	for _, k := range nbdtest.Attacks {
		good.Lap()
		n := 100
		if testing.Short() {
			n = 20
		}
		k.Run(&nbdtest.Abuse{Dial: dial, TLS: config, Seed: 1}, n)
		t.Logf("%s: good client %+v", k.Name, good.Lap())
	}
	eventually(t, "the server's files to be closed", func() bool { return openFiles(t, s) <= before })
	if err := good.Stop(); err != nil {
		t.Errorf("the good client: %v", err)
	}
	run(t, "nbdcopy", "--connections=8", "--requests=64", randomFile(t, 32*mib), s.uri)
	s.stop(t)
	img.check(t)
}

// openFiles is how many files the server has open.
func openFiles(t *testing.T, s *server) int {
	t.Helper()
	fds, err := os.ReadDir(filepath.Join("/proc", strconv.Itoa(s.cmd.Process.Pid), "fd"))
	if err != nil {
		t.Fatal(err)
	}
	return len(fds)
}
