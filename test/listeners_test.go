package clienttest

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Goal: libnbd starts a server by itself, through a connection that is its stdin and
// stdout, and through socket activation, and what was written is there.
func TestStartedByLibnbd(t *testing.T) {
	needLibnbd(t)
	img := create(t, tmpfs(t), 32*mib, 4096)
	const script = `
import nbd, sys
def connect(how, *args):
    h = nbd.NBD()
    getattr(h, how)([sys.argv[1], "serve", *args, sys.argv[2]])
    return h
h = connect("connect_command", "--single")
h.pwrite(b"x" * 4096, 8192)
h.shutdown()
h = connect("connect_systemd_socket_activation")
assert h.pread(4096, 8192) == b"x" * 4096
h.shutdown()
`
	run(t, python, "-c", script, bttnbd, img.path)
	img.check(t)
}

// Goal: --single on pipes speaks NBD and not a byte more on stdout, and ends with
// its client.
func TestSingleOnPipes(t *testing.T) {
	img := create(t, tmpfs(t), 32*mib, 4096)
	cmd := exec.Command(bttnbd, "serve", "--single", img.path)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	var out lockedBuffer
	cmd.Stdout = &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	watchdog := time.AfterFunc(patience, func() { cmd.Process.Kill() })
	defer watchdog.Stop()
	in.Write([]byte("\x00\x00\x00\x03IHAVEOPT\x00\x00\x00\x02\x00\x00\x00\x00")) // NBD_OPT_ABORT
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
	want := "NBDMAGICIHAVEOPT\x00\x03" + "\x00\x03\xe8\x89\x04\x55\x65\xa9\x00\x00\x00\x02\x00\x00\x00\x01\x00\x00\x00\x00"
	if out.String() != want {
		t.Errorf("stdout has %q, want %q", out.String(), want)
	}
}

// Goal: --run serves for one command, tells it how to connect as nbdkit does, and
// ends with its status; its socket is gone then.
func TestRunCommand(t *testing.T) {
	need(t, "nbdinfo", "qemu-img")
	img := create(t, tmpfs(t), 32*mib, 4096)
	out := run(t, bttnbd, "serve", "--run", `nbdinfo --size "$uri" && echo "$unixsocket" && echo "[$port$tls]"`, img.path)
	lines := strings.Split(out, "\n")
	if size, err := strconv.Atoi(lines[0]); err != nil || size < 28*mib || lines[2] != "[]" {
		t.Errorf("the command said %q", out)
	}
	if _, err := os.Stat(filepath.Dir(lines[1])); err == nil {
		t.Errorf("%s is left", filepath.Dir(lines[1]))
	}
	run(t, bttnbd, "serve", "--listen", "tcp:0", "--run", `test -n "$port" && test "$nbd" = "nbd://localhost:$port/" && qemu-img info "$nbd"`, img.path)
	for command, want := range map[string]int{"exit 7": 7, "kill -9 $$": 137, "true": 0} {
		if o := try(t, bttnbd, "serve", "--run", command, img.path); o.status != want {
			t.Errorf("%s: exit status %d, want %d\n%s", command, o.status, want, o.stderr)
		}
	}
	img.check(t)
}

// Goal: a signal to the server ends the command too.
func TestRunInterrupted(t *testing.T) {
	img := create(t, tmpfs(t), 32*mib, 4096)
	cmd := exec.Command(bttnbd, "serve", "--run", "echo started; exec sleep 1000", img.path)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	watchdog := time.AfterFunc(patience, func() { cmd.Process.Kill() })
	defer watchdog.Stop()
	out.Read(make([]byte, 1))
	cmd.Process.Signal(syscall.SIGTERM)
	if err := cmd.Wait(); err == nil || cmd.ProcessState.ExitCode() != 128+int(syscall.SIGTERM) {
		t.Errorf("ended with %v", err)
	}
}

// passed starts a server with listening sockets from descriptor 3 on, as systemd
// passes them under these names.
func passed(t *testing.T, names string, files []*os.File, args ...string) *exec.Cmd {
	t.Helper()
	script := `LISTEN_PID=$$ exec "$@"`
	cmd := exec.Command("sh", append([]string{"-c", script, "sh", bttnbd, "serve"}, args...)...)
	cmd.Env = append(os.Environ(), "LISTEN_FDS="+strconv.Itoa(len(files)), "LISTEN_FDNAMES="+names)
	if names == "" {
		cmd.Env = os.Environ()
	}
	cmd.ExtraFiles = files
	cmd.Stderr = new(lockedBuffer)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Signal(syscall.SIGTERM)
		if err := cmd.Wait(); err != nil {
			t.Errorf("%v: %s", err, cmd.Stderr)
		}
	})
	return cmd
}

