// Package clienttest puts real NBD clients in front of the real binaries: libnbd's
// tools and its Python module, qemu-img and qemu-io, fio, and through nbdfuse the
// tools of ext4 and xfs. No code of the server is linked in here.
//
//	main_test.go        builds the binaries
//	tools_test.go       runs other programs
//	server_test.go      images and servers
//	client_test.go      a small NBD client of our own, for the crash tests
//	acklog_test.go      writes that remember what was acknowledged
//	*_test.go           one file a client, or a subject
//
// `make deps` installs what the tests need. Without it a test that misses its tool
// is skipped; with BTTNBD_REQUIRE_TOOLS set (as scripts/test does) it fails.
package clienttest

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// The binaries under test.
var bttnbd, bttcheck string

func TestMain(m *testing.M) {
	os.Exit(runTests(m))
}

func runTests(m *testing.M) int {
	dir, err := os.MkdirTemp("", "bttnbd-bin")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)

	// Debian keeps mkfs and its friends where only root's PATH looks.
	os.Setenv("PATH", os.Getenv("PATH")+":/usr/sbin:/sbin")

	args := []string{"build", "-o", dir + "/"}
	if raceEnabled {
		args = append(args, "-race")
	}
	build := exec.Command("go", append(args, "../cmd/bttnbd", "../cmd/bttcheck")...)
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "%v: %v\n%s", build, err, out)
		return 1
	}
	bttnbd, bttcheck = filepath.Join(dir, "bttnbd"), filepath.Join(dir, "bttcheck")
	return m.Run()
}
