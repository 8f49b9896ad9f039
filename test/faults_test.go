package clienttest

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Goal: a file that is truncated under a running server gives EIO where it is
// missing; the rest of the image and other exports are read and written as before.
// Method: the image has two arenas, and the second one goes.
func TestTruncatedUnderServer(t *testing.T) {
	needLibnbd(t)
	const gib = 1 << 30
	for name, dir := range map[string]string{"tmpfs": tmpfs(t), "disk": disk(t)} {
		t.Run(name, func(t *testing.T) {
			img := create(t, dir, 600*gib, 4096)
			other := create(t, tmpfs(t), 32*mib, 4096)
			s := serveOn(t, "unix:"+filepath.Join(socketDir(t), "nbd.sock"), img, "other="+other.path)
			const script = `
import nbd, os, sys
uri, path, GiB = sys.argv[1], sys.argv[2], 1 << 30
h, other = nbd.NBD(), nbd.NBD()
h.connect_uri(uri.replace(":///other", ":///"))
other.connect_uri(uri)
a, b = b"a" * 8192, b"b" * 8192
h.pwrite(a, GiB)
h.pwrite(a, 550 * GiB)
os.truncate(path, 520 * GiB)
def fails(request):
    try:
        request()
    except nbd.Error as e:
        assert e.errno == "EIO", e.errno
    else:
        raise Exception("success")
for i in range(3):
    fails(lambda: h.pread(8192, 550 * GiB))
    fails(lambda: h.pwrite(b, 550 * GiB))
    assert h.pread(8192, GiB) == a
    h.pwrite(b, 2 * GiB)
    h.flush()
    assert h.pread(8192, 2 * GiB) == b
    other.pwrite(a, 0)
h.shutdown()
again = nbd.NBD()
again.connect_uri(uri.replace(":///other", ":///"))
assert again.pread(8192, 2 * GiB) == b
again.shutdown()
other.shutdown()
`
			run(t, python, "-c", script, s.uri, img.path)
			if log := s.stderr.String(); !strings.Contains(log, "memory fault") {
				t.Errorf("the log does not say why:\n%s", log)
			}
			s.cmd.Process.Kill() // the backup info block cannot be flushed any more
			s.wait()
			other.check(t)
		})
	}
}

// Goal: when the disk is full, a client is told ENOSPC, has lost nothing that was
// acknowledged, and can go on when there is space again.
func TestDiskFull(t *testing.T) {
	needLibnbd(t)
	need(t, "mkfs.ext4", "mount", "umount")
	if os.Getuid() != 0 {
		t.Skip("NOT TESTED: only root can mount; run the tests as root")
	}
	// Blocks as large as a page, and smaller: of one page some can be had and others not.
	for _, blockSize := range []string{"4096", "1024"} {
		t.Run(blockSize, func(t *testing.T) { diskFull(t, blockSize) })
	}
}

func diskFull(t *testing.T, blockSize string) {
	dir := disk(t)
	filesystem, mountpoint := filepath.Join(dir, "fs"), filepath.Join(dir, "mnt")
	if err := os.WriteFile(filesystem, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(filesystem, 64*mib); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(mountpoint, 0o700); err != nil {
		t.Fatal(err)
	}
	run(t, "mkfs.ext4", "-q", "-m", "0", "-b", blockSize, filesystem)
	run(t, "mount", "-o", "loop", filesystem, mountpoint)
	t.Cleanup(func() { run(t, "umount", mountpoint) })

	img := create(t, mountpoint, 128*mib, 4096)
	filler := filepath.Join(mountpoint, "filler")
	if err := os.WriteFile(filler, make([]byte, 16*mib), 0o600); err != nil {
		t.Fatal(err)
	}
	s := serve(t, img)
	const script = `
import nbd, os, sys
uri, filler, B = sys.argv[1], sys.argv[2], 65536
h = nbd.NBD()
h.connect_uri(uri)
def data(i):
    return (b"%8d" % i) * (B // 8)
acked, refused = [], 0
for i in range(h.get_size() // B):
    try:
        h.pwrite(data(i), i * B)
        acked.append(i)
    except nbd.Error as e:
        assert e.errno == "ENOSPC", e.errno
        refused = i
        break
else:
    raise Exception("the disk did not fill up")
def verify():
    for i in acked:
        assert h.pread(B, i * B) == data(i), i
verify()
os.unlink(filler)
os.sync()
for i in range(refused, refused + 64):
    h.pwrite(data(i), i * B)
    acked.append(i)
verify()
h.flush()
h.shutdown()
print(len(acked))
`
	t.Logf("%s writes of 64 KiB", strings.TrimSpace(run(t, python, "-c", script, s.uri, filler)))
	s.stop(t)
	img.check(t)
}
