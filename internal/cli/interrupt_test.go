package cli

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/bttnbd/bttnbd/check"
	"github.com/bttnbd/bttnbd/layout"
	"github.com/bttnbd/bttnbd/pmem"
)

// countdown is a context that is interrupted when it has been asked so many times, which
// is each time that the work could stop.
type countdown struct {
	context.Context
	left int
}

// Err is what [context.Cause] returns as well.
func (c *countdown) Err() error {
	if c.left--; c.left < 0 {
		return errInterrupted
	}
	return nil
}

// eachInterrupt runs the work with a signal at each of the moments at which it looks for
// one, and once without.
func eachInterrupt(t *testing.T, work func(ctx context.Context) error, judge func(t *testing.T, err error)) {
	t.Helper()
	const most = 1000
	for n := range most {
		ctx := &countdown{t.Context(), n}
		err := work(ctx)
		judge(t, err)
		if ctx.left >= 0 {
			if n == 0 {
				t.Fatal("it never looks for a signal")
			}
			return
		}
	}
	t.Fatalf("it looks for signals more than %d times", most)
}

// newClean is the path of an image.
func newClean(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk.img")
	o := createOptions{path: path, size: 32 << 20, sectorSize: 4096, format: newChoice("kernel"), progress: newChoice("never")}
	if err := runCreate(t.Context(), io.Discard, io.Discard, o); err != nil {
		t.Fatal(err)
	}
	return path
}

