package pmem

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// Goal: the durability follows from the medium and from what is asked.
func TestDurability(t *testing.T) {
	shm := filepath.Join(memoryDir(t), "f")
	disk := filepath.Join(diskDir(t), "f")
	for _, c := range []struct {
		path string
		o    Options
		want Durability
	}{
		{shm, Options{}, Process},
		{disk, Options{}, Msync},
		{disk, Options{Durability: ForceDAX}, DAX},
		{disk, Options{Durability: ForceProcess}, Process},
		{disk, Options{ReadOnly: true}, Process},
	} {
		if !c.o.ReadOnly {
			os.Remove(c.path)
		}
		if c.want == DAX && !hasFlush {
			if _, err := Create(c.path, 4096, c.o); err == nil || !strings.Contains(err.Error(), "no cache-line write-back") {
				t.Errorf("ForceDAX without write-back: %v", err)
			}
			continue
		}
		if !c.o.ReadOnly {
			create(t, c.path, 4096, c.o).Close()
		}
		r, err := Open(c.path, c.o)
		if err != nil {
			t.Fatal(err)
		}
		if r.Durability() != c.want || r.Size() != 4096 || r.Path() != c.path || r.ReadOnly() != c.o.ReadOnly {
			t.Errorf("%+v: %v, %d bytes, %q, read-only %v", c, r.Durability(), r.Size(), r.Path(), r.ReadOnly())
		}
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	}
}

// Goal: a size that is no multiple of a page is kept exactly, in memory and file.
func TestOddSize(t *testing.T) {
	for name, r := range media(t, 4096+12) {
		r.Store32(4096+8, 9)
		if err := r.Persist(4096, 12); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if panicText(func() { r.Load32(4096 + 12) }) == "" {
			t.Errorf("%s: a load beyond the file succeeded", name)
		}
		if r.Path() == "" {
			continue
		}
		if st, err := os.Stat(r.Path()); err != nil || st.Size() != 4096+12 {
			t.Errorf("%s: file has %d bytes, %v", name, st.Size(), err)
		}
	}
}

// Goal: a read-only region takes stores of every kind and its file, also seen by
// others, never changes, not even its times.
func TestReadOnlyNeverChangesFile(t *testing.T) {
	for _, dir := range []string{memoryDir(t), diskDir(t)} {
		path := filepath.Join(dir, "f")
		content := bytes.Repeat([]byte("unchanged "), 1000)[:8192]
		if err := os.WriteFile(path, content, 0o444); err != nil {
			t.Fatal(err)
		}
		before, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		r, err := Open(path, Options{ReadOnly: true})
		if err != nil {
			t.Fatal(err)
		}
		r.Store32(0, 1)
		r.Store64(8, 2)
		r.Write(4096, make([]byte, 512))
		r.Zero(16, 16)
		r.Touch(0)
		if err := r.Persist(0, r.Size()); err != nil {
			t.Errorf("persist: %v", err)
		}
		if r.Load32(0) != 1 || r.Load64(8) != 2 {
			t.Error("a private store was lost")
		}
		if err := r.Close(); err != nil {
			t.Error(err)
		}
		after, err := os.Stat(path)
		if err != nil || !after.ModTime().Equal(before.ModTime()) {
			t.Errorf("modified at %v, before %v; %v", after.ModTime(), before.ModTime(), err)
		}
		if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, content) {
			t.Errorf("%s changed; %v", path, err)
		}
	}
}

