package clienttest

import (
	"encoding/json"
	"strings"
	"testing"
)

// Goal: nbdinfo and qemu-img see in the map what was written, what was zeroed and
// what was trimmed, and nothing marked as an error.
func TestMap(t *testing.T) {
	need(t, "nbdinfo", "qemu-io", "qemu-img")
	s := serve(t, create(t, tmpfs(t), 32*mib, 4096))
	qemuIO(t, s.uri, "write -P 1 0 2M", "write -z 1M 64k", "discard 1536k 64k")

	type extent struct {
		Offset, Length int64
		Type           int
	}
	var told []extent
	text := run(t, "nbdinfo", "--map", "--json", s.uri)
	if err := json.Unmarshal([]byte(text), &told); err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	want := []extent{{0, mib, 0}, {mib, 64 << 10, 2}, {mib + 64<<10, 448 << 10, 0}, {1536 << 10, 64 << 10, 2}}
	for i, w := range want {
		if i >= len(told) || told[i] != w {
			t.Fatalf("nbdinfo --map: extent %d is not %+v:\n%s", i, w, text)
		}
	}
	if errors := strings.Fields(run(t, "nbdinfo", "--map=x-btt:error", s.uri)); len(errors) != 3 || errors[2] != "0" {
		t.Errorf("nbdinfo --map=x-btt:error: %q, want one extent of type 0", errors)
	}

	var seen []struct {
		Start, Length int64
		Zero          bool
	}
	text = run(t, "qemu-img", "map", "--output=json", "-f", "raw", s.uri)
	if err := json.Unmarshal([]byte(text), &seen); err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	for i, w := range want {
		if i >= len(seen) || seen[i].Start != w.Offset || seen[i].Length != w.Length || seen[i].Zero != (w.Type == 2) {
			t.Fatalf("qemu-img map: extent %d is not %+v:\n%s", i, w, text)
		}
	}
}

// Goal: libnbd gets holes for zeros, one chunk with DF, the states of both
// contexts, and the errno of each mistake.
func TestChunks(t *testing.T) {
	needLibnbd(t)
	img := create(t, tmpfs(t), 32*mib, 4096)
	s := serve(t, img)
	o := try(t, python, "testdata/chunks.py", s.uri)
	for line := range strings.Lines(o.stdout) {
		if what, ok := strings.CutPrefix(line, "FAIL "); ok {
			t.Error(strings.TrimSpace(what))
		}
	}
	if n := strings.Count(o.stdout, "PASS "); n != 15 || o.status != 0 {
		t.Errorf("%d things passed, want 15; exit status %d\n%s%s", n, o.status, o.stdout, o.stderr)
	}
	s.stop(t)
	img.check(t)
}
