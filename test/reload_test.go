package clienttest

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// Goal: while a client works on one export, others are added, changed, replaced and
// removed by SIGHUP; the client sees no error, those of a removed export are ended.
func TestReloadUnderLoad(t *testing.T) {
	need(t, "nbdinfo")
	needLibnbd(t)
	dir := tmpfs(t)
	socket := filepath.Join(socketDir(t), "nbd.sock")
	uri := func(name string) string { return "nbd+unix:///" + name + "?socket=" + socket }
	for _, name := range []string{"busy", "one", "two"} {
		run(t, bttnbd, "create", "--size", "32M", filepath.Join(dir, name+".img"))
	}
	config := filepath.Join(dir, "config.toml")
	configure := func(exports ...string) {
		t.Helper()
		var text strings.Builder
		for _, e := range exports {
			name, more, _ := strings.Cut(e, " ")
			fmt.Fprintf(&text, "[[export]]\nname = %q\npath = %q\n%s\n", name, filepath.Join(dir, name+".img"), more)
		}
		if err := os.WriteFile(config, []byte(text.String()), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	configure("busy", "one")
	s := serveOn(t, "unix:"+socket, image{"busy2=" + create(t, tmpfs(t), 32*mib, 4096).path, 4096}, "--config", config)

	// It writes and reads until its stdin ends, and prints a line when it has begun.
	const worker = `
import nbd, select, sys
h = nbd.NBD()
h.connect_uri(sys.argv[1])
n = 0
while not select.select([sys.stdin], [], [], 0)[0]:
    at, data = n * 8192 % (24 << 20), (b"%8d" % n) * 1024
    h.pwrite(data, at)
    assert h.pread(8192, at) == data
    n += 1
    if n == 1:
        print("begun", flush=True)
h.shutdown()
print(n)
`
	client := exec.Command(python, "-c", worker, uri("busy"))
	stop, err := client.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := client.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var stderr lockedBuffer
	client.Stderr = &stderr
	if err := client.Start(); err != nil {
		t.Fatal(err)
	}
	defer client.Process.Kill()
	stdout.Read(make([]byte, len("begun\n")))

	rounds := 20
	if testing.Short() {
		rounds = 5
	}
	for range rounds {
		configure("busy description = \"changed\"", "two")
		s.reload(t, "reloaded")
		exportSize(t, uri("two"))
		if o := try(t, "nbdinfo", "--size", uri("one")); o.status == 0 {
			t.Error("a removed export is still served")
		}
		configure("busy limit-iops = 100000", "one read-only = true", "two")
		s.reload(t, "reloaded")
		ask(t, uri("one"), yes, "--is", "read-only")
		configure("busy", "one nonsense = 1")
		s.reload(t, "reload failed")
		exportSize(t, uri("two"))
	}
	stop.Close()
	done, _ := io.ReadAll(stdout)
	if err := client.Wait(); err != nil {
		t.Fatalf("the client saw an error: %v\n%s", err, stderr.String())
	}
	t.Logf("%d reloads while a client wrote and read %s times", 3*rounds, strings.TrimSpace(string(done)))
	s.stop(t)
	for _, name := range []string{"busy", "one", "two"} {
		image{filepath.Join(dir, name+".img"), 4096}.check(t)
	}
}

// Goal: a client of an export that is taken away gets its answer, then the end.
func TestReloadRemovesUnderClient(t *testing.T) {
	needLibnbd(t)
	dir := tmpfs(t)
	images := filepath.Join(dir, "images")
	if err := os.Mkdir(images, 0o700); err != nil {
		t.Fatal(err)
	}
	run(t, bttnbd, "create", "--size", "32M", filepath.Join(images, "gone"))
	s := serveOn(t, "unix:"+filepath.Join(socketDir(t), "nbd.sock"), create(t, tmpfs(t), 32*mib, 4096), "--exports-dir", images)
	const script = `
import nbd, os, signal, sys, time
uri, path, pid = sys.argv[1], sys.argv[2], int(sys.argv[3])
gone, stays = nbd.NBD(), nbd.NBD()
gone.connect_uri(uri.replace(":///", ":///gone"))
stays.connect_uri(uri)
gone.pwrite(b"x" * 4096, 0)
os.unlink(path)
os.kill(pid, signal.SIGHUP)
while gone.aio_is_ready(): gone.poll(100)
assert gone.aio_is_closed() or gone.aio_is_dead()
stays.pwrite(b"y" * 4096, 0)
stays.shutdown()
`
	run(t, python, "-c", script, s.uri, filepath.Join(images, "gone"), fmt.Sprint(s.cmd.Process.Pid))
}