// Goal: what cannot be opened is refused with a reason, and nothing is changed.
func TestOpenErrors(t *testing.T) {
	dir := diskDir(t)
	empty, pipe := filepath.Join(dir, "empty"), filepath.Join(dir, "pipe")
	if err := os.WriteFile(empty, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mkfifo(pipe, 0o644); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		path, want string
		is         error
	}{
		{filepath.Join(dir, "missing"), "no such file", fs.ErrNotExist},
		{dir, "is a directory", unix.EISDIR},
		{empty, "empty, nothing to map", nil},
		{pipe, "neither a regular file nor", nil},
		{"/dev/null", "not device DAX", nil},
	} {
		for _, o := range []Options{{}, {ReadOnly: true}} {
			r, err := Open(c.path, o)
			if err == nil {
				r.Close()
				t.Errorf("Open(%s) succeeded", c.path)
				continue
			}
			if !strings.HasPrefix(err.Error(), c.path+": ") || !strings.Contains(err.Error(), c.want) {
				t.Errorf("Open(%s) = %q, want %q", c.path, err, c.want)
			}
			if c.is != nil && !errors.Is(err, c.is) {
				t.Errorf("Open(%s) = %q is not %v", c.path, err, c.is)
			}
		}
	}
}

// Goal: a file that may be read but not written opens read-only and is otherwise
// refused with that hint. Root may write anything, so the thread becomes nobody.
func TestOpenNoPermission(t *testing.T) {
	path := filepath.Join(diskDir(t), "f")
	if err := os.WriteFile(path, make([]byte, 4096), 0o444); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	asNobody(t, func() {
		if r, err := Open(path, Options{}); !errors.Is(err, fs.ErrPermission) || !strings.Contains(err.Error(), "open it read-only") {
			t.Errorf("Open for writing = %v, %v", r, err)
		}
		r, err := Open(path, Options{ReadOnly: true})
		if err != nil {
			t.Errorf("Open for reading: %v", err)
			return
		}
		r.Close()
		if err := os.Remove(path); err == nil && os.Getuid() == 0 {
			t.Error("the thread still has root's permissions")
		}
	})
}

// asNobody runs f on a thread of its own with the file permissions of nobody.
func asNobody(t *testing.T, f func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // never unlocked: the thread dies with its goroutine
		if os.Getuid() == 0 {
			if err := unix.Setfsuid(65534); err != nil {
				t.Errorf("setfsuid: %v", err)
				return
			}
		}
		f()
	}()
	<-done
}

// Goal: Create makes a new sparse file or nothing, and never touches an old one.
func TestCreate(t *testing.T) {
	dir := diskDir(t)
	path := filepath.Join(dir, "f")
	r := create(t, path, 1<<30, Options{})
	st, err := os.Stat(path)
	if err != nil || st.Size() != 1<<30 {
		t.Fatalf("created %v, %v", st, err)
	}
	var raw unix.Stat_t
	if err := unix.Stat(path, &raw); err != nil || raw.Blocks*512 > 1<<20 {
		t.Errorf("not sparse: %d blocks, %v", raw.Blocks, err)
	}
	r.Store32(0, 7)
	if _, err := Create(path, 4096, Options{}); !errors.Is(err, fs.ErrExist) {
		t.Errorf("Create over a file = %v", err)
	}
	if r.Load32(0) != 7 || r.Size() != 1<<30 {
		t.Error("Create changed an existing file")
	}
	for name, c := range map[string]struct {
		size uint64
		o    Options
	}{
		"no bytes":        {0, Options{}},
		"negative":        {1 << 63, Options{}},
		"beyond any file": {1<<63 - 1, Options{}},
		"read-only":       {4096, Options{ReadOnly: true}},
	} {
		fresh := filepath.Join(dir, "fresh")
		if r, err := Create(fresh, c.size, c.o); err == nil {
			r.Close()
			t.Errorf("%s: Create succeeded", name)
		}
		if _, err := os.Stat(fresh); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: failed Create left a file: %v", name, err)
		}
	}
}

