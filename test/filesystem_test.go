package clienttest

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// fuseFile makes the device a file, through nbdfuse, until the end of the test.
// detach does it before.
func fuseFile(t *testing.T, s *server) (file string, detach func()) {
	t.Helper()
	need(t, "nbdfuse", "fusermount3")
	dir := t.TempDir()
	file, pid := filepath.Join(dir, "disk"), filepath.Join(dir, "pid")
	if err := os.WriteFile(file, nil, 0o600); err != nil { // to mount on
		t.Fatal(err)
	}
	cmd := exec.Command("nbdfuse", "-P", pid, file, s.uri)
	var output lockedBuffer
	cmd.Stdout, cmd.Stderr = &output, &output
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	detached := false
	detach = func() {
		if detached {
			return
		}
		detached = true
		run(t, "fusermount3", "-u", file)
		if err := <-ended; err != nil {
			t.Errorf("nbdfuse: %v\n%s", err, &output)
		}
	}
	t.Cleanup(detach)
	eventually(t, "nbdfuse to be ready", func() bool {
		select {
		case err := <-ended:
			detached = true
			t.Fatalf("nbdfuse ended: %v\n%s", err, &output)
		default:
		}
		info, err := os.Stat(pid)
		return err == nil && info.Size() > 0
	})
	return file, detach
}

// Goal: an ext4 made over NBD takes a file, gives it back, and is clean, for the
// same server and for the next.
func TestExt4(t *testing.T) {
	need(t, "mkfs.ext4", "e2fsck", "debugfs")
	onEveryImage(t, 64*mib, func(t *testing.T, img image) {
		s := serve(t, img)
		disk, detach := fuseFile(t, s)
		src, dst := randomFile(t, 5*mib+123), filepath.Join(t.TempDir(), "back")
		run(t, "mkfs.ext4", "-q", "-F", disk)
		run(t, "debugfs", "-w", "-R", "write "+src+" data", disk)
		run(t, "debugfs", "-R", "dump data "+dst, disk)
		sameFiles(t, src, dst)
		run(t, "e2fsck", "-f", "-n", disk)
		detach()
		s.stop(t)
		img.check(t)

		disk, _ = fuseFile(t, serve(t, img))
		run(t, "e2fsck", "-f", "-n", disk)
		run(t, "debugfs", "-R", "dump data "+dst, disk)
		sameFiles(t, src, dst)
	})
}

// Goal: the kernel's ext4, with its journal, lives on the device. This one needs
// root, to mount.
func TestExt4Mounted(t *testing.T) {
	need(t, "mkfs.ext4", "e2fsck", "mount", "umount")
	if os.Geteuid() != 0 {
		t.Skip("NOT TESTED: only root can mount; run the tests as root")
	}
	onEveryImage(t, 64*mib, func(t *testing.T, img image) {
		s := serve(t, img)
		disk, detach := fuseFile(t, s)
		run(t, "mkfs.ext4", "-q", "-F", disk)
		dir := t.TempDir()
		run(t, "mount", "-o", "loop", disk, dir)
		mounted := true
		umount := func() {
			if mounted {
				mounted = false
				run(t, "umount", dir)
			}
		}
		t.Cleanup(umount)
		src := randomFile(t, 8*mib+321)
		for _, name := range []string{"a", "b", "c"} {
			run(t, "cp", src, filepath.Join(dir, name))
		}
		run(t, "rm", filepath.Join(dir, "b"))
		run(t, "sync", "-f", dir)
		umount()
		run(t, "e2fsck", "-f", "-n", disk)
		run(t, "mount", "-o", "loop,ro", disk, dir)
		mounted = true
		sameFiles(t, src, filepath.Join(dir, "a"))
		sameFiles(t, src, filepath.Join(dir, "c"))
		umount()
		detach()
		s.stop(t)
		img.check(t)
	})
}

// Goal: an xfs made over NBD, with the sector size of the image, is one that
// xfs_repair finds nothing wrong with.
func TestXFS(t *testing.T) {
	need(t, "mkfs.xfs", "xfs_repair", "nbdinfo")
	s := serve(t, create(t, tmpfs(t), 512*mib, 4096))
	disk, _ := fuseFile(t, s)
	run(t, "mkfs.xfs", "-q", "-f", "-s", "size=4096", disk)
	run(t, "xfs_repair", "-n", disk)
}
