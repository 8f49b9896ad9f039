package cli

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/bttnbd/bttnbd/btt"
	"github.com/bttnbd/bttnbd/pmem"
)

// makeImage makes an image of 20 MiB at path.
func makeImage(t *testing.T, path string) {
	t.Helper()
	spec, err := (&createOptions{path: path, size: 20 << 20, sectorSize: 4096, format: choiceFlag{value: "kernel"}}).spec()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := spec.makeNew(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// Goal: once an image is open to grow, another one that gets its path is left alone at
// every step, and the one that is open grows.
func TestGrowRenamed(t *testing.T) {
	dir := t.TempDir()
	path, moved := filepath.Join(dir, "disk.img"), filepath.Join(dir, "moved.img")
	makeImage(t, path)
	another := bytes.Repeat([]byte{0x5a}, 30<<20)
	r, err := openRegion(path, pmem.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if err := os.Rename(path, moved); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, another, 0o600); err != nil {
		t.Fatal(err)
	}
	o := growOptions{path: path, size: 48 << 20, allocate: true, progress: newProgressFlag()}
	if err := o.identify(r); err != nil {
		t.Fatal(err)
	}
	plan, err := btt.PlanGrow(r, uint64(o.size), btt.GrowParams{})
	if err != nil {
		t.Fatal(err)
	}
	if err := o.mayUse(t.Context(), io.Discard, r, &plan); err != nil {
		t.Error(err)
	}
	if err := o.enlarge(r, &plan, uint64(o.size)); err != nil {
		t.Fatal(err)
	}
	done, err := o.grow(t.Context(), io.Discard, r, btt.GrowParams{Zeroed: o.zeroed(&plan)})
	if err != nil || done.Arenas != 2 || done.Size != uint64(o.size) {
		t.Errorf("%v, %+v", err, done)
	}
	if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, another) {
		t.Errorf("%v; the file that has the path now was changed", err)
	}
	if st, err := os.Stat(moved); err != nil || st.Size() != int64(o.size) {
		t.Errorf("%v, %d bytes", err, st.Size())
	}
}

// Goal: an image that is not the one that is attached does not grow in its place.
func TestGrowNotTheAttached(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "disk.img")
	makeImage(t, path)
	attached, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path, filepath.Join(dir, "moved.img")); err != nil {
		t.Fatal(err)
	}
	makeImage(t, path)
	o := growOptions{path: path, size: 48 << 20, attached: attached, progress: newProgressFlag()}
	if _, err := o.offline(t.Context(), io.Discard); err == nil || !strings.Contains(err.Error(), "another file") {
		t.Errorf("got %v", err)
	}
	if st, err := os.Stat(path); err != nil || st.Size() != 20<<20 {
		t.Errorf("%v, %d bytes", err, st.Size())
	}
}

// Goal: the map of new arenas is written unless what is there is known to be zeros: on
// a device it is where it was searched, and not where something is overwritten.
func TestGrowZeroed(t *testing.T) {
	for _, c := range []struct{ regular, force, interrupted, want bool }{
		{want: true}, {force: true}, {interrupted: true}, {force: true, interrupted: true},
		{regular: true, want: true}, {regular: true, force: true, want: true}, {regular: true, interrupted: true, want: true},
	} {
		o := growOptions{regular: c.regular, force: c.force}
		if got := o.zeroed(&btt.Growth{Interrupted: c.interrupted}); got != c.want {
			t.Errorf("%+v: %v", c, got)
		}
	}
}
