package main

import (
	"bytes"
	"maps"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/cpuguy83/go-md2man/v2/md2man"

	"github.com/bttnbd/bttnbd/internal/generated"
)

const top = "../.."

// The pages in docs/man are those that the command tree and the documents make.
func TestPagesAreCurrent(t *testing.T) {
	all, err := pages(top)
	if err != nil {
		t.Fatal(err)
	}
	stale, err := generated.Stale(top+"/docs/man", all)
	if err != nil || len(stale) > 0 {
		t.Errorf("docs/man: %q, %v: run make man", stale, err)
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

// What is code is shown as it was written, what is text has no markup of its own.
func TestEscapeText(t *testing.T) {
	text := "Each *export* has_a [table]\n    not code\n\n    [[export]]\n    a_b = \"<c>\"\n\n    d*e*\n\nand `so` on"
	want := "Each \\*export\\* has\\_a \\[table]\n    not code\n\n    [[export]]\n    a_b = \"<c>\"\n\n    d*e*\n\nand \\`so\\` on"
	if got := escapeText(text); got != want {
		t.Errorf("%q, want %q", got, want)
	}
	page := string(md2man.Render([]byte(escapeText(text))))
	for _, want := range []string{"\n[[export]]\n", "d*e*"} {
		if !strings.Contains(page, want) {
			t.Errorf("without %q:\n%s", want, page)
		}
	}
}

// Nobody who reads a page needs the source: it names commands, and no test case.
func TestPagesForUsers(t *testing.T) {
	all, err := pages(top)
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		"bttnbd.1": `\fBbttnbd\fP \fICOMMAND\fP`, "bttnbd-serve.1": "\n[[export]]\n", "bttnbd-protocol.7": "EXPORT_NAME drops", "bttcheck.8": "PATH",
	} {
		if !strings.Contains(string(all[name]), want) {
			t.Errorf("%s is without %q", name, want)
		}
	}
	for name, text := range all {
		for _, bad := range []string{"handshake/", "extended/", "cases:", "last column", "\\[\\["} {
			if strings.Contains(string(text), bad) {
				t.Errorf("%s has %q", name, bad)
			}
		}
	}
}
