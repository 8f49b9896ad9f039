package attach

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"github.com/bttnbd/bttnbd/internal/kernel"
)

// Goal: a device waits for the file that it was attached from, whatever its name is by
// now, as long as the kernel has it; for nothing else, and not for what cannot be read.
func TestWaiting(t *testing.T) {
	dir := t.TempDir()
	image, other := filepath.Join(dir, "a.btt"), filepath.Join(dir, "b.btt")
	for _, path := range []string{image, other} {
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	state := func(inode string) string {
		text, err := json.Marshal(State{Schema: 1, Source: image, Inode: inode, Backend: "uuid"})
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	good := state(inodeOf(image))
	if err := os.Rename(image, image+".moved"); err != nil {
		t.Fatal(err)
	}
	image += ".moved"
	yes := func(_ kernel.Device, st State) bool { return st.Backend == "uuid" }
	for _, c := range []struct {
		name, file, text, path string
		still                  func(kernel.Device, State) bool
		want                   string
	}{
		{"nbd", "nbd3.json", good, image, yes, "/dev/nbd3"},
		{"ublk", "ublkb0.json", good, image, yes, "/dev/ublkb0"},
		{"another file", "nbd3.json", good, other, yes, ""},
		{"not attached any more", "nbd3.json", good, image, func(kernel.Device, State) bool { return false }, ""},
		{"an export of another server", "nbd3.json", state(""), image, yes, ""},
		{"no state", "nbd3.json", "{", image, yes, ""},
		{"no device", "sda.json", good, image, yes, ""},
		{"a log", "nbd3.log", good, image, yes, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			if err := os.WriteFile(filepath.Join(dir, c.file), []byte(c.text), 0o600); err != nil {
				t.Fatal(err)
			}
			is, err := os.Stat(c.path)
			if err != nil {
				t.Fatal(err)
			}
			d, found := waitingIn(dir, is, c.still)
			if found != (c.want != "") || found && d.Path() != c.want {
				t.Errorf("%v, %v", d.Path(), found)
			}
			if _, found := waitingIn(filepath.Join(dir, "none"), is, c.still); found {
				t.Error("found without a directory")
			}
		})
	}
}

// Goal: a state file of an earlier boot, of devices that the kernel does not have now,
// refuses nothing.
func TestWaitingNotAttached(t *testing.T) {
	const nobodys = 1 << 19
	for _, d := range []kernel.Device{kernel.DeviceOf(nobodys), kernel.UblkOf(nobodys)} {
		if attachedStill(d, State{}) {
			t.Errorf("%s is attached", d.Path())
		}
	}
}
