package clienttest

import (
	"strings"
	"testing"
)

// libnbd runs one check of testdata/libnbd.py; each thing it looks at is a subtest.
func libnbd(t *testing.T, s *server, check string) {
	t.Helper()
	needLibnbd(t)
	o := try(t, python, "testdata/libnbd.py", check, s.uri)
	looked := 0
	for line := range strings.Lines(o.stdout) {
		if what, ok := strings.CutPrefix(line, "PASS "); ok {
			t.Run(strings.TrimSpace(what), func(*testing.T) {})
			looked++
		} else if what, ok := strings.CutPrefix(line, "FAIL "); ok {
			name, why, _ := strings.Cut(what, ": got")
			t.Run(strings.TrimSpace(name), func(t *testing.T) { t.Errorf("got%s", why) })
			looked++
		}
	}
	if looked == 0 || o.status != 0 && !t.Failed() {
		t.Fatalf("libnbd.py %s: exit status %d\n%s%s", check, o.status, o.stdout, o.stderr)
	}
}

// Goal: requests that break the rules get the errno that the protocol names, and
// the connection lives on.
func TestErrors(t *testing.T) {
	onEveryImage(t, 32*mib, func(t *testing.T, img image) {
		s := serve(t, img)
		libnbd(t, s, "errors")
		s.stop(t)
		img.check(t)
	})
}

// Goal: a client that asks for an export that is not there is told so, and may ask
// for another.
func TestUnknownExport(t *testing.T) {
	libnbd(t, serve(t, create(t, tmpfs(t), 32*mib, 4096)), "export_names")
}

// Goal: every writing command is refused on a read-only export.
func TestReadOnlyErrors(t *testing.T) {
	libnbd(t, serve(t, create(t, tmpfs(t), 32*mib, 4096), "--read-only"), "read_only")
}

// Goal: multi-conn is true: what one connection wrote, the others read.
func TestMultiConn(t *testing.T) {
	onEveryImage(t, 32*mib, func(t *testing.T, img image) { libnbd(t, serve(t, img), "multi_conn") })
}

// Goal: many requests in flight on several connections do not mix.
func TestParallel(t *testing.T) {
	onEveryImage(t, 32*mib, func(t *testing.T, img image) { libnbd(t, serve(t, img), "parallel") })
}
