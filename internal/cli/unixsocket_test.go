package cli

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Goal: a socket has exactly its mode, and making it touches nothing else in the
// directory, and leaves nothing there.
func TestSocketTouchesNothingElse(t *testing.T) {
	t.Chdir(t.TempDir())
	bystander := fmt.Sprintf(".bttnbd-%d", os.Getpid())
	if err := os.WriteFile(bystander, []byte("mine"), 0o640); err != nil {
		t.Fatal(err)
	}
	var ls listeners
	if err := ls.listenAll(t.Context(), []listenAddr{{"unix", "s.sock", "unix:s.sock"}}, 0o666, nil); err != nil {
		t.Fatal(err)
	}
	var names []string
	entries, err := os.ReadDir(".")
	for _, e := range entries {
		names = append(names, e.Name())
	}
	if want := []string{bystander, "s.sock"}; err != nil || !slices.Equal(names, want) {
		t.Errorf("in the directory: %q, %v; want %q", names, err, want)
	}
	if st, err := os.Lstat("s.sock"); err != nil || st.Mode() != os.ModeSocket|0o666 {
		t.Errorf("the socket: %v, %v", st, err)
	}
	if err := ls.close(); err != nil {
		t.Error(err)
	}
}

// Goal: writing a pid file touches nothing else in the directory.
func TestPIDFileTouchesNothingElse(t *testing.T) {
	t.Chdir(t.TempDir())
	if err := os.WriteFile("x.pid.new", []byte("mine"), 0o640); err != nil {
		t.Fatal(err)
	}
	f, err := writePIDFile("x.pid", nil)
	if err != nil {
		t.Fatal(err)
	}
	if pid, err := os.ReadFile("x.pid"); err != nil || string(pid) != fmt.Sprintln(os.Getpid()) {
		t.Errorf("%q, %v", pid, err)
	}
	if err := removePIDFile("x.pid", f); err != nil {
		t.Error(err)
	}
	entries, err := os.ReadDir(".")
	if err != nil || len(entries) != 1 || entries[0].Name() != "x.pid.new" {
		t.Errorf("left: %v, %v", entries, err)
	}
}

// Goal: a directory for the socket that others may reach into is not taken.
func TestOwnDirectoryIsOurs(t *testing.T) {
	dir, err := os.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	own, err := ownDirectory(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer own.remove()
	if err := own.Chmod(0o777); err != nil {
		t.Fatal(err)
	}
	if err := own.check(); err == nil {
		t.Error("one that everybody may write to is taken")
	}
	if os.Getuid() == 0 {
		if err := os.Chown(own.name, 12345, 12345); err != nil {
			t.Fatal(err)
		}
		if err := own.Chmod(0o700); err != nil {
			t.Fatal(err)
		}
		if err := own.check(); err == nil {
			t.Error("somebody else's is taken")
		}
	}
}

// Goal: who holds a lock on the directory of a socket keeps no server from starting.
func TestForeignLockIsPassedOver(t *testing.T) {
	t.Chdir(t.TempDir())
	foreign, err := os.Open(".")
	if err != nil {
		t.Fatal(err)
	}
	defer foreign.Close()
	if err := unix.Flock(int(foreign.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	defer func(was time.Duration) { lockPatience = was }(lockPatience)
	lockPatience = 20 * time.Millisecond
	var ls listeners
	if err := ls.listenAll(t.Context(), []listenAddr{{"unix", "s.sock", "unix:s.sock"}}, 0o600, nil); err != nil {
		t.Fatal(err)
	}
	if err := ls.close(); err != nil {
		t.Error(err)
	}
}

// Goal: --foreground comes behind all flags, and what is behind "--" stays there.
func TestInForeground(t *testing.T) {
	for in, want := range map[string]string{
		"attach auto x":                       "attach auto x --foreground",
		"attach -- auto x":                    "attach --foreground -- auto x",
		"attach --foreground=false auto -- x": "attach --foreground=false auto --foreground -- x",
	} {
		if got := strings.Join(inForeground(strings.Fields(in)), " "); got != want {
			t.Errorf("%s: %s, want %s", in, got, want)
		}
	}
}
