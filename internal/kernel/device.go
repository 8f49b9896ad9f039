package kernel

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// A Device is /dev/nbdN, connected or not, or /dev/ublkbN.
type Device struct {
	Index  int
	root   string // of the filesystem; "/" but in tests
	prefix string // of the name
}

const (
	prefixNBD  = "nbd"
	prefixUblk = "ublkb"
)

// DeviceOf returns the device /dev/nbdN with an index.
func DeviceOf(index int) Device { return DeviceIn("/", index) }

// DeviceIn is [DeviceOf] with another root of the filesystem, for tests.
func DeviceIn(root string, index int) Device { return Device{index, root, prefixNBD} }

// UblkOf returns the device /dev/ublkbN with an index. What connects an NBD device it
// does not have: it is there or not, and the driver knows the rest, see package ublk.
func UblkOf(index int) Device { return Device{index, "/", prefixUblk} }

// IsUblk reports whether the device is a /dev/ublkbN.
func (d Device) IsUblk() bool { return d.prefix == prefixUblk }

// ErrNoDevice is the error of [ParseDevice] for what names neither kind of device.
var ErrNoDevice = errors.New("no NBD device and no ublk device")

// ParseDevice reads "nbd3", "/dev/nbd3", or a symbolic link to that; "ublkb3" likewise.
// What is neither is [ErrNoDevice]; partitions are refused, too.
func ParseDevice(s string) (Device, error) {
	name := s
	if strings.Contains(s, "/") {
		if target, err := filepath.EvalSymlinks(s); err == nil {
			name = target
		}
		if filepath.Dir(name) != "/dev" {
			return Device{}, fmt.Errorf("%s: %w: write /dev/nbd0, or /dev/ublkb0", s, ErrNoDevice)
		}
	}
	prefix := prefixNBD
	number, ok := strings.CutPrefix(filepath.Base(name), prefixNBD)
	if !ok {
		prefix = prefixUblk
		number, ok = strings.CutPrefix(filepath.Base(name), prefixUblk)
	}
	index, err := strconv.ParseUint(number, 10, 20)
	if before, _, part := strings.Cut(number, "p"); ok && part {
		return Device{}, fmt.Errorf("%s: a partition: name the whole device, /dev/%s%s", s, prefix, before)
	}
	if !ok || err != nil {
		return Device{}, fmt.Errorf("%s: %w: write /dev/nbd0, or /dev/ublkb0", s, ErrNoDevice)
	}
	return Device{int(index), "/", prefix}, nil
}

// Connected returns the NBD devices that are connected, in order.
func Connected() ([]Device, error) {
	return devices("/", prefixNBD, Device.Connected)
}

// Ublks returns the ublk devices, in order.
func Ublks() ([]Device, error) { return devices("/", prefixUblk, Device.Exists) }

// devices returns those of a kind that are wanted.
func devices(root, prefix string, wanted func(Device) bool) (devices []Device, err error) {
	dirs, err := filepath.Glob(filepath.Join(root, "sys/block", prefix+"*"))
	if err != nil {
		return nil, err
	}
	for _, dir := range dirs {
		index, err := strconv.Atoi(strings.TrimPrefix(filepath.Base(dir), prefix))
		if d := (Device{index, root, prefix}); err == nil && wanted(d) {
			devices = append(devices, d)
		}
	}
	slices.SortFunc(devices, func(a, b Device) int { return a.Index - b.Index })
	return devices, nil
}

// Name is "nbdN" or "ublkbN".
func (d Device) Name() string { return d.prefix + strconv.Itoa(d.Index) }

// Path is "/dev/nbdN" or "/dev/ublkbN".
func (d Device) Path() string { return "/dev/" + d.Name() }

func (d Device) sysfs(elem ...string) string {
	return filepath.Join(append([]string{d.root, "sys/block", d.Name()}, elem...)...)
}

// attribute is a line of sysfs, "" where there is none.
func (d Device) attribute(elem ...string) string {
	text, err := os.ReadFile(d.sysfs(elem...))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(text))
}

