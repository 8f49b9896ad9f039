package vmtest

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"regexp"
	"testing"
	"time"

	"github.com/bttnbd/bttnbd/internal/vm"
)

// patience bounds one run of a guest, and every other wait: far above what it takes,
// also where ten others want each of the processors.
const patience = 10 * time.Minute

// needGuest ends the test if no guest can be started: as failed in a run that
// promises all tools, else as skipped. Guests run beside each other.
func needGuest(t *testing.T) {
	t.Helper()
	_, noKernel := vm.FindKernel("")
	_, noSystemd := vm.FindSystemd()
	err := errors.Join(noKernel, noSystemd)
	for _, tool := range []string{"qemu-system-x86_64", "ndctl", "nbd-client", "nbdcopy", "fio", "mkfs.ext4", "mkfs.xfs", "mkfs.btrfs", "sfdisk", "dmsetup", "zstd", "lsblk"} {
		_, missing := exec.LookPath(tool)
		err = errors.Join(err, missing)
	}
	switch {
	case err == nil:
	case os.Getenv("BTTNBD_REQUIRE_TOOLS") != "" || !(errors.Is(err, fs.ErrNotExist) || errors.Is(err, exec.ErrNotFound)):
		t.Fatal(err)
	default:
		t.Skipf("NOT TESTED: %v: run `make vm-test`", err)
	}
	t.Parallel()
}

// newMachine returns a machine with the binaries, and those files as NVDIMMs.
func newMachine(nvdimms ...vm.NVDIMM) *vm.Machine {
	return &vm.Machine{
		NVDIMMs: nvdimms,
		Files:   map[string]string{"/usr/bin/bttnbd": bttnbd, "/usr/bin/bttcheck": bttcheck, "/usr/bin/guest": guestTool},
	}
}

// prelude makes a script that fails as a whole when one command fails, and says which.
// must_fail is for commands that have to; a mere ! would let them succeed, too.
const prelude = `set -eux
must_fail() { if "$@"; then echo "succeeded: $*"; exit 1; fi; }
`

// boot runs the script in the guest to its end, and fails the test unless the script
// succeeds and the kernel has nothing to complain about. It returns the output.
func boot(t *testing.T, m *vm.Machine, script string) string {
	t.Helper()
	return bootFor(t, patience, m, script)
}

// bootFor is boot for a script that takes longer than others.
func bootFor(t *testing.T, patience time.Duration, m *vm.Machine, script string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	r, err := m.Run(ctx, prelude+script)
	if err != nil {
		t.Fatal(err)
	}
	if r.Status != 0 {
		t.Fatalf("the script failed in the guest: %v", r)
	}
	if line := complaint.FindString(r.Console); line != "" {
		t.Fatalf("the kernel of the guest complains: %s\n%v", line, r)
	}
	return r.Output
}

// complaint finds what a kernel says when something is wrong with it or its disks.
var complaint = regexp.MustCompile(`(?m)^.*(BUG:|WARNING:|Oops|Call Trace|I/O error|EXT4-fs error|nd_pmem btt.*: .*(corrupt|invalid|unknown|error)).*$`)

// start runs the script and returns when it has printed the line.
func start(t *testing.T, m *vm.Machine, script, line string) *vm.Guest {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel) // a power cut, if the test has not made one
	g, err := m.Start(ctx, prelude+script)
	if err == nil {
		err = g.Await(line)
	}
	if err != nil {
		t.Fatal(err)
	}
	return g
}

// await waits until there is true, while the guest runs.
func await(t *testing.T, g *vm.Guest, there func() bool) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !there() {
		select {
		case <-tick.C:
		case <-g.Ended():
			r, err := g.Wait()
			t.Fatalf("the guest ended too early: %v %v", err, r)
		}
	}
}
