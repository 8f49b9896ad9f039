package attach

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/bttnbd/bttnbd/internal/kernel"
)

// Runtime is where a file and a socket for each device are. Only root can do
// anything with a device, so only root has business there. The directories of the
// servers of dist/, which belong to their user, have other names.
const Runtime = "/run/bttnbd-attach"

// MakeRuntime makes that directory, and refuses what somebody else could change.
func MakeRuntime() error { return makePrivate(Runtime) }

// makePrivate makes dir, for its owner alone, unless it is there as it should be.
func makePrivate(dir string) error {
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	st, err := os.Lstat(dir)
	if err != nil {
		return err
	}
	me, owner := os.Geteuid(), int(st.Sys().(*syscall.Stat_t).Uid)
	switch {
	case !st.IsDir():
		return fmt.Errorf("%s: is not a directory (%v): remove it", dir, st.Mode())
	case owner != me && owner == 0:
		return fmt.Errorf("%s: %w", dir, fs.ErrPermission)
	case owner != me:
		return fmt.Errorf("%s: belongs to user %d, who could change what is in it: remove it", dir, owner)
	case st.Mode().Perm()&0o077 != 0:
		return fmt.Errorf("%s: its mode is %04o, which lets others in: chmod 700 %s when you know what is in it", dir, st.Mode().Perm(), dir)
	}
	return nil
}

func runtimeFile(d kernel.Device, suffix string) string {
	return filepath.Join(Runtime, d.Name()+suffix)
}

// State is what a process leaves about the device that it serves, for others and
// for its successor.
type State struct {
	Schema  int       `json:"schema"`
	Source  string    `json:"source"` // path of the image, or URI
	Inode   string    `json:"inode,omitempty"`
	Backend string    `json:"backend"`
	PID     int       `json:"pid"`
	Since   time.Time `json:"since"` // when the device was attached; a revival does not count
}

func (s *Service) writeState() error {
	st := State{Schema: 1, Source: s.o.Path, Backend: s.setup.Backend, PID: os.Getpid(), Since: s.since}
	if s.o.Remote != nil {
		st.Source = s.o.Remote.URI
	} else {
		st.Inode = inodeOf(s.o.Path)
	}
	text, err := json.Marshal(st)
	if err != nil {
		return err
	}
	return replaceFile(runtimeFile(s.dev, ".json"), append(text, '\n'))
}

// replaceFile writes a file in one step: a reader finds the old text or the new one.
// What is made meanwhile has a name that nobody knows, and is nobody's link.
func replaceFile(path string, text []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".*") // O_EXCL, 0600
	if err != nil {
		return err
	}
	_, err = f.Write(text)
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		os.Remove(f.Name())
	}
	return err
}

// readState returns what is known of the device, if it is still about what is
// connected there.
func readState(d kernel.Device) (State, bool) {
	st, ok := loadState(runtimeFile(d, ".json"))
	return st, ok && d.Connected() && st.Backend == d.Backend()
}

func removeState(d kernel.Device) {
	for _, suffix := range []string{".json", ".sock", ".log"} {
		os.Remove(runtimeFile(d, suffix)) // what stays is overwritten by the next one
	}
}

// LogFile is where a process in the background logs.
func LogFile(d kernel.Device) string { return runtimeFile(d, ".log") }

func inode(st fs.FileInfo) string {
	sys := st.Sys().(*syscall.Stat_t)
	if st.Mode()&fs.ModeDevice != 0 {
		return fmt.Sprintf("device %d", sys.Rdev)
	}
	return fmt.Sprintf("%d:%d", sys.Dev, sys.Ino)
}

// A Listed device is a line of list.
type Listed struct {
	Device      string     `json:"device"`
	Size        uint64     `json:"size"` // bytes
	BlockSize   uint32     `json:"block_size"`
	ReadOnly    bool       `json:"read_only"`
	Connections int        `json:"connections"`
	Backend     string     `json:"backend"`         // identifier, "" if it has none
	Source      string     `json:"source"`          // image or URI; "" if somebody else attached it
	PID         int        `json:"pid"`             // who serves or has connected it; 0 if the kernel does not tell
	State       string     `json:"state"`           // alive, dead: waiting for a server; foreign: attached by another program
	Since       *time.Time `json:"since,omitempty"` // unknown of others
	Users       []string   `json:"users"`           // mounts, swap and the like, in words
}

// The states of a device.
const (
	Alive   = "alive"
	Dead    = "dead"
	Foreign = "foreign"
)

// List returns all NBD devices that are connected, and all ublk devices.
func List() ([]Listed, error) {
	devices, err := kernel.Connected()
	if err != nil {
		return nil, err
	}
	list := []Listed{}
	for _, d := range devices {
		l := Listed{
			Device: d.Path(), Size: d.Size(), BlockSize: d.BlockSize(), ReadOnly: d.ReadOnly(), Connections: d.Connections(),
			Backend: d.Backend(), PID: d.PID(), State: Foreign,
		}
		if l.Users, err = d.Users(); err != nil {
			return nil, err
		}
		if l.Users == nil {
			l.Users = []string{}
		}
		if st, ok := readState(d); ok {
			l.Source, l.PID, l.Since, l.State = st.Source, st.PID, &st.Since, Dead
			if IsAlive(d) {
				l.State = Alive
			}
		}
		list = append(list, l)
	}
	others, err := listUblk()
	return append(list, others...), err
}

// FindImage returns the device whose state says that it was attached from the file.
func FindImage(path string) (kernel.Device, State, bool) {
	devices, _ := kernel.Connected() // none found is none found
	for _, d := range devices {
		if st, ok := readState(d); ok && st.Inode != "" && st.Inode == inodeOf(path) {
			return d, st, true
		}
	}
	return kernel.Device{}, State{}, false
}
