package vm

import (
	"fmt"
	"os"
	"path/filepath"
)

// systemdPaths are what a guest needs to boot systemd, mount, and name devices.
var systemdPaths = []string{
	"bin/journalctl", "bin/systemctl", "bin/systemd-escape", "bin/systemd-sysusers", "bin/systemd-tmpfiles", "bin/udevadm",
	"lib/systemd/system", "lib/systemd/system-generators/systemd-fstab-generator",
	"lib/systemd/systemd", "lib/systemd/systemd-fsck", "lib/systemd/systemd-fsckd", "lib/systemd/systemd-journald", "lib/systemd/systemd-modules-load",
	"lib/systemd/systemd-remount-fs", "lib/systemd/systemd-shutdown", "lib/systemd/systemd-udevd",
	"lib/udev/rules.d", "usr/lib/x86_64-linux-gnu/systemd",
}

// FindSystemd returns Debian's systemd and udev, which scripts/vm-deps has unpacked.
// The error is fs.ErrNotExist if it has not yet.
func FindSystemd() (Tree, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return Tree{}, err
	}
	root := filepath.Join(cache, "bttnbd", "systemd")
	if _, err := os.Stat(root); err != nil {
		return Tree{}, fmt.Errorf("no systemd for the guest: %w: run scripts/vm-deps", err)
	}
	return Tree{Root: root, Paths: systemdPaths}, nil
}
