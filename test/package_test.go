package clienttest

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"debug/elf"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// Goal: what `make dist` makes is the same wherever it is made, runs without anything
// else, says what is in it, and can be installed and removed without a trace.
func TestPackage(t *testing.T) {
	if testing.Short() {
		t.Skip("long, and there are no threads in it")
	}
	need(t, "git", "dpkg-deb", "lintian", "qemu-aarch64-static", "unshare", "man", "systemd-analyze", "nbdinfo")
	source, other := t.TempDir(), filepath.Join(t.TempDir(), "elsewhere", "tree")
	t.Run("Build", func(t *testing.T) {
		t.Run("Here", func(t *testing.T) {
			t.Parallel()
			dist(t, source)
		})
		t.Run("Elsewhere", func(t *testing.T) {
			t.Parallel()
			dist(t, other, "TZ=Pacific/Auckland", "GOAMD64=v3", "LC_ALL=C.UTF-8", "USER=somebody")
		})
	})
	if t.Failed() {
		return
	}
	out := filepath.Join(source, "out")

	t.Run("Reproducible", func(t *testing.T) { reproducible(t, out, filepath.Join(other, "out")) })
	t.Run("Static", func(t *testing.T) {
		for _, arch := range []string{"amd64", "arm64"} {
			for _, program := range []string{"bttnbd", "bttcheck"} {
				static(t, filepath.Join(out, arch, program))
			}
		}
	})
	t.Run("Version", func(t *testing.T) { versions(t, source) })
	t.Run("SBOM", func(t *testing.T) { materials(t, out) })
	t.Run("Archive", func(t *testing.T) { archives(t, out) })
	t.Run("Documents", func(t *testing.T) { documents(t, match(t, out, "*_amd64.deb", 1)[0]) })
	t.Run("Lintian", func(t *testing.T) {
		for _, deb := range match(t, out, "*.deb", 2) {
			o := try(t, "lintian", "--allow-root", "--fail-on", "error,warning", deb)
			if o.status != 0 {
				t.Errorf("%s: exit status %d\n%s%s", filepath.Base(deb), o.status, o.stdout, o.stderr)
			}
		}
	})
	t.Run("Install", func(t *testing.T) {
		if os.Getuid() != 0 {
			t.Skip("NOT TESTED: needs root to mount an overlay and to run dpkg in it")
		}
		t.Log(run(t, "unshare", "--mount", "sh", "testdata/install.sh", t.TempDir(), match(t, out, "*_amd64.deb", 1)[0]))
	})
}

// copySource copies what git has or would have into dir.
func copySource(t *testing.T, dir string) {
	t.Helper()
	for _, name := range strings.Split(strings.TrimRight(run(t, "git", "-C", "..", "ls-files", "-z", "--cached", "--others", "--exclude-standard"), "\x00"), "\x00") {
		text, err := os.ReadFile(filepath.Join("..", name))
		if errors.Is(err, os.ErrNotExist) {
			continue // tracked, and deleted in the work tree
		}
		info, statErr := os.Stat(filepath.Join("..", name))
		to := filepath.Join(dir, name)
		if err := errors.Join(err, statErr, os.MkdirAll(filepath.Dir(to), 0o777)); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(to, text, info.Mode()); err != nil {
			t.Fatal(err)
		}
	}
}

// dist commits a copy of the repository in dir, always as the same commit, and builds
// there what is handed out.
func dist(t *testing.T, dir string, env ...string) {
	t.Helper()
	copySource(t, dir)
	const when = "2021-02-03T04:05:06Z"
	for _, command := range []string{
		"git -c init.defaultBranch=main init -q",
		"git add -A",
		"git -c user.name=a -c user.email=a@example.org -c commit.gpgsign=false commit -q -m all",
		"scripts/dist",
	} {
		args := strings.Fields(command)
		cmd := exec.Command(args[0], args[1:]...)
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "GIT_AUTHOR_DATE="+when, "GIT_COMMITTER_DATE="+when)
		cmd.Env = append(cmd.Env, env...)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", command, err, out)
		} else if args[0] == "scripts/dist" {
			t.Logf("\n%s", out)
		}
	}
}

func reproducible(t *testing.T, a, b string) {
	const sums = "SHA256SUMS"
	ours, err := os.ReadFile(filepath.Join(a, sums))
	theirs, err2 := os.ReadFile(filepath.Join(b, sums))
	if err := errors.Join(err, err2); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(ours, theirs) {
		t.Errorf("two directories, two results:\n%s\n%s", ours, theirs)
	}
	if n := bytes.Count(ours, []byte("\n")); n != 9 { // four binaries, two archives, two packages, the SBOM
		t.Errorf("%d files:\n%s", n, ours)
	}
	check := exec.Command("sha256sum", "--check", "--strict", sums)
	check.Dir = a
	if out, err := check.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

// static demands a program that needs no loader and no library.
func static(t *testing.T, program string) {
	f, err := elf.Open(program)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP || p.Type == elf.PT_DYNAMIC {
			t.Errorf("%s is not static: it has a %v", program, p.Type)
		}
	}
}

