package attach

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Goal: root's logs and state go into a directory that nobody else could have put
// there or can change.
func TestPrivateDirectory(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "private")
	for range 2 { // made, and found
		if err := makePrivate(dir); err != nil {
			t.Fatal(err)
		}
	}
	if st, err := os.Lstat(dir); err != nil || st.Mode() != os.ModeDir|0o700 {
		t.Fatalf("%v, %v", st, err)
	}
	refuses := func(dir, want string) {
		t.Helper()
		if err := makePrivate(dir); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
	link := dir + ".link"
	if err := os.Symlink(dir, link); err != nil {
		t.Fatal(err)
	}
	refuses(link, "not a directory")
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	refuses(dir, "its mode is 0755")
	if os.Geteuid() != 0 {
		t.Log("NOT TESTED: the directory of another user: needs root")
		refuses("/root", "permission denied")
		return
	}
	if err := os.Chown(dir, 12345, 12345); err != nil {
		t.Fatal(err)
	}
	refuses(dir, "belongs to user 12345")
}
