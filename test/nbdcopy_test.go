package clienttest

import (
	"bytes"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
)

// randomFile writes size reproducible random bytes.
func randomFile(t *testing.T, size int64) string {
	t.Helper()
	p := make([]byte, size)
	var seed [32]byte
	rand.NewChaCha8(seed).Read(p)
	path := filepath.Join(t.TempDir(), "random")
	if err := os.WriteFile(path, p, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func sameFiles(t *testing.T, a, b string) {
	t.Helper()
	x, err := os.ReadFile(a)
	if err != nil {
		t.Fatal(err)
	}
	y, err := os.ReadFile(b)
	if err != nil {
		t.Fatal(err)
	}
	if len(x) != len(y) {
		t.Fatalf("%s has %d bytes, %s has %d", a, len(x), b, len(y))
	}
	if !bytes.Equal(x, y) {
		for i := range x {
			if x[i] != y[i] {
				t.Fatalf("%s and %s differ from byte %d on", a, b, i)
			}
		}
	}
}

// Goal: random data filling the whole device comes back byte for byte through four
// connections, also from a second run of the server.
func TestCopy(t *testing.T) {
	need(t, "nbdinfo", "nbdcopy")
	onEveryImage(t, 64*mib, func(t *testing.T, img image) {
		s := serve(t, img)
		src := randomFile(t, exportSize(t, s.uri))
		dst := filepath.Join(t.TempDir(), "back")
		run(t, "nbdcopy", "--connections=4", "--requests=64", "--flush", src, s.uri)
		run(t, "nbdcopy", "--connections=4", "--requests=64", s.uri, dst)
		sameFiles(t, src, dst)
		s.stop(t)
		img.check(t)

		s = serve(t, img)
		run(t, "nbdcopy", s.uri, dst)
		sameFiles(t, src, dst)
	})
}

// Goal: two of our servers back to back, one read and one written by nbdcopy, hold
// the same afterwards.
func TestCopyBetweenServers(t *testing.T) {
	need(t, "nbdinfo", "nbdcopy")
	from := serve(t, create(t, tmpfs(t), 32*mib, 512))
	to := serve(t, create(t, tmpfs(t), 64*mib, 4096))
	src := randomFile(t, exportSize(t, from.uri))
	run(t, "nbdcopy", src, from.uri)
	run(t, "nbdcopy", from.uri, to.uri)

	dst := filepath.Join(t.TempDir(), "back")
	run(t, "nbdcopy", to.uri, dst)
	size, err := os.Stat(src)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(dst, size.Size()); err != nil {
		t.Fatal(err)
	}
	sameFiles(t, src, dst)
}