// newDamaged is the path of an image of which two LBAs share a block, and one names none.
func newDamaged(t *testing.T) string {
	t.Helper()
	path := newClean(t)
	r, err := pmem.Open(path, pmem.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	im, err := check.Inspect(r, check.Options{})
	if err != nil {
		t.Fatal(err)
	}
	entries := im.Arenas[0].Offset + im.Arenas[0].Info.MapOff
	r.Store32(entries+4*3, uint32(layout.NormalEntry(7)))
	r.Store32(entries+4*9, uint32(layout.NormalEntry(1<<29)))
	return path
}

func contentsOf(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// Goal: a repair that is interrupted has changed nothing, or says what it has done; run
// again it comes to its end, and the backup brings the image back. A restore that is
// interrupted has put nothing back.
func TestRepairInterrupted(t *testing.T) {
	path := newDamaged(t)
	damaged := contentsOf(t, path)
	o := checkOptions{path: path, progress: newChoice("never")}
	o.repair = true
	changed := 0
	eachInterrupt(t, func(ctx context.Context) error {
		o.backup = filepath.Join(t.TempDir(), "undo")
		return runRepair(ctx, io.Discard, io.Discard, o)
	}, func(t *testing.T, err error) {
		same := bytes.Equal(contentsOf(t, path), damaged)
		line := errorLine(err)
		switch {
		case errors.Is(err, errRepaired):
			if same {
				t.Fatal("nothing is repaired")
			}
		case exitCode(err, true) != fsckCancelled:
			t.Fatalf("%v: exit code %d", err, exitCode(err, true))
		case same && line != "interrupted", !same && !strings.Contains(line, "changes done, but not checked afterwards: run bttcheck "+path):
			t.Fatalf("changed: %v, and it says %q", !same, line)
		case !same:
			changed++
		}
		if same {
			return
		}
		if err := runCheck(t.Context(), io.Discard, io.Discard, checkOptions{path: path, progress: newChoice("never")}); err != nil {
			t.Fatalf("after %q: %v", line, err)
		}
		repaired := contentsOf(t, path)
		restore := checkOptions{path: path, progress: newChoice("never")}
		restore.restore = o.backup
		eachInterrupt(t, func(ctx context.Context) error {
			return runRestore(ctx, io.Discard, io.Discard, restore)
		}, func(t *testing.T, err error) {
			now := contentsOf(t, path)
			switch line := errorLine(err); {
			case err == nil && !bytes.Equal(now, damaged):
				t.Fatal("a restore does not bring the image back")
			case err != nil && (!bytes.Equal(now, repaired) || exitCode(err, true) != fsckCancelled || !strings.HasSuffix(line, "nothing is put back yet")):
				t.Fatalf("restore: %q, exit code %d", line, exitCode(err, true))
			}
		})
	})
	if changed == 0 {
		t.Error("no interrupt came after the changes")
	}
}

// Goal: a check that is interrupted changes nothing, leaves no page, and says so.
func TestCheckInterrupted(t *testing.T) {
	path := newDamaged(t)
	before := contentsOf(t, path)
	o := checkOptions{path: path, progress: newChoice("never")}
	o.html = filepath.Join(t.TempDir(), "report.html")
	eachInterrupt(t, func(ctx context.Context) error {
		return runCheck(ctx, io.Discard, io.Discard, o)
	}, func(t *testing.T, err error) {
		if !bytes.Equal(contentsOf(t, path), before) {
			t.Fatal("the image has changed")
		}
		_, missing := os.Stat(o.html)
		code := exitCode(err, true)
		if drawn := missing == nil; drawn && code != fsckDamage || !drawn && code != fsckCancelled {
			t.Fatalf("%v: exit code %d, drawn %v", err, code, drawn)
		}
	})
}

// Goal: a conversion into a new file that is interrupted leaves none.
func TestConvertInterrupted(t *testing.T) {
	path := newClean(t)
	o := convertOptions{path: path, output: path + ".new", format: newChoice("uefi"), progress: newChoice("never")}
	eachInterrupt(t, func(ctx context.Context) error {
		return runConvert(ctx, io.Discard, io.Discard, o)
	}, func(t *testing.T, err error) {
		there, globErr := filepath.Glob(path + ".*")
		if globErr != nil {
			t.Fatal(globErr)
		}
		if err != nil && (len(there) > 0 || exitCode(err, false) != exitInterrupted) || err == nil && len(there) != 1 {
			t.Fatalf("%v: exit code %d, there is %v", err, exitCode(err, false), there)
		}
	})
}

// Goal: a create over zeros that is interrupted leaves the zeros, or says that there is
// nothing yet and what to do; that does it.
func TestCreateInterrupted(t *testing.T) {
	path := filepath.Join(t.TempDir(), "disk.img")
	const size = 20 << 20
	zeros := make([]byte, size)
	o := createOptions{path: path, sectorSize: 512, format: newChoice("kernel"), progress: newChoice("never")}
	begun := 0
	eachInterrupt(t, func(ctx context.Context) error {
		if err := os.WriteFile(path, zeros, 0o600); err != nil { // with blocks of its own
			t.Fatal(err)
		}
		return runCreate(ctx, io.Discard, io.Discard, o)
	}, func(t *testing.T, err error) {
		if err == nil {
			return
		}
		line := errorLine(err)
		if exitCode(err, false) != exitInterrupted {
			t.Fatalf("%v: exit code %d", err, exitCode(err, false))
		}
		if line == "interrupted" {
			if !bytes.Equal(contentsOf(t, path), zeros) {
				t.Fatal("the file has changed, and nothing is said")
			}
			return
		}
		begun++
		if !strings.HasSuffix(line, "nothing is laid out yet, and what was there is gone: run the same command again with --force") {
			t.Fatalf("it says %q", line)
		}
		again := o
		again.force = true
		if err := runCreate(t.Context(), io.Discard, io.Discard, again); err != nil {
			t.Fatal(err)
		}
		if err := runCheck(t.Context(), io.Discard, io.Discard, checkOptions{path: path, progress: newChoice("never")}); err != nil {
			t.Fatal(err)
		}
	})
	if begun == 0 {
		t.Error("no interrupt came after the beginning")
	}
}

// Goal: what was on the way when a create over old data was stopped is never taken for
// an image.
func TestCreateInterruptedOverOld(t *testing.T) {
	path := newDamaged(t)
	old := contentsOf(t, path)
	o := createOptions{path: path, sectorSize: 512, format: newChoice("kernel"), progress: newChoice("never"), force: true}
	eachInterrupt(t, func(ctx context.Context) error {
		if err := os.WriteFile(path, old, 0o600); err != nil {
			t.Fatal(err)
		}
		return runCreate(ctx, io.Discard, io.Discard, o)
	}, func(t *testing.T, err error) {
		if err == nil || errorLine(err) == "interrupted" {
			return
		}
		if binary.LittleEndian.Uint64(contentsOf(t, path)[layout.Kernel.Start:]) != 0 {
			t.Fatal("there is an info block")
		}
	})
}
