package pmem

import (
	"bytes"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// media returns a writable region of every kind this machine and build can make.
func media(t *testing.T, size uint64) map[string]*Region {
	t.Helper()
	shm, disk := memoryDir(t), diskDir(t)
	all := map[string]*Region{
		"heap":    NewHeap(size),
		"process": create(t, filepath.Join(shm, "process"), size, Options{}),
		"msync":   create(t, filepath.Join(disk, "msync"), size, Options{}),
	}
	if hasFlush {
		all["dax"] = create(t, filepath.Join(shm, "dax"), size, Options{Durability: ForceDAX})
	}
	return all
}

func create(t *testing.T, path string, size uint64, o Options) *Region {
	t.Helper()
	r, err := Create(path, size, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return r
}

// memoryDir is a new directory in tmpfs, diskDir one that is not: t.TempDir may be
// either.
func memoryDir(t testing.TB) string { return dirWhere(t, true, "/dev/shm", "/run", "/tmp") }
func diskDir(t testing.TB) string   { return dirWhere(t, false, "/var/tmp", "/tmp", ".") }

func dirWhere(t testing.TB, memory bool, candidates ...string) string {
	t.Helper()
	for _, c := range candidates {
		dir, err := os.MkdirTemp(c, "pmem-test-")
		if err != nil {
			continue
		}
		t.Cleanup(func() { os.RemoveAll(dir) })
		f, err := os.Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if inMemory(int(f.Fd())) == memory {
			return dir
		}
	}
	t.Skipf("none of %q is writable and in memory = %v", candidates, memory)
	return ""
}

// Goal: what is stored is what is loaded and read, in every mode, and the Go value
// is little-endian on media on every host.
func TestLoadStoreRead(t *testing.T) {
	for name, r := range media(t, 8192) {
		r.Store32(4, 0x01020304)
		r.Store64(4096, 0x0102030405060708)
		if v := r.Load32(4); v != 0x01020304 {
			t.Errorf("%s: Load32 = %#x", name, v)
		}
		if v := r.Load64(4096); v != 0x0102030405060708 {
			t.Errorf("%s: Load64 = %#x", name, v)
		}
		got := make([]byte, 9)
		r.Read(got[:4], 4)
		r.Read(got[4:], 4096+1)
		if want := []byte{4, 3, 2, 1, 7, 6, 5, 4, 3}; !bytes.Equal(got, want) {
			t.Errorf("%s: media bytes %v, want %v", name, got, want)
		}
		once := make([]byte, 5)
		if r.ReadOnce(once, 4097); !bytes.Equal(once, got[4:]) {
			t.Errorf("%s: read once %v, want %v", name, once, got[4:])
		}
		if err := r.Persist(0, r.Size()); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Goal: Write and Zero change their range and not a byte beside it, in every mode,
// at random offsets and lengths, from sources of any alignment.
func TestWriteZero(t *testing.T) {
	const size = 16384
	for name, r := range media(t, size) {
		rng := rand.New(rand.NewPCG(1, 2))
		want := make([]byte, size)
		src := make([]byte, size+16)
		for range 400 {
			off := rng.Uint64N(size/8) * 8
			n := rng.Uint64N(min(size-off, 1024)/8+1) * 8
			if rng.IntN(3) == 0 {
				r.Zero(off, n)
				clear(want[off:][:n])
			} else {
				p := src[rng.IntN(16):][:n]
				for i := range p {
					p[i] = byte(rng.Uint32())
				}
				r.Write(off, p)
				copy(want[off:], p)
			}
			if err := r.Drain(); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
		}
		got := make([]byte, size)
		r.Read(got, 0)
		if !bytes.Equal(got, want) {
			t.Errorf("%s: contents differ from the model", name)
		}
	}
}

// Goal: what was drained is in the file, for another reader of it and after the
// region is closed.
func TestReachesFile(t *testing.T) {
	for name, r := range media(t, 4096) {
		if r.Path() == "" {
			continue
		}
		r.Write(8, []byte("ABCDEFGH"))
		r.Store64(16, 0x4847464544434241)
		if err := r.Persist(16, 8); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		path := r.Path()
		if err := r.Close(); err != nil {
			t.Errorf("%s: close: %v", name, err)
		}
		b, err := os.ReadFile(path)
		if err != nil || string(b[8:24]) != "ABCDEFGHABCDEFGH" {
			t.Errorf("%s: file holds %q, %v", name, b[8:24], err)
		}
	}
}

// Goal: an access out of range, misaligned, or after Close is a panic that names
// the place, and never a stray access.
func TestMisusePanics(t *testing.T) {
	r := NewHeap(4100) // 4-byte but not 8-byte multiple
	const far = 1<<64 - 8
	for name, c := range map[string]struct {
		want string
		do   func()
	}{
		"load32 end":        {"out of range", func() { r.Load32(4100) }},
		"load32 misaligned": {"multiple of 4", func() { r.Load32(2) }},
		"load32 far":        {"out of range", func() { r.Load32(far) }},
		"load64 half in":    {"out of range", func() { r.Load64(4096) }},
		"load64 misaligned": {"multiple of 8", func() { r.Load64(4) }},
		"store32 end":       {"out of range", func() { r.Store32(4100, 1) }},
		"store32 wrong":     {"multiple of 4", func() { r.Store32(1, 1) }},
		"store64 half in":   {"out of range", func() { r.Store64(4096, 1) }},
		"store64 wrong":     {"multiple of 8", func() { r.Store64(4, 1) }},
		"read":              {"out of range", func() { r.Read(make([]byte, 5), 4096) }},
		"read far":          {"out of range", func() { r.Read(make([]byte, 16), far) }},
		"write":             {"out of range", func() { r.Write(4096, make([]byte, 8)) }},
		"write misaligned":  {"multiple of 8", func() { r.Write(4, make([]byte, 8)) }},
		"write length":      {"multiple of 8", func() { r.Write(0, make([]byte, 12)) }},
		"zero":              {"out of range", func() { r.Zero(far, 16) }},
		"zero length":       {"multiple of 8", func() { r.Zero(0, 4) }},
		"flush":             {"out of range", func() { r.Flush(4096, 5) }},
		"touch":             {"out of range", func() { r.Touch(4100) }},
	} {
		msg := panicText(c.do)
		if !strings.HasPrefix(msg, "pmem: ") || !strings.Contains(msg, c.want) {
			t.Errorf("%s: panic %q, want one with %q", name, msg, c.want)
		}
	}
	r.Store32(4096, 7) // the last word is in range
	if r.Load32(4096) != 7 {
		t.Error("last word lost")
	}
	f := create(t, filepath.Join(memoryDir(t), "closed"), 4096, Options{})
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Errorf("second close: %v", err)
	}
	if msg := panicText(func() { f.Store64(0, 1) }); !strings.Contains(msg, "has 0 bytes") {
		t.Errorf("store after close: panic %q", msg)
	}
}

func panicText(f func()) (text string) {
	defer func() {
		switch v := recover().(type) {
		case string:
			text = v
		case error:
			text = v.Error()
		}
	}()
	f()
	return ""
}

// Goal: Touch changes nothing, on any byte of any region.
func TestTouch(t *testing.T) {
	for name, r := range media(t, 4102) {
		r.Store64(4088, 42)
		for _, off := range []uint64{0, 3, 4088, 4091, 4101} {
			r.Touch(off)
		}
		if v := r.Load64(4088); v != 42 {
			t.Errorf("%s: Touch changed a value to %d", name, v)
		}
	}
}

// Goal: the data path does not allocate.
func TestNoAllocations(t *testing.T) {
	p := make([]byte, 4096)
	for name, r := range media(t, 8192) {
		for op, f := range map[string]func(){
			"Load":  func() { r.Load32(0); r.Load64(8) },
			"Store": func() { r.Store32(0, 1); r.Store64(8, 1) },
			"Read":  func() { r.Read(p, 0) },
			"Write": func() { r.Write(4096, p) },
			"Zero":  func() { r.Zero(0, 4096) },
			"Touch": func() { r.Touch(0) },
			"Flush": func() { r.Flush(0, 8192) },
			"Drain": func() { r.Store64(0, 2); r.Flush(0, 8); _ = r.Drain() },
			"Fault": func() { _ = guarded(r) },
		} {
			if n := testing.AllocsPerRun(20, f); n != 0 {
				t.Errorf("%s: %s allocates %v times", name, op, n)
			}
		}
	}
}

func guarded(r *Region) (err error) {
	defer r.CatchFault(&err)
	defer ArmFaults()()
	r.Store64(0, 3)
	return nil
}

// Goal: NewHeap keeps its promise of alignment, for sizes that do not help it.
func TestHeapAlignment(t *testing.T) {
	for _, size := range []uint64{8, 100, 4096, 40968} {
		r := NewHeap(size)
		if r.Size() != size || address(r.mem)%4096 != 0 {
			t.Errorf("NewHeap(%d): %d bytes at %#x", size, r.Size(), address(r.mem))
		}
	}
}
