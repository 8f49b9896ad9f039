package vmtest

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/bttnbd/bttnbd/internal/vm"
)

// Goal: a guest reports its script's status and output, and one that hangs or panics
// is an error that shows what the guest has said.
func TestGuest(t *testing.T) {
	needGuest(t)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	r, err := (&vm.Machine{}).Run(ctx, "echo out\necho err >&2\nexit 7\n")
	if err != nil {
		t.Fatal(err)
	}
	if r.Status != 7 || r.Output != "out\nerr\n" {
		t.Errorf("status %d, output %q", r.Status, r.Output)
	}

	_, err = (&vm.Machine{}).Run(ctx, "echo c >/proc/sysrq-trigger\n")
	if err == nil || !strings.Contains(err.Error(), "Kernel panic") {
		t.Errorf("a panic: %v", err)
	}

	hung, stop := context.WithCancel(ctx)
	defer stop()
	g, err := (&vm.Machine{}).Start(hung, "echo begun\nsleep 1000\n")
	if err != nil {
		t.Fatal(err)
	}
	if err := g.Await("begun"); err != nil {
		t.Fatal(err)
	}
	stop()
	if _, err = g.Wait(); !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), "begun") {
		t.Errorf("a guest that hangs: %v", err)
	}
}
