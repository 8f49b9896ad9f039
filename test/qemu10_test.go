package clienttest

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// qemu10 returns the path of one of the programs that scripts/qemu10 unpacks.
func qemu10(t *testing.T, program string) string {
	t.Helper()
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(cache, "bttnbd", "qemu10", "usr", "bin", program)
	if _, err := os.Stat(path); err != nil {
		missing(t, "qemu 10 (scripts/qemu10)")
	}
	return path
}

// Goal: qemu 10, the one client with extended headers, gets them, and everything it
// does works in that form: data, zeros of all kinds, block status, with TLS and
// without. qemu 7.2, of which all other tests with qemu are, has structured replies
// only.
func TestExtendedHeaders(t *testing.T) {
	qemuIO := qemu10(t, "qemu-io")
	p := newPKI(t)
	img := create(t, tmpfs(t), 64*mib, 4096)
	for name, flags := range map[string][]string{
		"clear": nil, "TLS": {"--tls", "require", "--tls-certificates", p.server},
	} {
		t.Run(name, func(t *testing.T) {
			s := serveOn(t, "tcp:0", img, flags...)
			s.uri += "?"
			target := "driver=nbd,host=localhost,port=" + tcpPort(s)
			args := []string{"--trace", "nbd_*"}
			if flags != nil {
				args = append(args, "--object", "tls-creds-x509,id=t,endpoint=client,dir="+p.alice)
				target += ",tls-creds=t"
			}
			args = append(args, "--image-opts", target)
			for _, c := range []string{
				"write -P 0x5a 0 8M", "read -P 0x5a 0 8M", "write -z 1M 1M", "read -P 0 1M 1M", "write -P 1 4097 1",
				"read -P 0x5a 4096 1", "read -P 1 4097 1", "write -z -u 4M 1M", "read -P 0 4M 1M", "write -z 16M 32M",
				"discard 8M 1M", "aio_write -P 3 9M 1M", "aio_write -P 4 10M 1M", "aio_flush", "read -P 3 9M 1M",
				"read -P 4 10M 1M", "write -f -P 9 12M 4k", "flush", "map",
			} {
				args = append(args, "-c", c)
			}
			o := try(t, qemuIO, args...)
			if o.status != 0 || strings.Contains(o.stdout, "verification failed") || strings.Contains(o.stdout, "failed:") {
				t.Fatalf("qemu-io: exit status %d\n%s%s", o.status, o.stdout, o.stderr)
			}
			trace := o.stdout + o.stderr
			for _, want := range []string{"option reply 11 (extended headers), type 1 (ack)", "block status (64-bit)"} {
				if !strings.Contains(trace, want) {
					t.Errorf("no %q in the trace:\n%.3000s", want, trace)
				}
			}
			s.stop(t)
		})
	}
	img.check(t)
}

// Goal: images go both ways through qemu-img 10, and it compares them equal, using
// block status of 64 bits.
func TestQemuImg10(t *testing.T) {
	need(t, "nbdinfo")
	qemuImg, qemuIO := qemu10(t, "qemu-img"), qemu10(t, "qemu-io")
	onEveryImage(t, 64*mib, func(t *testing.T, img image) {
		s := serve(t, img)
		src, back := randomFile(t, exportSize(t, s.uri)), filepath.Join(t.TempDir(), "back")
		run(t, qemuIO, "-f", "raw", "-c", "write -z 5M 20M", "-c", "write -z 30M 4k", src)
		run(t, qemuImg, "convert", "-n", "-f", "raw", "-O", "raw", "-W", "-m", "8", src, s.uri)
		run(t, qemuImg, "compare", "-f", "raw", "-F", "raw", src, s.uri)
		run(t, qemuImg, "convert", "-f", "raw", "-O", "raw", s.uri, back)
		sameFiles(t, src, back)
		s.stop(t)
		img.check(t)
	})
}