func (d Device) number(elem ...string) uint64 {
	n, _ := strconv.ParseUint(d.attribute(elem...), 10, 64) // 0 for what is none
	return n
}

// Connected reports whether the device has a configuration, with live connections
// or without.
func (d Device) Connected() bool { return d.attribute("pid") != "" }

// Attachment tells this configuration of the device from one that comes after it, with
// the same backend or not: who made it, as the kernel numbers threads. New connections
// do not change it. "" when the device is not connected.
func (d Device) Attachment() string { return d.attribute("pid") }

// Backend is the identifier that the device was connected with, or "".
func (d Device) Backend() string { return d.attribute("backend") }

// Size is in bytes; 0 when the device is not connected.
func (d Device) Size() uint64 { return d.number("size") * 512 }

// BlockSize is the logical block size in bytes.
func (d Device) BlockSize() uint32 { return uint32(d.number("queue", "logical_block_size")) }

// ReadOnly reports whether the device takes no writes.
func (d Device) ReadOnly() bool { return d.number("ro") == 1 }

// Connections is how many connections, live or dead, the device was given: each
// has a hardware queue. Of a ublk device, how many queues it has.
func (d Device) Connections() int {
	queues, err := os.ReadDir(d.sysfs("mq"))
	if err != nil {
		return 0
	}
	return len(queues)
}

// PID is the process that connected the device, dead or alive, or 0. The kernel
// tells a thread's.
func (d Device) PID() int {
	pid := int(d.number("pid"))
	status, err := os.ReadFile(filepath.Join(d.root, "proc", strconv.Itoa(pid), "status"))
	if err != nil {
		return pid
	}
	for line := range strings.Lines(string(status)) {
		if tgid, ok := strings.CutPrefix(line, "Tgid:"); ok {
			if n, err := strconv.Atoi(strings.TrimSpace(tgid)); err == nil {
				return n
			}
		}
	}
	return pid
}

// maxRequest is the most KiB of one request. The kernel's default cuts streams into
// pieces that are all header; more than this buys nothing.
const maxRequest = 4096

// RaiseLimits lets the kernel send requests as large as are worth it.
func (d Device) RaiseLimits() error {
	limit := min(maxRequest, d.number("queue", "max_hw_sectors_kb"))
	if limit <= d.number("queue", "max_sectors_kb") {
		return nil
	}
	return os.WriteFile(d.sysfs("queue", "max_sectors_kb"), strconv.AppendUint(nil, limit, 10), 0)
}

// Announce has udev look at the device again. Linux before 7.1 announces a device just
// before it has its backend identifier, so that udev can miss that
// (drivers/block/nbd.c, nbd_genl_connect).
func (d Device) Announce() error { return os.WriteFile(d.sysfs("uevent"), []byte("change"), 0) }

// pollPause is how often sysfs, which wakes nobody, is looked at.
const pollPause = 5 * time.Millisecond

// poll returns when there is true, or with the cause of the end of ctx.
func poll(ctx context.Context, there func() bool) error {
	tick := time.NewTicker(pollPause)
	defer tick.Stop()
	for !there() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}

// AwaitUsable returns when the device has its size and can be opened. With a
// device manager the node may come late.
func (d Device) AwaitUsable(ctx context.Context, size uint64) error {
	last := errors.New("it has no size")
	err := poll(ctx, func() bool {
		if d.Size() != size {
			return false
		}
		var f *os.File
		if f, last = os.Open(d.Path()); last != nil {
			return false
		}
		f.Close()
		return true
	})
	if err != nil {
		return fmt.Errorf("%s does not become usable: %w: %w", d.Path(), last, err)
	}
	return nil
}

// AwaitGone returns when the device is not connected any more.
func (d Device) AwaitGone(ctx context.Context) error {
	if err := poll(ctx, func() bool { return !d.Connected() }); err != nil {
		return fmt.Errorf("%s: still there, somebody has it open: %w", d.Path(), err)
	}
	return nil
}

// Exists reports whether the kernel has the device; it makes more when asked for.
func (d Device) Exists() bool {
	_, err := os.Stat(d.sysfs())
	return !errors.Is(err, fs.ErrNotExist)
}
