package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bttnbd/bttnbd/layout"
	"github.com/bttnbd/bttnbd/pmem"
)

// Goal: every outcome has the exit code that the help promises.
func TestExitCode(t *testing.T) {
	for _, c := range []struct {
		err          error
		common, fsck int
	}{
		{nil, 0, 0},
		{unix.ENOSPC, 1, 8},
		{usagef("no"), 64, 16},
		{fmt.Errorf("outer: %w", usagef("no")), 64, 16},
		{errInterrupted, 130, 32},
		{errors.Join(context.Canceled, io.EOF), 130, 32},
		{errDamage, 4, 4}, // of check only
	} {
		if got := exitCode(c.err, false); got != c.common {
			t.Errorf("%v: exit code %d, want %d", c.err, got, c.common)
		}
		if got := exitCode(c.err, true); got != c.fsck {
			t.Errorf("%v: exit code of check %d, want %d", c.err, got, c.fsck)
		}
	}
}

// Goal: an error is one line, and damage, which the report has told, is none.
func TestErrorLine(t *testing.T) {
	for _, c := range []struct {
		err  error
		want string
	}{
		{nil, ""},
		{errDamage, ""},
		{errors.Join(errors.New("a"), errors.New("b")), "a; b"},
		{fmt.Errorf("reading: %w", context.Canceled), "interrupted"},
	} {
		if got := errorLine(c.err); got != c.want {
			t.Errorf("%v: line %q, want %q", c.err, got, c.want)
		}
	}
}

// Goal: an interrupted create leaves no file, an interrupted check is cancelled,
// and both say so with their exit codes.
func TestInterrupted(t *testing.T) {
	path := filepath.Join(t.TempDir(), "disk.img")
	o := createOptions{path: path, size: 32 << 20, sectorSize: 4096, format: newChoice("kernel"), progress: newChoice("never")}
	stopped, stop := context.WithCancelCause(t.Context())
	stop(errInterrupted)

	err := runCreate(stopped, io.Discard, io.Discard, o)
	if exitCode(err, false) != exitInterrupted {
		t.Errorf("create: %v, want interrupted", err)
	}
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("create left a file: %v", err)
	}
	if err := runCreate(t.Context(), io.Discard, io.Discard, o); err != nil {
		t.Fatal(err)
	}
	err = runCheck(stopped, io.Discard, io.Discard, checkOptions{path: path, progress: newChoice("never")})
	if exitCode(err, true) != fsckCancelled {
		t.Errorf("check: %v, want interrupted", err)
	}
}

// Goal: only the holes of a file are passed over in the search for data, and every
// extent behind one is searched; to be interrupted is not to find nothing.
func TestFirstByte(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, make([]byte, 4096), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, 32<<20); err != nil {
		t.Fatal(err)
	}
	r, err := pmem.Open(path, pmem.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if at, found, err := firstByte(t.Context(), r, nil); found || err != nil {
		t.Errorf("zeros: found %v at %d, %v", found, at, err)
	}
	for _, want := range []uint64{32<<20 - 8, 20<<20 + 4088, 5 << 20, 0} {
		r.Store64(want, 1)
		if at, found, err := firstByte(t.Context(), r, nil); !found || at != want || err != nil {
			t.Errorf("found %v at %d, %v, want %d", found, at, err, want)
		}
	}
	stopped, stop := context.WithCancelCause(t.Context())
	stop(errInterrupted)
	if _, _, err := firstByte(stopped, r, nil); exitCode(err, false) != exitInterrupted {
		t.Errorf("interrupted: %v", err)
	}
}