// versions asks both binaries what they were built from.
func versions(t *testing.T, source string) {
	commit := strings.TrimSpace(run(t, "git", "-C", source, "rev-parse", "HEAD"))
	out := filepath.Join(source, "out")
	for arch, command := range map[string][]string{
		"amd64": {filepath.Join(out, "amd64/bttnbd")},
		"arm64": {"qemu-aarch64-static", "-cpu", "cortex-a72", filepath.Join(out, "arm64/bttnbd")},
	} {
		var v struct {
			Version, Revision, Arch string
			Modified                bool
		}
		text := run(t, command[0], append(command[1:], "version", "--json")...)
		if err := json.Unmarshal([]byte(text), &v); err != nil {
			t.Fatal(err)
		}
		if v.Revision != commit || v.Modified || v.Arch != arch || !strings.HasSuffix(v.Version, commit[:12]) {
			t.Errorf("%s of commit %s says %s", arch, commit, text)
		}
	}
}

// materials compares the SBOM with what the go command finds in the binaries.
func materials(t *testing.T, out string) {
	text, err := os.ReadFile(match(t, out, "*.cdx.json", 1)[0])
	if err != nil {
		t.Fatal(err)
	}
	var bom struct {
		BOMFormat, SpecVersion string
		Components             []struct{ Name, Version, PURL string }
	}
	if err := json.Unmarshal(text, &bom); err != nil {
		t.Fatal(err)
	}
	var listed []string
	for _, c := range bom.Components {
		if c.PURL != "pkg:golang/"+c.Name+"@"+c.Version {
			t.Errorf("%s %s has the URL %s", c.Name, c.Version, c.PURL)
		}
		if c.Name != "std" {
			listed = append(listed, c.Name+" "+c.Version)
		}
	}
	var linked []string
	for line := range strings.Lines(run(t, "go", "version", "-m", filepath.Join(out, "amd64"), filepath.Join(out, "arm64"))) {
		if f := strings.Fields(line); f[0] == "dep" {
			linked = append(linked, f[1]+" "+f[2])
		}
	}
	slices.Sort(linked)
	linked = slices.Compact(linked)
	if bom.BOMFormat != "CycloneDX" || bom.SpecVersion == "" || len(linked) == 0 || !slices.Equal(listed, linked) {
		t.Errorf("%s %s lists\n%q\nand linked are\n%q", bom.BOMFormat, bom.SpecVersion, listed, linked)
	}
}

// archives looks for what somebody without a package manager needs.
func archives(t *testing.T, out string) {
	for _, name := range match(t, out, "*.tar.gz", 2) {
		f, err := os.Open(name)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		z, err := gzip.NewReader(f)
		if err != nil {
			t.Fatal(err)
		}
		top := strings.TrimSuffix(filepath.Base(name), ".tar.gz")
		missing := []string{"bin/bttnbd", "bin/bttcheck", "LICENSE", "THIRD-PARTY", "README.md", "docs/operations.md",
			"docs/man/bttnbd.1", "dist/bttnbd.service", "completions/bttnbd.bash"}
		for r := tar.NewReader(z); ; {
			h, err := r.Next()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			rel, ok := strings.CutPrefix(path.Clean(h.Name), top)
			if !ok || h.Uid != 0 || h.Gid != 0 || h.Uname+h.Gname != "" || h.Mode&0o022 != 0 {
				t.Errorf("%s: %s of %d:%d %s, mode %o", top, h.Name, h.Uid, h.Gid, h.Uname, h.Mode)
			}
			missing = slices.DeleteFunc(missing, func(m string) bool { return "/"+m == rel })
		}
		if len(missing) > 0 {
			t.Errorf("%s lacks %q", top, missing)
		}
	}
}

// documents looks for the examples of a package, and follows the links in its documents.
func documents(t *testing.T, deb string) {
	dir := t.TempDir()
	run(t, "dpkg-deb", "-x", deb, dir)
	doc := filepath.Join(dir, "usr/share/doc/bttnbd")
	for _, name := range []string{"alerts.yml", "alerts_test.yml", "grafana-dashboard.json", "bttnbd.service"} {
		if _, err := os.Stat(filepath.Join(doc, "examples", name)); err != nil {
			t.Error(err)
		}
	}
	links := 0
	err := filepath.WalkDir(doc, func(name string, _ os.DirEntry, err error) error {
		if err != nil || filepath.Ext(name) != ".md" {
			return err
		}
		text, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		for _, m := range linkTarget.FindAllSubmatch(fenced.ReplaceAll(text, nil), -1) {
			target, _, _ := strings.Cut(string(m[1]), "#")
			if target == "" || strings.Contains(target, "://") {
				continue
			}
			links++
			if _, err := os.Stat(filepath.Join(filepath.Dir(name), target)); err != nil {
				t.Errorf("%s: the link %s leads nowhere", strings.TrimPrefix(name, doc), m[1])
			}
		}
		return nil
	})
	if err != nil || links < 20 {
		t.Errorf("%d links: %v", links, err)
	}
}

// match returns the n files of dir that pattern finds.
func match(t *testing.T, dir, pattern string, n int) []string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(dir, pattern))
	if err != nil || len(found) != n {
		t.Fatalf("%s in %s: %v, %v", pattern, dir, found, err)
	}
	return found
}
