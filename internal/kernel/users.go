package kernel

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// Users returns who holds the device or one of its partitions, in words: mounts,
// swap, and devices made of it. A program that merely has it open is not among
// them.
func (d Device) Users() ([]string, error) {
	parts, err := d.parts()
	if err != nil {
		return nil, err
	}
	mounts, err := os.ReadFile(filepath.Join(d.root, "proc/self/mountinfo"))
	if err != nil {
		return nil, err
	}
	swaps, _ := os.ReadFile(filepath.Join(d.root, "proc/swaps")) // a kernel without swap has none
	var users []string
	for _, p := range parts {
		users = append(users, mountsOf(string(mounts), p)...)
		if strings.Contains("\n"+string(swaps), "\n/dev/"+p.name+" ") {
			users = append(users, "/dev/"+p.name+" is swap (end that with swapoff /dev/"+p.name+")")
		}
		holders, _ := filepath.Glob(filepath.Join(p.dir, "holders", "*"))
		for _, h := range holders {
			users = append(users, fmt.Sprintf("/dev/%s is part of /dev/%s", p.name, filepath.Base(h)))
		}
	}
	return users, nil
}

// part is the device itself or one of its partitions.
type part struct {
	name string // in /dev
	dir  string // in sysfs
	dev  string // "major:minor"
}

func (d Device) parts() ([]part, error) {
	dirs, err := filepath.Glob(d.sysfs(d.Name() + "p*"))
	if err != nil {
		return nil, err
	}
	var parts []part
	for _, dir := range append([]string{d.sysfs()}, dirs...) {
		dev, err := os.ReadFile(filepath.Join(dir, "dev"))
		if err != nil {
			return nil, err
		}
		parts = append(parts, part{filepath.Base(dir), dir, strings.TrimSpace(string(dev))})
	}
	return parts, nil
}

// mountsOf finds the mounts of p in a mountinfo, see proc_pid_mountinfo(5):
//
//	36 35 98:0 /root /mnt rw,noatime master:1 - ext4 /dev/root rw,errors=continue
//
// A filesystem of several devices (btrfs) has a number of its own there, and is
// known by the name of its source.
func mountsOf(mountinfo string, p part) (users []string) {
	for line := range strings.Lines(mountinfo) {
		fields := strings.Fields(line)
		if len(fields) < 10 {
			continue
		}
		source := ""
		for i, f := range fields[:len(fields)-2] {
			if f == "-" {
				source = fields[i+2]
			}
		}
		if fields[2] == p.dev || source == "/dev/"+p.name {
			users = append(users, fmt.Sprintf("/dev/%s is mounted on %s", p.name, unescape(fields[4])))
		}
	}
	return users
}

// unescape undoes \040 and its like.
var unescape = strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace

// Claim opens the device so that nobody can mount it meanwhile. The error is
// unix.EBUSY if somebody holds it.
func (d Device) Claim() (*os.File, error) {
	return os.OpenFile(d.Path(), os.O_RDONLY|unix.O_EXCL, 0)
}