// Goal: a plan covers the file with arenas, what will be written lies in order and
// without overlap up to their end, and too small and too large is refused.
func TestPlan(t *testing.T) {
	const arena = layout.MaxArenaSize
	for _, f := range layout.Flavours() {
		for _, c := range []struct {
			size   uint64
			arenas int
			unused uint64
		}{
			{f.Start + layout.MinArenaSize, 1, 0},
			{f.Start + layout.MinArenaSize + 4095, 1, 4095},
			{f.Start + arena, 1, 0},
			{f.Start + arena + layout.MinArenaSize - 1, 1, layout.MinArenaSize - 1},
			{f.Start + arena + layout.MinArenaSize, 2, 0},
			{f.Start + 3*arena + 5<<30 + 1, 4, 1},
		} {
			s := imageSpec{path: "x", sectorSize: 4096, flavour: f}
			p, err := s.plan(c.size)
			if err != nil || len(p.arenas) != c.arenas || p.unused != c.unused {
				t.Errorf("%s, %d bytes: %d arenas, %d unused, %v, want %d, %d", f.Name, c.size, len(p.arenas), p.unused, err, c.arenas, c.unused)
			}
			for _, zeroed := range []bool{true, false} {
				end := uint64(0)
				for _, e := range p.written(f, zeroed) {
					if e.off < end || e.n == 0 {
						t.Errorf("%s, %d bytes: extent at %d overlaps what ends at %d", f.Name, c.size, e.off, end)
					}
					end = e.off + e.n
				}
				if end != c.size-c.unused {
					t.Errorf("%s, %d bytes: the last backup info block ends at %d", f.Name, c.size, end)
				}
			}
		}
		for _, size := range []uint64{0, f.Start + layout.MinArenaSize - 1, 1 << 63} {
			s := imageSpec{path: "x", sectorSize: 4096, flavour: f}
			if _, err := s.plan(size); err == nil {
				t.Errorf("%s, %d bytes: no error", f.Name, size)
			}
		}
	}
}

// Goal: URIs carry any name and any path through the percent-encoding of a URI.
func TestExportURI(t *testing.T) {
	tcp := func(host, zone string) net.Addr { return &net.TCPAddr{IP: net.ParseIP(host), Port: 10809, Zone: zone} }
	unixAddr := func(path string) net.Addr { return &net.UnixAddr{Name: path, Net: "unix"} }
	for _, c := range []struct {
		addr net.Addr
		name string
		want string
	}{
		{tcp("127.0.0.1", ""), "", "nbd://127.0.0.1:10809/"},
		{tcp("::1", ""), "a", "nbd://[::1]:10809/a"},
		{tcp("::", ""), "a", "nbd://localhost:10809/a"},
		{tcp("0.0.0.0", ""), "a", "nbd://localhost:10809/a"},
		{tcp("fe80::1", "eth0"), "a", "nbd://[fe80::1%25eth0]:10809/a"},
		{tcp("127.0.0.1", ""), "a b/ü?#%+&=", "nbd://127.0.0.1:10809/a%20b/%C3%BC%3F%23%25%2B%26%3D"},
		{unixAddr("/run/a.sock"), "", "nbd+unix:///?socket=/run/a.sock"},
		{unixAddr("/run/a b&c=+.sock"), "x", "nbd+unix:///x?socket=/run/a%20b%26c%3D%2B.sock"},
	} {
		if got := (endpoint{addr: c.addr}).uri(c.name, false); got != c.want {
			t.Errorf("%v %q: %s, want %s", c.addr, c.name, got, c.want)
		}
	}
}

// Goal: every spelling of an address comes to what package net listens on.
func TestParseListenAddr(t *testing.T) {
	for _, c := range []struct{ in, network, address string }{
		{"unix:/run/x.sock", "unix", "/run/x.sock"},
		{"unix:x:y", "unix", "x:y"},
		{"unix:@x", "unix", "./@x"},
		{"unix:" + strings.Repeat("x", 107), "unix", strings.Repeat("x", 107)},
		{"tcp:10809", "tcp", "localhost:10809"},
		{"tcp::10809", "tcp", ":10809"},
		{"tcp:0.0.0.0:0", "tcp", "0.0.0.0:0"},
		{"tcp:[::1]:10809", "tcp", "[::1]:10809"},
		{"tcp:host.example:10809", "tcp", "host.example:10809"},
		{"vsock:10809", "vsock", "10809"},
		{"fd:3", "fd", "3"},
		{"systemd", "systemd", ""},
		{"systemd:nbd", "systemd", "nbd"},
	} {
		a, err := parseListenAddr(c.in)
		if err != nil || a.network != c.network || a.address != c.address {
			t.Errorf("%s: %s %s, %v, want %s %s", c.in, a.network, a.address, err, c.network, c.address)
		}
	}
	for _, in := range []string{
		"", "unix", "unix:", "unix:" + strings.Repeat("x", 108), "unix:@" + strings.Repeat("x", 105), "tcp", "tcp:", "tcp:x",
		"tcp:localhost:", "tcp:-1", "tcp:65536", "tcp:a:b:1", "tcp:[::1]", "vsock:", "vsock:x", "fd:", "fd:-1", "10809", "/run/x.sock",
	} {
		if a, err := parseListenAddr(in); exitCode(err, false) != exitUsage {
			t.Errorf("%s: %v, %v, want a usage error", in, a, err)
		}
	}
}

