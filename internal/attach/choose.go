package attach

import (
	"fmt"
	"os"

	"github.com/bttnbd/bttnbd/internal/kernel"
)

// choose returns the device to attach the backend to, and whether it is one that
// waits for it. With kernel.AnyIndex and none that waits the kernel is to choose.
func choose(index int, backend, path string) (dev kernel.Device, waiting bool, err error) {
	all, err := kernel.Connected()
	if err != nil {
		return dev, false, err
	}
	if d, found := ublkOf(backend); found {
		return d, false, fmt.Errorf("%s is attached from this very image, or a copy of it: give --ublk, or bttnbd detach %s first", d.Path(), d.Path())
	}
	wanted := kernel.DeviceOf(index)
	for _, d := range all {
		same := d.Backend() == backend
		switch {
		case same && IsAlive(d):
			return d, false, fmt.Errorf("%s has this backend, %s, already: %s", d.Path(), backend, describe(d))
		case same && (index == kernel.AnyIndex || index == d.Index):
			return d, true, mayRevive(d, path)
		case same:
			return d, false, fmt.Errorf("%s waits for this very image (or a copy of it): bttnbd attach %s, or bttnbd detach %s first", d.Path(), d.Path(), d.Path())
		case d.Index == index:
			return d, false, fmt.Errorf("%s is in use: %s: choose another one, or auto", d.Path(), describe(d))
		}
	}
	return wanted, false, nil
}

// mayRevive refuses another file than the one that the device was attached from. A
// copy has the same UUID, and yet not what the filesystem on the device has seen.
func mayRevive(d kernel.Device, path string) error {
	known, ok := readState(d)
	if !ok || path == "" || known.Inode == inodeOf(path) {
		return nil
	}
	return fmt.Errorf("%s was attached from %s, which is another file with the same UUID: attach that one, or bttnbd detach %s first", d.Path(), known.Source, d.Path())
}

// describe says what is behind a device.
func describe(d kernel.Device) string {
	if known, ok := readState(d); ok {
		return fmt.Sprintf("%s is attached there (pid %d)", known.Source, known.PID)
	}
	if b := d.Backend(); b != "" {
		return fmt.Sprintf("%s is attached there, by pid %d", b, d.PID())
	}
	return fmt.Sprintf("attached by pid %d", d.PID())
}

// inodeOf is what stays the same when a file is renamed, and differs in a copy.
func inodeOf(path string) string {
	st, err := os.Stat(path)
	if err != nil {
		return ""
	}
	return inode(st)
}
