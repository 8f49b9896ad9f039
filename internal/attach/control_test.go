package attach

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"

	"github.com/bttnbd/bttnbd/internal/kernel"
	"github.com/bttnbd/bttnbd/nbd"
)

// packets are the two ends of a control connection.
func packets(t *testing.T) (a, b *net.UnixConn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var ends [2]*net.UnixConn
	for i, fd := range fds {
		if ends[i], err = unixConn(fd); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { ends[i].Close() })
	}
	return ends[0], ends[1]
}

// serving is a service with a connection, and the kernel's end of that.
func serving(t *testing.T) (*Service, *slowBackend, net.Conn) {
	t.Helper()
	source, b := newSource(t)
	close(b.release)
	c, k := kernelEnd(t, source)
	s := &Service{dev: kernel.DeviceIn(t.TempDir(), 0), source: source, connections: []connection{c}, gone: make(chan struct{})}
	s.o.Log = zerolog.Nop()
	s.describe()
	s.keepAll()
	return s, b, k
}

// taker takes the device of old over with that file, after what between does with it.
func taker(old *Service, c *net.UnixConn, file fs.FileInfo, between func()) (*Service, error) {
	images := old.source.(*imageSource)
	open := func() (*Image, error) {
		between()
		im, err := images.open()
		if err == nil {
			im.File = file
		}
		return im, err
	}
	s := &Service{o: Options{Path: "/images/other", Open: open, Log: zerolog.Nop()}, dev: old.dev, gone: make(chan struct{})}
	m, fds, err := receive(c)
	if err == nil {
		err = s.takeOn(c, m, fds)
	}
	return s, err
}

// goesOn fails the test unless a write is answered, having been executed once.
func goesOn(t *testing.T, b *slowBackend, k net.Conn) {
	t.Helper()
	write(t, k, writeOf(7, 0, make([]byte, 4096)))
	reply(t, k, 7)
	if n := b.writes.Load(); n != 1 {
		t.Errorf("%d writes executed", n)
	}
	write(t, k, commandOf(nbd.NBD_CMD_DISC, 8))
}

// Goal: a hand-over leaves exactly one server: the new one when it opens the image in
// time, and the old one, which goes on by itself, when it does not, or says nothing
// more at all. What the kernel has sent meanwhile is answered, once.
func TestHandOver(t *testing.T) {
	defer func(d time.Duration) { openTimeout = d }(openTimeout)
	for name, tc := range map[string]struct {
		late, silent bool
	}{"in time": {}, "too late": {late: true}, "silent": {silent: true}} {
		t.Run(name, func(t *testing.T) {
			openTimeout = 20 * time.Second
			if tc.late || tc.silent {
				openTimeout = 200 * time.Millisecond
			}
			s, b, k := serving(t)
			ours, theirs := packets(t)
			over, taken := make(chan struct{}), make(chan error, 1)
			if tc.silent {
				taken <- errors.New("not asked for")
			} else {
				go func() {
					_, err := taker(s, theirs, nil, func() {
						if tc.late {
							<-over
						}
					})
					if err == nil {
						err = send(theirs, message{Taken: true})
					}
					taken <- err
				}()
			}
			type result struct {
				handed bool
				err    error
			}
			done := make(chan result, 1)
			go func() {
				handed, err := s.handOver(ours)
				done <- result{handed, err}
			}()
			select {
			case r := <-done:
				if want := !tc.late && !tc.silent; r.err != nil || r.handed != want {
					t.Fatalf("handed over: %v, %v; want %v", r.handed, r.err, want)
				}
			case <-time.After(30 * time.Second):
				t.Fatal("nobody serves the device")
			}
			close(over)
			if err := <-taken; (err == nil) != (!tc.late && !tc.silent) {
				t.Errorf("the new one: %v", err)
			}
			goesOn(t, b, k)
		})
	}
}

// twoFiles are two that os.SameFile tells apart.
func twoFiles(t *testing.T) []fs.FileInfo {
	t.Helper()
	files := make([]fs.FileInfo, 2)
	for i := range files {
		var err error
		if files[i], err = os.Stat(t.TempDir()); err != nil {
			t.Fatal(err)
		}
	}
	return files
}