// Goal: [NAME=]PATH is split at the first "=", unless the whole is there.
func TestParseExportArg(t *testing.T) {
	t.Chdir(t.TempDir())
	if err := os.WriteFile("there=b=c", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for in, want := range map[string]exportArg{
		"disk.img":   {"", "disk.img"},
		"a=disk.img": {"a", "disk.img"},
		"a=b=c":      {"a", "b=c"},
		"=disk.img":  {"", "disk.img"},
		"there=b=c":  {"", "there=b=c"},
	} {
		if got := parseExportArg(in); got != want {
			t.Errorf("%s: %v, want %v", in, got, want)
		}
	}
}

// Goal: a typing error finds the flag that was meant, another word finds none.
func TestSimilarFlags(t *testing.T) {
	cmd := newServe()
	for in, want := range map[string]string{
		"lsiten": "--listen", "listn": "--listen", "readonly": "--read-only", "exports": "--exports-dir", "verbose": "", "": "", "x": "",
	} {
		if got := strings.Join(similarFlags(cmd, in), " "); got != want {
			t.Errorf("%s: %q, want %q", in, got, want)
		}
	}
}

// Goal: somebody else's socket that has taken the place of ours stays.
func TestForeignSocketStays(t *testing.T) {
	t.Chdir(t.TempDir())
	a := listenAddr{"unix", "s.sock", "unix:s.sock"}
	var ours, theirs listeners
	if err := ours.listenAll(t.Context(), []listenAddr{a}, 0o600, nil); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename("s.sock", "moved.sock"); err != nil {
		t.Fatal(err)
	}
	if err := theirs.listenAll(t.Context(), []listenAddr{a}, 0o600, nil); err != nil {
		t.Fatal(err)
	}
	if err := ours.close(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat("s.sock"); err != nil {
		t.Errorf("the other server's socket is gone: %v", err)
	}
	if err := theirs.close(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat("s.sock"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("own socket is left: %v", err)
	}
}

// Goal: systemd is told when clients may come, of a reload and when the end begins.
func TestNotify(t *testing.T) {
	t.Chdir(t.TempDir())
	o := createOptions{path: "disk.img", size: 32 << 20, sectorSize: 4096, format: newChoice("kernel")}
	if err := runCreate(t.Context(), io.Discard, io.Discard, o); err != nil {
		t.Fatal(err)
	}
	manager, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: "notify.sock", Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer manager.Close()
	if err := manager.SetReadDeadline(time.Now().Add(30 * time.Second)); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("bttnbd", "serve", "--listen", "unix:s.sock", "--exports-dir", t.TempDir(), "disk.img")
	cmd.Env = append(os.Environ(), "NOTIFY_SOCKET=notify.sock")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Process.Kill()
	expectNotice(t, manager, "READY=1")
	for _, step := range []struct {
		signal  syscall.Signal
		notices []string
	}{
		{unix.SIGHUP, []string{"RELOADING=1\nMONOTONIC_USEC=[0-9]+\n?", "READY=1"}},
		{unix.SIGTERM, []string{"STOPPING=1"}},
	} {
		if err := cmd.Process.Signal(step.signal); err != nil {
			t.Fatal(err)
		}
		for _, notice := range step.notices {
			expectNotice(t, manager, notice)
		}
	}
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
}

func expectNotice(t *testing.T, manager *net.UnixConn, pattern string) {
	t.Helper()
	b := make([]byte, 100)
	n, err := manager.Read(b)
	if matched, _ := regexp.Match("^(?:"+pattern+")$", b[:n]); err != nil || !matched {
		t.Fatalf("told %q, %v, want %q", b[:n], err, pattern)
	}
}
