package clienttest

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// units copies the systemd units of dist, with the binary under test in them.
func units(t *testing.T) (dir string) {
	t.Helper()
	dir = t.TempDir()
	found, err := filepath.Glob("../dist/bttnbd*.s*")
	if err != nil || len(found) < 3 {
		t.Fatalf("units: %v, %v", found, err)
	}
	for _, path := range found {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		text = []byte(strings.ReplaceAll(string(text), "/usr/bin/bttnbd", bttnbd))
		if err := os.WriteFile(filepath.Join(dir, filepath.Base(path)), text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// Goal: systemd understands every line of the units, and finds little that they leave
// open: the network, and the root directory, which is read-only.
func TestUnits(t *testing.T) {
	need(t, "systemd-analyze")
	dir := units(t)
	for _, unit := range []string{"bttnbd.service", "bttnbd@x.service", "bttnbd.socket", "bttnbd-attach@srv-disk.btt.service"} {
		o := try(t, "systemd-analyze", "verify", "--man=no", filepath.Join(dir, unit))
		if o.status != 0 || strings.Contains(o.stderr, dir) {
			t.Errorf("verify %s: exit status %d\n%s", unit, o.status, o.stderr)
		}
		if strings.HasSuffix(unit, ".socket") || strings.HasPrefix(unit, "bttnbd-attach") {
			continue // one has no process, the other needs most rights
		}
		const tenths = "20" // of an exposure level up to 10
		unit = strings.Replace(unit, "@x", "@", 1)
		if o := try(t, "systemd-analyze", "security", "--no-pager", "--offline=yes", "--threshold="+tenths, filepath.Join(dir, unit)); o.status != 0 {
			t.Errorf("security %s: exit status %d\n%s%s", unit, o.status, o.stdout, o.stderr)
		}
	}
}

// Goal: no two services share a directory in /run, or have one in the other's: systemd
// removes it with the first that ends, and attach, as root, writes into its own.
func TestUnitsShareNoDirectory(t *testing.T) {
	runtime := regexp.MustCompile(`(?m)^RuntimeDirectory=(.+)$`)
	found, err := filepath.Glob("../dist/*.service")
	if err != nil || len(found) != 3 {
		t.Fatalf("units: %v, %v", found, err)
	}
	owner := map[string]string{}
	for _, path := range found {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		m := runtime.FindSubmatch(text)
		if m == nil {
			t.Fatalf("%s has no RuntimeDirectory=", path)
		}
		dir, _, _ := strings.Cut(string(m[1]), "/")
		if owner[dir] != "" {
			t.Errorf("%s and %s are both in /run/%s", path, owner[dir], dir)
		}
		owner[dir] = path
	}
}

// Goal: the example of a configuration file can be used as it is, and every key that
// stands in it as a comment is a key.
func TestExampleConfig(t *testing.T) {
	const example = "../dist/bttnbd.toml"
	img := create(t, tmpfs(t), 32*mib, 4096)
	s := serve(t, img, "--config", example, "--exports-dir", tmpfs(t))
	s.stop(t)

	text, err := os.ReadFile(example)
	if err != nil {
		t.Fatal(err)
	}
	all := regexp.MustCompile(`(?m)^# (\[|[a-z-]+ = )`).ReplaceAllString(string(text), "$1")
	if all == string(text) {
		t.Fatal("no key was a comment")
	}
	path := filepath.Join(t.TempDir(), "all.toml")
	if err := os.WriteFile(path, []byte(all), 0o600); err != nil {
		t.Fatal(err)
	}
	o := try(t, bttnbd, "serve", "--config", path)
	if o.status == 0 || strings.Contains(o.stderr, path) || !strings.Contains(o.stderr, "/var/lib/bttnbd") && !strings.Contains(o.stderr, "/etc/bttnbd") {
		t.Errorf("want a complaint about a directory that is not there, and none about the file: %d %s", o.status, o.stderr)
	}
}
