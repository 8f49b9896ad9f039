package clienttest

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"testing"
	"time"
)

// patience bounds every wait: far above what anything here takes, far below the
// time limit of the test run.
const patience = 2 * time.Minute

// python is Debian's own: another one on PATH would not find Debian's libnbd.
const python = "/usr/bin/python3"

// need ends the test if a program is not installed: as failed in a run that
// promises all tools, else as skipped.
func need(t *testing.T, programs ...string) {
	t.Helper()
	for _, p := range programs {
		if _, err := exec.LookPath(p); err != nil {
			missing(t, p)
		}
	}
}

// needLibnbd is need for libnbd's Python module.
func needLibnbd(t *testing.T) {
	t.Helper()
	need(t, python)
	if err := exec.Command(python, "-c", "import nbd").Run(); err != nil {
		missing(t, "python3-libnbd")
	}
}

func missing(t *testing.T, what string) {
	t.Helper()
	if os.Getenv("BTTNBD_REQUIRE_TOOLS") != "" {
		t.Fatalf("%s is not installed: run `make deps`", what)
	}
	t.Skipf("NOT TESTED: %s is not installed: run `make deps`", what)
}

// outcome is how a program ended.
type outcome struct {
	status int
	stdout string
	stderr string
}

// try runs a program to its end, whatever its exit status.
func try(t *testing.T, program string, args ...string) outcome {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience) // t's is over when cleanups run
	defer cancel()
	cmd := exec.CommandContext(ctx, program, args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	if ctx.Err() != nil {
		t.Fatalf("%v: still running after %v\n%s%s", cmd, patience, &stdout, &stderr)
	}
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("%v: %v", cmd, err)
	}
	return outcome{cmd.ProcessState.ExitCode(), stdout.String(), stderr.String()}
}

// run runs a program that must exit with 0, and returns its standard output.
func run(t *testing.T, program string, args ...string) string {
	t.Helper()
	o := try(t, program, args...)
	if o.status != 0 {
		t.Fatalf("%s %q: exit status %d\n%s%s", program, args, o.status, o.stdout, o.stderr)
	}
	return o.stdout
}

// eventually waits until a state that no event announces to us is there.
func eventually(t *testing.T, what string, there func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(patience)
	for !there() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("waited %v for %s", patience, what)
		}
	}
}
