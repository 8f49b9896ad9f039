// Package vmtest puts a real Linux kernel beside the real binaries: the kernel's own
// BTT driver reads what bttnbd made and the other way round, after orderly ends and
// after power cuts; and bttnbd runs in a guest that has what this host lacks, DAX
// and a kernel NBD client. See package vm for the guest.
//
//	main_test.go       builds the binaries
//	guest_test.go      boots guests
//	host_test.go       images and servers on this side
//	*_test.go          one file a subject
//
// scripts/vm-deps installs what the tests need. Without it they are skipped; with
// BTTNBD_REQUIRE_TOOLS set (as scripts/test does) they fail.
package vmtest

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// The binaries: under test, and the tests' own half in the guest.
var bttnbd, bttcheck, guestTool string

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

	build := exec.Command("go", "build", "-o", dir+"/", "../../cmd/bttnbd", "../../cmd/bttcheck", "./guest")
	build.Env = append(os.Environ(), "CGO_ENABLED=0") // the guest has no libraries
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "%v: %v\n%s", build, err, out)
		return 1
	}
	bttnbd, bttcheck = filepath.Join(dir, "bttnbd"), filepath.Join(dir, "bttcheck")
	guestTool = filepath.Join(dir, "guest")
	return m.Run()
}
