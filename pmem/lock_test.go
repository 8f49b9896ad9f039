package pmem

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// The test binary is its own second process: with holdVar set it opens a path,
// says so, and keeps it until its input ends.
const holdVar, holdReadOnlyVar = "PMEM_TEST_HOLD", "PMEM_TEST_HOLD_READ_ONLY"

func TestMain(m *testing.M) {
	path := os.Getenv(holdVar)
	if path == "" {
		os.Exit(m.Run())
	}
	r, err := Open(path, Options{ReadOnly: os.Getenv(holdReadOnlyVar) != ""})
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fmt.Println("holding")
	io.Copy(io.Discard, os.Stdin)
	r.Close()
}

// hold starts a process that has path open; it ends when the test does.
func hold(t *testing.T, path string, readOnly bool) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), holdVar+"="+path)
	if readOnly {
		cmd.Env = append(cmd.Env, holdReadOnlyVar+"=1")
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); errors.Is(err, unix.ENOEXEC) {
		t.Skipf("this machine runs the test binary in an emulator but cannot start it by itself: %v", err)
	} else if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	if line, _ := bufio.NewReader(out).ReadString('\n'); line != "holding\n" {
		t.Fatalf("second process: %q", line)
	}
	return cmd
}

// Goal: a file with an owner in another process is refused, by name and pid, to
// owners and readers; NoLock passes; kill -9 of the owner leaves nothing behind.
func TestOneOwner(t *testing.T) {
	for _, dir := range []string{memoryDir(t), diskDir(t)} {
		path := filepath.Join(dir, "f")
		create(t, path, 4096, Options{}).Close()
		if pid, inUse, err := Owner(path); pid != 0 || inUse || err != nil {
			t.Errorf("Owner of a free file = %d, %v, %v", pid, inUse, err)
		}
		owner := hold(t, path, false)
		for _, o := range []Options{{}, {ReadOnly: true}} {
			wantInUse(t, path, o, owner.Process.Pid)
		}
		if pid, inUse, err := Owner(path); pid != owner.Process.Pid || !inUse || err != nil {
			t.Errorf("Owner = %d, %v, %v, want pid %d", pid, inUse, err, owner.Process.Pid)
		}
		r, err := Open(path, Options{NoLock: true})
		if err != nil {
			t.Fatalf("NoLock: %v", err)
		}
		r.Close()
		owner.Process.Kill()
		owner.Wait()
		r, err = Open(path, Options{})
		if err != nil {
			t.Fatalf("after kill -9 of the owner: %v", err)
		}
		r.Close()
	}
}

func wantInUse(t *testing.T, path string, o Options, pid int) {
	t.Helper()
	r, err := Open(path, o)
	if err == nil {
		r.Close()
		t.Errorf("Open(%+v) of a file in use succeeded", o)
		return
	}
	var inUse *InUseError
	if !errors.As(err, &inUse) || inUse.PID != pid || inUse.Path != path || !errors.Is(err, unix.EBUSY) {
		t.Errorf("Open(%+v) = %v, want in use by pid %d", o, err, pid)
	}
	if want := fmt.Sprintf("%s: in use by pid %d", path, pid); !strings.HasPrefix(err.Error(), want) {
		t.Errorf("text %q, want %q", err, want)
	}
}

// Goal: readers share; an owner must wait for them.
func TestReadersShare(t *testing.T) {
	path := filepath.Join(diskDir(t), "f")
	create(t, path, 4096, Options{}).Close()
	reader := hold(t, path, true)
	r, err := Open(path, Options{ReadOnly: true})
	if err != nil {
		t.Fatalf("second reader: %v", err)
	}
	r.Close()
	wantInUse(t, path, Options{}, reader.Process.Pid)
}

// Goal: a process does not get past its own lock, and Close gives it up.
func TestLockWithinProcess(t *testing.T) {
	path := filepath.Join(diskDir(t), "f")
	r := create(t, path, 4096, Options{})
	wantInUse(t, path, Options{}, os.Getpid())
	r.Close()
	again, err := Open(path, Options{})
	if err != nil {
		t.Fatalf("after Close: %v", err)
	}
	again.Close()
}

// Goal: where the kernel has no other lock, flock still keeps two owners apart.
func TestFlockFallback(t *testing.T) {
	path := filepath.Join(diskDir(t), "f")
	create(t, path, 4096, Options{}).Close()
	var f [2]*os.File
	for i := range f {
		var err error
		if f[i], err = os.OpenFile(path, os.O_RDWR, 0); err != nil {
			t.Fatal(err)
		}
		defer f[i].Close()
	}
	first, second := &file{path: path, fd: int(f[0].Fd())}, &file{path: path, fd: int(f[1].Fd())}
	if err := first.takeFlock(); err != nil {
		t.Fatal(err)
	}
	var inUse *InUseError
	if err := second.takeFlock(); !errors.As(err, &inUse) {
		t.Errorf("second flock = %v", err)
	}
}