// Goal: an empty file gets its size from whoever locks it first, and from nobody else;
// one that cannot be mapped so large is empty again.
func TestSizeIfEmpty(t *testing.T) {
	path := filepath.Join(diskDir(t), "f")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	size := func() int64 {
		st, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		return st.Size()
	}
	if _, err := Open(path, Options{SizeIfEmpty: 1 << 62}); err == nil || size() != 0 {
		t.Errorf("of 2^62 bytes: %v, and the file has %d", err, size())
	}
	r, err := Open(path, Options{SizeIfEmpty: 8192})
	if err != nil || !r.Sized() || r.Size() != 8192 || size() != 8192 {
		t.Fatalf("the first: %+v, %v", r, err)
	}
	var inUse *InUseError
	if _, err := Open(path, Options{SizeIfEmpty: 4096}); !errors.As(err, &inUse) || size() != 8192 {
		t.Errorf("the second: %v, and the file has %d bytes", err, size())
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	if r, err = Open(path, Options{SizeIfEmpty: 4096}); err != nil || r.Sized() || r.Size() != 8192 {
		t.Fatalf("the third: %+v, %v", r, err)
	}
	r.Close()
}

// Goal: the size of a device DAX is what sysfs says, cut to its alignment, and
// another character device is refused in words.
func TestDAXSize(t *testing.T) {
	dir := t.TempDir()
	if _, err := daxSize(dir); err == nil || !strings.Contains(err.Error(), "/dev/daxN.M") {
		t.Errorf("no size file: %v", err)
	}
	write := func(name, s string) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(s), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("size", "6295552\n") // 6 MiB + 4096
	if n, err := daxSize(dir); n != 6<<20 || err != nil {
		t.Errorf("default alignment: %d, %v", n, err)
	}
	write("align", "0x1000\n")
	if n, err := daxSize(dir); n != 6<<20+4096 || err != nil {
		t.Errorf("4 KiB alignment: %d, %v", n, err)
	}
	write("size", "many\n")
	if _, err := daxSize(dir); err == nil {
		t.Error("garbage was taken for a size")
	}
}

// Goal: whoever makes a new file and finds that somebody else has taken it between
// its name and its lock, leaves it to the other, who may also have been and gone.
func TestCreateAndSomebodyQuicker(t *testing.T) {
	for _, gone := range []bool{false, true} {
		path := filepath.Join(diskDir(t), "f")
		fd, err := unix.Open(path, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL|unix.O_CLOEXEC, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		other, err := Open(path, Options{SizeIfEmpty: 8192})
		if err != nil {
			t.Fatal(err)
		}
		if gone {
			if err := other.Close(); err != nil {
				t.Fatal(err)
			}
		}
		r, err := ownNew(path, fd, Options{SizeIfEmpty: 4096})
		var inUse *InUseError
		if r != nil || !errors.As(err, &inUse) != gone || !errors.Is(err, fs.ErrExist) != !gone {
			t.Errorf("gone %t: %v, %v", gone, r, err)
		}
		if st, err := os.Stat(path); err != nil || st.Size() != 8192 {
			t.Errorf("gone %t: the file of the other is gone, or of another size: %v", gone, err)
		}
		if !gone {
			if err := other.Close(); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// Goal: a file behind the page cache is read from the medium after it was opened: what
// is in the cache may be there alone, if a write-back has failed. Method: a file that
// is in the cache; afterwards none of its pages is.
func TestOpenDropsCache(t *testing.T) {
	const size = 1 << 20
	path := filepath.Join(diskDir(t), "f")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	mem, err := unix.Mmap(int(f.Fd()), 0, size, unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(mem)
	write := func() (cached int) {
		if _, err := f.WriteAt(make([]byte, size), 0); err != nil {
			t.Fatal(err)
		}
		return cachedPages(t, mem)
	}
	written := write()
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
	if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
		t.Fatal(err)
	}
	if cachedPages(t, mem) == written && written > 0 {
		t.Skip("NOT TESTED: this file system drops nothing, as tmpfs below overlayfs")
	}
	if write() == 0 {
		t.Fatal("nothing of what was just written is in the cache")
	}
	r, err := Open(path, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if r.Durability() != Msync {
		t.Fatalf("durability %v", r.Durability())
	}
	if n := cachedPages(t, mem); n > 0 {
		t.Errorf("%d of its pages are in the cache still", n)
	}
}
