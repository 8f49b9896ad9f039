package clienttest

import (
	"encoding/json"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// exportSize is the size of the default export in bytes, as a client sees it.
func exportSize(t *testing.T, uri string) int64 {
	t.Helper()
	size, err := strconv.ParseInt(strings.TrimSpace(run(t, "nbdinfo", "--size", uri)), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return size
}

// nbdinfo's exit statuses for --can and --is.
const (
	yes = 0
	no  = 2
)

// ask puts questions of one kind, --can or --is, and wants one answer to all.
func ask(t *testing.T, uri string, answer int, kind string, questions ...string) {
	t.Helper()
	for _, q := range questions {
		if o := try(t, "nbdinfo", kind, q, uri); o.status != answer {
			t.Errorf("nbdinfo %s %s: exit status %d, want %d: %s", kind, q, o.status, answer, o.stderr)
		}
	}
}

// Goal: nbdinfo sees whole sectors, all the flags that a BTT can honestly have, and
// the block sizes of the image.
func TestInfo(t *testing.T) {
	need(t, "nbdinfo")
	onEveryImage(t, 64*mib, func(t *testing.T, img image) {
		s := serve(t, img)
		size := exportSize(t, s.uri)
		if size%int64(img.sector) != 0 || size < 60*mib || size > 64*mib {
			t.Errorf("size %d of a 64 MiB image with sectors of %d", size, img.sector)
		}
		ask(t, s.uri, yes, "--can", "connect", "write", "flush", "fua", "zero", "trim", "cache", "multi-conn")
		ask(t, s.uri, no, "--is", "read-only", "rotational", "tls")
		// On sectors of 512 bytes zeros are written like data: see btt.Device.ZerosFast.
		fast := map[int]int{512: no, 4096: yes}[img.sector]
		ask(t, s.uri, fast, "--can", "fast-zero")
		if list := run(t, "nbdinfo", "--list", s.uri); !strings.Contains(list, `export=""`) {
			t.Errorf("--list shows no default export:\n%s", list)
		}
		compareJSON(t, s.uri, img, size)
	})
}

func compareJSON(t *testing.T, uri string, img image, size int64) {
	t.Helper()
	var info struct {
		Exports []struct {
			Name      string `json:"export-name"`
			Size      int64  `json:"export-size"`
			Minimum   int64  `json:"block_size_minimum"`
			Preferred int64  `json:"block_size_preferred"`
		}
	}
	text := run(t, "nbdinfo", "--json", uri)
	if err := json.Unmarshal([]byte(text), &info); err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	if len(info.Exports) != 1 {
		t.Fatalf("want one export:\n%s", text)
	}
	e := info.Exports[0]
	if e.Name != "" || e.Size != size || e.Minimum != 1 || e.Preferred != int64(img.sector) {
		t.Errorf("want the default export, %d bytes, blocks of 1, better of %d:\n%s", size, img.sector, text)
	}
}

// Goal: a read-only server says so, and a writer is refused.
func TestReadOnly(t *testing.T) {
	need(t, "nbdinfo", "qemu-io")
	s := serve(t, create(t, tmpfs(t), 32*mib, 4096), "--read-only")
	ask(t, s.uri, yes, "--is", "read-only")
	if o := try(t, "qemu-io", "-f", "raw", "-c", "write 0 4k", s.uri); o.status == 0 {
		t.Errorf("qemu-io wrote to a read-only export:\n%s", o.stdout)
	}
	run(t, "qemu-io", "-r", "-f", "raw", "-c", "read -P 0 0 4k", s.uri)
}

// Goal: the URI printed for a TCP listener has the port that the system chose.
func TestTCP(t *testing.T) {
	need(t, "nbdinfo")
	img := create(t, tmpfs(t), 32*mib, 4096)
	s := serveOn(t, "tcp:127.0.0.1:0", img)
	if size := exportSize(t, s.uri); size < 28*mib {
		t.Errorf("size %d of a 32 MiB image", size)
	}
}

// Goal: under systemd's socket activation, which libnbd plays here, the server
// takes the socket it is handed.
func TestSocketActivation(t *testing.T) {
	need(t, "nbdinfo")
	img := create(t, tmpfs(t), 32*mib, 4096)
	out := run(t, "nbdinfo", "--size", "--", "[", bttnbd, "serve", img.path, "]")
	if size, err := strconv.Atoi(strings.TrimSpace(out)); err != nil || size < 28*mib {
		t.Errorf("size %q of a 32 MiB image", out)
	}
}

// Goal: several named images are several exports, each with its own content.
func TestNamedExports(t *testing.T) {
	need(t, "nbdinfo", "qemu-io")
	one := create(t, tmpfs(t), 32*mib, 4096)
	two := create(t, tmpfs(t), 48*mib, 512)
	socket := filepath.Join(socketDir(t), "nbd.sock")
	serveOn(t, "unix:"+socket, image{"two=" + two.path, 512}, "one="+one.path)

	uri := func(name string) string { return "nbd+unix:///" + name + "?socket=" + socket }
	run(t, "qemu-io", "-f", "raw", "-c", "write -P 1 0 64k", uri("one"))
	run(t, "qemu-io", "-f", "raw", "-c", "write -P 2 0 64k", uri("two"))
	run(t, "qemu-io", "-f", "raw", "-c", "read -P 1 0 64k", uri("one"))
	list := run(t, "nbdinfo", "--list", uri(""))
	for _, name := range []string{`export="one"`, `export="two"`} {
		if !strings.Contains(list, name) {
			t.Errorf("--list lacks %s:\n%s", name, list)
		}
	}
}