// Goal: a copy of the image, which has the same UUID, does not take the device over; who
// tries is told which file is served, and that one goes on.
func TestHandOverToACopy(t *testing.T) {
	files := twoFiles(t)
	for name, opens := range map[string]fs.FileInfo{"the same": files[0], "a copy": files[1], "not known": nil} {
		t.Run(name, func(t *testing.T) {
			s, b, k := serving(t)
			s.o.Path = "/images/served"
			source := s.source.(*imageSource)
			source.image.File = files[0]
			ours, theirs := packets(t)
			taken := make(chan error, 1)
			go func() {
				_, err := taker(s, theirs, opens, func() {})
				send(theirs, message{Taken: err == nil})
				taken <- err
			}()
			handed, err := s.handOver(ours)
			if err != nil || handed == (opens == files[1]) {
				t.Errorf("handed over: %v, %v", handed, err)
			}
			if err := <-taken; !handed && (err == nil || !strings.Contains(err.Error(), "/dev/nbd0 is served from /images/served, and /images/other is another file")) {
				t.Errorf("the new one: %v", err)
			}
			goesOn(t, b, k)
		})
	}
}

// Goal: a process of another user gets nothing, whichever end it has.
func TestControlIsForOneUser(t *testing.T) {
	a, b := packets(t)
	if err := errors.Join(sameUser(a), sameUser(b)); err != nil {
		t.Errorf("one's own process: %v", err)
	}
	type ends struct{ a, b *net.UnixConn }
	foreign := make(chan ends)
	go func() {
		runtime.LockOSThread() // and not unlocked: the thread ends with its user
		if _, _, err := unix.RawSyscall(unix.SYS_SETRESUID, ^uintptr(0), 65534, ^uintptr(0)); err != 0 {
			t.Errorf("becoming another user, which takes root: %v", err)
		}
		a, b := packets(t)
		foreign <- ends{a, b}
	}()
	f := <-foreign
	if err := sameUser(f.a); err == nil || !strings.Contains(err.Error(), "user 65534") {
		t.Errorf("another user's process is trusted: %v", err)
	}
	c := &control{takers: make(chan *net.UnixConn, 1)}
	if err := send(f.b, message{Take: true}); err != nil {
		t.Fatal(err)
	}
	c.greet(f.a)
	if len(c.takers) > 0 {
		t.Error("another user may take the device over")
	}
}

// Goal: a file is replaced in one step, and nothing is written through a link that
// somebody has put there.
func TestReplaceFile(t *testing.T) {
	dir := t.TempDir()
	path, victim := filepath.Join(dir, "nbd0.json"), filepath.Join(t.TempDir(), "victim")
	if err := os.WriteFile(victim, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{path, path + ".new"} {
		if err := os.Symlink(victim, name); err != nil {
			t.Fatal(err)
		}
	}
	if err := replaceFile(path, []byte("new")); err != nil {
		t.Fatal(err)
	}
	if text, _ := os.ReadFile(victim); string(text) != "precious" {
		t.Errorf("written through a link: %q", text)
	}
	if text, err := os.ReadFile(path); string(text) != "new" {
		t.Errorf("%q, %v", text, err)
	}
	if st, err := os.Lstat(path); err != nil || st.Mode() != 0o600 {
		t.Errorf("%v, %v", st.Mode(), err)
	}
	if left, _ := os.ReadDir(dir); len(left) != 2 {
		t.Errorf("something is left: %v", left)
	}
}

// Goal: whose device was detached, and attached again to the same export, gives up,
// instead of making connections for a device that is not its own.
func TestDeviceOfASuccessor(t *testing.T) {
	root := t.TempDir()
	sysfs := filepath.Join(root, "sys/block/nbd0")
	attribute := func(name, value string) {
		t.Helper()
		if err := errors.Join(os.MkdirAll(sysfs, 0o700), os.WriteFile(filepath.Join(sysfs, name), []byte(value+"\n"), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	remote, err := ParseURI("nbd+unix:///?socket=" + filepath.Join(root, "nobody"))
	if err != nil {
		t.Fatal(err)
	}
	attribute("backend", remote.URI)
	attribute("pid", "100")
	s := &Service{o: Options{Remote: &remote, Log: zerolog.Nop()}, source: &remoteSource{remote}, connections: make([]connection, 1), gone: make(chan struct{})}
	s.setup.Backend = remote.URI
	s.found(kernel.DeviceIn(root, 0))
	if !s.ours() {
		t.Fatal("not its own device")
	}
	s.keepAll()
	attribute("pid", "200")
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	select {
	case <-s.gone:
	case <-ctx.Done():
		t.Error("it tries for ever")
	}
	s.leaving.Store(true)
	s.keeping.Wait()
}
