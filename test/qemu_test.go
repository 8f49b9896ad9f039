package clienttest

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"
)

// qemuIO runs qemu-io commands in one session. Its exit status tells of failed
// requests; a pattern that differs is told on standard output as well.
func qemuIO(t *testing.T, uri string, commands ...string) {
	t.Helper()
	args := []string{"-f", "raw"}
	for _, c := range commands {
		args = append(args, "-c", c)
	}
	out := run(t, "qemu-io", append(args, uri)...)
	if strings.Contains(out, "verification failed") || strings.Contains(out, "failed:") {
		t.Fatalf("qemu-io %q:\n%s", commands, out)
	}
}

// Goal: every command of qemu-io does what it says, in one session and for the next.
func TestQemuIO(t *testing.T) {
	need(t, "qemu-io")
	onEveryImage(t, 64*mib, func(t *testing.T, img image) {
		s := serve(t, img)
		qemuIO(t, s.uri,
			"read -P 0 0 1M", // never written: zeros
			"write -P 0x5a 0 64k", "read -P 0x5a 0 64k",
			"write -f -P 0x11 64k 4k", "read -P 0x11 64k 4k", // force unit access
			"write -P 0xff 128k 512k",
			"write -z 128k 64k", "read -P 0 128k 64k",
			"write -z -u 256k 64k", "read -P 0 256k 64k", // may unmap
			"write -z -f 384k 64k", "read -P 0 384k 64k",
			"read -P 0xff 192k 64k", "read -P 0xff 320k 64k", "read -P 0xff 448k 192k",
			"discard 448k 64k", "read -P 0xff 512k 128k",
			"flush",
			"aio_write -P 0x33 1M 1M", "aio_write -P 0x44 2M 1M", "aio_flush",
			"read -P 0x33 1M 1M", "read -P 0x44 2M 1M",
		)
		s.stop(t)
		img.check(t)

		s = serve(t, img)
		qemuIO(t, s.uri, "read -P 0x5a 0 64k", "read -P 0x11 64k 4k", "read -P 0 256k 64k", "read -P 0x44 2M 1M")
	})
}

// Goal: requests that no sector boundary fits are served, and leave their
// neighbours in the same sector alone.
func TestQemuIOUnaligned(t *testing.T) {
	need(t, "qemu-io")
	onEveryImage(t, 32*mib, func(t *testing.T, img image) {
		s := serve(t, img)
		qemuIO(t, s.uri,
			"write -P 0xaa 0 16k",
			"write -P 0x77 1 511", "read -P 0xaa 0 1", "read -P 0x77 1 511", "read -P 0xaa 512 15872",
			"write -P 0x66 4095 2", "read -P 0xaa 4094 1", "read -P 0x66 4095 2", "read -P 0xaa 4097 1",
			"write -P 0x55 5000 7001", "read -P 0xaa 4999 1", "read -P 0x55 5000 7001", "read -P 0xaa 12001 4383",
			"write -z 8191 2", "read -P 0x55 8190 1", "read -P 0 8191 2", "read -P 0x55 8193 1",
			"write -z -u 10001 513", "read -P 0x55 10000 1", "read -P 0 10001 513", "read -P 0x55 10514 1",
			"discard 1025 100", "read -P 0xaa 512 513", "read -P 0xaa 1125 2970", // a hint; not beyond its range
		)
		s.stop(t)
		img.check(t)
	})
}

// Goal: the last bytes of the device can be written and read, and nothing past them.
func TestQemuIOEnd(t *testing.T) {
	need(t, "nbdinfo", "qemu-io")
	s := serve(t, create(t, tmpfs(t), 32*mib, 4096))
	end := exportSize(t, s.uri)
	qemuIO(t, s.uri, fmt.Sprintf("write -P 9 %d 5000", end-5000), fmt.Sprintf("read -P 9 %d 5000", end-5000))
	for _, op := range []string{"read", "write", "write -z", "discard"} {
		if o := try(t, "qemu-io", "-f", "raw", "-c", fmt.Sprintf("%s %d 512", op, end), s.uri); o.status == 0 {
			t.Errorf("qemu-io %s past the end succeeded:\n%s", op, o.stdout)
		}
	}
}

// Goal: qemu-img writes an image that qemu-img then finds equal, with data, holes
// and zeros in it.
func TestQemuImg(t *testing.T) {
	need(t, "nbdinfo", "qemu-io", "qemu-img")
	onEveryImage(t, 64*mib, func(t *testing.T, img image) {
		s := serve(t, img)
		src := filepath.Join(t.TempDir(), "src")
		run(t, "qemu-img", "create", "-q", "-f", "raw", src, fmt.Sprintf("%d", exportSize(t, s.uri)))
		qemuIO(t, src, "write -P 1 0 5M", "write -P 2 20M 64k", "write -P 3 40m 1536", "write -z 41M 1M")

		qemuIO(t, s.uri, "write -P 0xee 0 60M") // what was there must go
		run(t, "qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", "-W", "-m", "8", src, s.uri)
		run(t, "qemu-img", "compare", "-f", "raw", "-F", "raw", src, s.uri)

		if info := run(t, "qemu-img", "info", s.uri); !strings.Contains(info, "file format: raw") {
			t.Errorf("qemu-img info:\n%s", info)
		}
		s.stop(t)
		img.check(t)
	})
}
