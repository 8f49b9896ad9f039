package main

import (
	"bytes"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
)

const top = "../.."

// The pages in docs/man are those that the command tree and the documents make.
func TestPagesAreCurrent(t *testing.T) {
	all, err := pages(top)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range slices.Sorted(maps.Keys(all)) {
		got, err := os.ReadFile(filepath.Join(top, "docs/man", name))
		if err != nil || !bytes.Equal(got, all[name]) {
			t.Errorf("docs/man/%s is not current (%v): run make man", name, err)
		}
	}
	there, err := os.ReadDir(filepath.Join(top, "docs/man"))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range there {
		if all[e.Name()] == nil {
			t.Errorf("docs/man/%s is the page of nothing: remove it", e.Name())
		}
	}
}

// groff has nothing to complain about in any of them, but for a word that is longer
// than a line.
func TestPagesFormat(t *testing.T) {
	groff, err := exec.LookPath("groff")
	if err != nil {
		if os.Getenv("BTTNBD_REQUIRE_TOOLS") != "" {
			t.Fatal("groff is missing: run make deps")
		}
		t.Skip("NOT TESTED: groff is missing: run make deps")
	}
	all, err := pages(top)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range slices.Sorted(maps.Keys(all)) {
		cmd := exec.Command(groff, "-man", "-t", "-k", "-Tutf8", "-ww", "-Wbreak", "-z")
		cmd.Stdin = bytes.NewReader(all[name])
		if out, err := cmd.CombinedOutput(); err != nil || len(out) > 0 {
			t.Errorf("%s: %v\n%s", name, err, out)
		}
	}
}
