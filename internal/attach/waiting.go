package attach

import (
	"encoding/json"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/bttnbd/bttnbd/internal/kernel"
	"github.com/bttnbd/bttnbd/internal/ublk"
)

// Waiting returns the device that was attached from the file, and is there still. Only
// who has the image open for writing, and so for itself alone, is to ask: then nobody
// serves the device, and it waits for this image as it is.
//
// It goes by the state files, which are this package's alone: what other programs have
// connected waits for nobody here. One of an earlier boot, or of a device that is gone,
// counts for nothing, as the kernel has to have the device with the same backend. Where
// there are no state files, or where they may not be read, nobody waits.
func Waiting(is fs.FileInfo) (d kernel.Device, found bool) {
	return waitingIn(Runtime, is, attachedStill)
}

func waitingIn(dir string, is fs.FileInfo, still func(kernel.Device, State) bool) (d kernel.Device, found bool) {
	files, _ := os.ReadDir(dir) // none found is none found
	for _, f := range files {
		name, ok := strings.CutSuffix(f.Name(), ".json")
		if !ok {
			continue
		}
		d, err := kernel.ParseDevice(name)
		if err != nil {
			continue
		}
		st, ok := loadState(filepath.Join(dir, f.Name()))
		if ok && st.Inode != "" && st.Inode == inode(is) && still(d, st) {
			return d, true
		}
	}
	return kernel.Device{}, false
}

// loadState reads a state file.
func loadState(path string) (st State, ok bool) {
	text, err := os.ReadFile(path)
	return st, err == nil && json.Unmarshal(text, &st) == nil
}

// attachedStill reports whether the kernel has the device, and with what st is about.
func attachedStill(d kernel.Device, st State) bool {
	if !d.IsUblk() {
		return d.Connected() && st.Backend == d.Backend()
	}
	if !d.Exists() {
		return false
	}
	c, err := ublk.OpenControl()
	if err != nil {
		return false
	}
	defer c.Close()
	in, err := c.Info(d.Index)
	return err == nil && in.State != ublk.Dead && in.Cookie == cookie(st.Backend)
}

// Abandoned reports whether the NBD device is one of ours that nobody serves, and what
// it was attached from: a path or a URI. Whoever opens it would wait for its next server.
func Abandoned(d kernel.Device) (source string, dead bool) {
	st, ours := readState(d)
	return st.Source, ours && !IsAlive(d)
}
