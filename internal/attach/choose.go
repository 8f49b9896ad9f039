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
	if h, found := ublkOf(backend); found {
		return h.dev, false, h.refuse(path, inodeOf(path))
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
			return d, false, nbdHolder(d).refuse(path, inodeOf(path))
		case d.Index == index:
			return d, false, fmt.Errorf("%s is in use: %s: choose another one, or auto", d.Path(), describe(d))
		}
	}
	return wanted, false, nil
}

// mayRevive refuses another file than the one that the device was attached from. A
// copy has the same UUID, and yet not what the filesystem on the device has seen.
func mayRevive(d kernel.Device, path string) error {
	h := nbdHolder(d)
	if !h.known || path == "" || h.Inode == inodeOf(path) {
		return nil
	}
	return h.refuse(path, inodeOf(path))
}

// A holder is a device that has the UUID of an image which is to be attached, and so
// this image behind it, or a copy.
type holder struct {
	dev   kernel.Device
	known bool // what State says
	State
	alive bool // it has a server
}

func nbdHolder(d kernel.Device) holder {
	st, ok := readState(d)
	return holder{dev: d, known: ok, State: st, alive: IsAlive(d)}
}

// refuse says why the image, of which the path and the inode are given, is not attached,
// and what to do. Of another server's export there is no inode.
func (h holder) refuse(path, inode string) error {
	d, free := h.dev.Path(), release(h.dev)
	switch {
	case (!h.known || h.Inode == "" || inode == "") && h.alive:
		return fmt.Errorf("%s is attached from this image, or a copy of it: %s first", d, free)
	case !h.known || h.Inode == "" || inode == "":
		return fmt.Errorf("%s is attached from this image, or a copy of it: %s, or %s first", d, h.revival(path), free)
	case h.Inode != inode && h.alive:
		return fmt.Errorf("%s is a copy of %s (another file with the same UUID), which %s serves: %s first", path, h.Source, d, free)
	case h.Inode != inode:
		return fmt.Errorf("%s is a copy of %s (another file with the same UUID), which %s waits for: attach that one, or %s first", path, h.Source, d, free)
	case h.alive:
		return fmt.Errorf("%s is attached from this very image: %s first", d, free)
	}
	return fmt.Errorf("%s is attached from this very image, and waits for it: %s, or %s first", d, h.revival(path), free)
}

// revival is the command that attaches the image to the device that waits for it.
func (h holder) revival(path string) string {
	if path == "" {
		path = h.Source
	}
	if h.dev.IsUblk() {
		return "bttnbd attach --ublk auto " + path
	}
	return "bttnbd attach auto " + path
}

// release is what a user does to have the device free.
func release(d kernel.Device) string {
	if users, err := d.Users(); err == nil && len(users) > 0 {
		return "unmount it, and bttnbd detach " + d.Path()
	}
	return "bttnbd detach " + d.Path()
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
