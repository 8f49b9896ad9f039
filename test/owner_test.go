package clienttest

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// Goal: an image has one owner at a time. A second server, a check and a new
// format are refused with the pid of the first, and the image is as it was.
func TestOneOwner(t *testing.T) {
	need(t, "nbdinfo", "qemu-io")
	img := create(t, tmpfs(t), 32*mib, 4096)
	s := serve(t, img)
	qemuIO(t, s.uri, "write -P 0x5a 0 1M")

	socket := "unix:" + filepath.Join(socketDir(t), "second.sock")
	for _, tt := range []struct {
		args   []string
		status int
	}{
		{[]string{"serve", "--listen", socket, img.path}, 1},
		{[]string{"check", img.path}, 8},
		{[]string{"create", "--force", "--size", "32M", img.path}, 1},
	} {
		o := try(t, bttnbd, tt.args...)
		if o.status != tt.status {
			t.Errorf("bttnbd %q: exit status %d, want %d\n%s%s", tt.args, o.status, tt.status, o.stdout, o.stderr)
		}
		if pid := strconv.Itoa(s.cmd.Process.Pid); !strings.Contains(o.stderr, pid) {
			t.Errorf("bttnbd %q does not name the owner %s: %q", tt.args, pid, o.stderr)
		}
	}
	qemuIO(t, s.uri, "read -P 0x5a 0 1M")
	s.stop(t)
	img.check(t)
}

// Goal: a killed server leaves nothing to clean up: the next one takes its image
// and its socket.
func TestNextAfterKill(t *testing.T) {
	need(t, "qemu-io")
	img := create(t, tmpfs(t), 32*mib, 4096)
	first := serve(t, img)
	qemuIO(t, first.uri, "write -P 0x5a 0 1M")
	first.kill(t)

	second := serveOn(t, "unix:"+first.socket, img)
	if second.uri != first.uri {
		t.Errorf("the URI is %s, was %s", second.uri, first.uri)
	}
	qemuIO(t, second.uri, "read -P 0x5a 0 1M")
}

// Goal: a live server's socket is not taken from it.
func TestSocketInUse(t *testing.T) {
	need(t, "nbdinfo")
	first := serve(t, create(t, tmpfs(t), 32*mib, 4096))
	other := create(t, tmpfs(t), 32*mib, 4096)
	o := try(t, bttnbd, "serve", "--listen", "unix:"+first.socket, other.path)
	if o.status != 1 || !strings.Contains(o.stderr, first.socket) {
		t.Errorf("exit status %d, want 1 and the socket named: %q", o.status, o.stderr)
	}
	exportSize(t, first.uri)
}

// Goal: a server that was asked to stop removes its socket.
func TestSocketRemoved(t *testing.T) {
	s := serve(t, create(t, tmpfs(t), 32*mib, 4096))
	s.stop(t)
	if _, err := os.Lstat(s.socket); !os.IsNotExist(err) {
		t.Errorf("socket after the end: %v, want none", err)
	}
}

// Goal: `serve --create` makes the image once, and keeps what is in it after.
func TestServeCreate(t *testing.T) {
	need(t, "qemu-io")
	img := image{filepath.Join(tmpfs(t), "new.btt"), 4096}
	s := serve(t, img, "--create", "32M")
	qemuIO(t, s.uri, "read -P 0 0 1M", "write -P 0x5a 0 1M")
	s.stop(t)
	s = serve(t, img, "--create", "32M")
	qemuIO(t, s.uri, "read -P 0x5a 0 1M")
}