// listening returns a listening unix socket at path.
func listening(t *testing.T, path string) *os.File {
	t.Helper()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	f, err := l.File()
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	t.Cleanup(func() { f.Close() })
	return f
}

// Goal: of several sockets that systemd passes, --listen systemd:NAME takes those of
// the name; a descriptor can be given by its number as well.
func TestPassedSockets(t *testing.T) {
	need(t, "nbdinfo")
	dir := socketDir(t)
	one, two := filepath.Join(dir, "one"), filepath.Join(dir, "two")
	uri := func(socket string) string { return "nbd+unix:///?socket=" + socket }

	files := []*os.File{listening(t, one), listening(t, two)}
	passed(t, "first:second", files, "--listen", "systemd:second", create(t, tmpfs(t), 32*mib, 4096).path)
	for _, f := range files {
		f.Close()
	}
	exportSize(t, uri(two))
	if o := try(t, "nbdinfo", "--size", uri(one)); o.status == 0 {
		t.Error("the other socket is served as well")
	}

	three := filepath.Join(dir, "three")
	passed(t, "", []*os.File{listening(t, three)}, "--listen", "fd:3", create(t, tmpfs(t), 32*mib, 4096).path)
	exportSize(t, uri(three))
}

// Goal: of many servers that start at once on the place of a dead socket one gets
// it, and is the one that clients reach; the others are refused.
// Method: every server has an image of its own, so that only the socket is fought for.
func TestSocketRace(t *testing.T) {
	need(t, "nbdinfo")
	socket := filepath.Join(socketDir(t), "nbd.sock")
	listening(t, socket).Close() // leaves it dead
	const servers = 8
	var images [servers]image
	for i := range images {
		images[i] = create(t, tmpfs(t), 32*mib, 4096)
	}
	for range 10 {
		var cmds [servers]*exec.Cmd
		got := make(chan bool, servers)
		for i := range cmds {
			cmds[i] = exec.Command(bttnbd, "serve", "--listen", "unix:"+socket, images[i].path)
			go func() { got <- getsSocket(t, cmds[i]) }()
		}
		owners := 0
		for range cmds {
			if <-got {
				owners++
			}
		}
		if owners != 1 {
			t.Errorf("%d servers have the socket", owners)
		}
		exportSize(t, "nbd+unix:///?socket="+socket)
		for _, cmd := range cmds {
			cmd.Process.Kill() // leaves it dead again
			cmd.Wait()
		}
	}
}

// getsSocket starts a server and says whether it is up. If not, it must say why.
func getsSocket(t *testing.T, cmd *exec.Cmd) bool {
	var log lockedBuffer
	cmd.Stderr = &log
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Error(err)
		return false
	}
	if n, _ := out.Read(make([]byte, 1)); n == 1 {
		return true
	}
	cmd.Wait()
	if !strings.Contains(log.String(), "a server is listening there") {
		t.Errorf("refused for another reason: %s", &log)
	}
	return false
}

// Goal: a socket that somebody has bound and not yet listened on is not taken for a
// dead one.
func TestSocketNotYetListening(t *testing.T) {
	socket := filepath.Join(socketDir(t), "nbd.sock")
	fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Close(fd)
	if err := syscall.Bind(fd, &syscall.SockaddrUnix{Name: socket}); err != nil {
		t.Fatal(err)
	}
	o := try(t, bttnbd, "serve", "--listen", "unix:"+socket, create(t, tmpfs(t), 32*mib, 4096).path)
	if o.status != 1 || !strings.Contains(o.stderr, "a server is listening there") {
		t.Errorf("exit status %d: %s", o.status, o.stderr)
	}
}

// Goal: vsock is listened on, or its absence is said.
func TestVsock(t *testing.T) {
	img := create(t, tmpfs(t), 32*mib, 4096)
	o := try(t, bttnbd, "serve", "--listen", "vsock:0", "--run", "echo $uri", img.path)
	switch {
	case o.status == 0 && strings.HasPrefix(o.stdout, "nbd+vsock://1:"):
	case o.status == 1 && strings.Contains(o.stderr, "this kernel has no vsock"):
	default:
		t.Errorf("exit status %d\n%s%s", o.status, o.stdout, o.stderr)
	}
}
