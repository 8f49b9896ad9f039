//go:build amd64 || arm64

package pmem

import (
	"os"
	"os/exec"
	"strings"
	"testing"
)

// Goal: the operations of the data path that are single instructions stay inlined.
// They are close to the compiler's budget; a change that goes over it costs a call
// on every map lookup and must be a decision. Where bytes must be swapped they are
// over it.
func TestInlined(t *testing.T) {
	gotool, err := exec.LookPath("go")
	if err != nil {
		t.Skipf("no go command here, nothing to ask: %v", err)
	}
	if _, err := os.Stat("words_unsafe.go"); err != nil {
		t.Skipf("the test binary runs away from its source: %v", err)
	}
	out, err := exec.Command(gotool, "build", "-gcflags=-m", ".").CombinedOutput()
	if err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	for _, f := range []string{
		"(*Region).Load32", "(*Region).Load64",
		"(*Region).Size", "(*Region).Traced", "(*Region).Await", "ArmFaults",
	} {
		if !strings.Contains(string(out), ": can inline "+f+"\n") {
			t.Errorf("%s is no longer inlined", f)
		}
	}
}
