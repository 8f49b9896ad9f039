package pmem

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// catch runs f as the engine runs a request.
func catch(r *Region, f func()) (err error) {
	defer r.CatchFault(&err)
	defer ArmFaults()()
	f()
	return nil
}

// needBusAddress skips where a SIGBUS comes without the address that failed, as
// under user-mode QEMU; CatchFault rightly takes nothing then. Faults by protection
// are tested there too, by TestProtectedPage.
func needBusAddress(t *testing.T) {
	t.Helper()
	mem, err := unix.MemfdCreate("probe", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(mem)
	b, err := unix.Mmap(mem, 0, 4096, unix.PROT_READ, unix.MAP_SHARED) // of an empty file
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(b)
	defer ArmFaults()()
	defer func() {
		var at interface{ Addr() uintptr }
		if err, ok := recover().(error); !ok || !errors.As(err, &at) || at.Addr()&^4095 != address(b) {
			t.Skip("this emulator delivers SIGBUS without the address")
		}
	}()
	t.Fatalf("read %d from an empty file", b[0])
}

// Goal: a fault by protection, and of every kind of access, is caught with the
// right page; what is not protected works on.
func TestProtectedPage(t *testing.T) {
	page := uint64(os.Getpagesize())
	for name, r := range media(t, 3*page) {
		if r.Path() == "" {
			continue
		}
		if err := unix.Mprotect(r.mem[page:2*page], unix.PROT_NONE); err != nil {
			t.Fatal(err)
		}
		p := make([]byte, 64)
		ops := map[string]func(){
			"load64":  func() { r.Load64(page + 8) },
			"store32": func() { r.Store32(page+8, 1) },
			"read":    func() { r.Read(p, page+8) },
			"write":   func() { r.Write(page+8, p) },
			"zero":    func() { r.Zero(page+8, 64) },
		}
		if r.Durability() == DAX && runtime.GOARCH == "amd64" {
			// Also the proof that Flush reaches the memory at all. On arm64 an
			// emulator may skip the instruction.
			ops["flush"] = func() { r.Flush(page+8, 8) }
		}
		for op, f := range ops {
			err := catch(r, f)
			var fe *FaultError
			if !errors.As(err, &fe) || fe.Off/page != 1 || !errors.Is(err, syscall.EIO) || fe.Medium {
				t.Errorf("%s: %s: %v, bad memory %v", name, op, err, fe != nil && fe.Medium)
			}
		}
		if err := catch(r, func() { r.Write(0, p); r.Store32(2*page, 7) }); err != nil || r.Load32(2*page) != 7 {
			t.Errorf("%s: the other pages: %v", name, err)
		}
	}
}

// Goal: every operation on the part of a file that was cut off is a FaultError with
// path, offset and reason; the rest of the region works on, and all of it does once
// the file is whole again.
func TestTruncatedFile(t *testing.T) {
	needBusAddress(t)
	page := uint64(os.Getpagesize())
	for name, r := range media(t, 4*page) {
		if r.Path() == "" {
			continue
		}
		if err := os.Truncate(r.Path(), int64(2*page)); err != nil {
			t.Fatal(err)
		}
		p := make([]byte, page)
		ops := map[string]func(){
			"load32":  func() { r.Load32(3 * page) },
			"store64": func() { r.Store64(3*page, 1) },
			"read":    func() { r.Read(p, 3*page) },
			"write":   func() { r.Write(3*page, p) },
			"zero":    func() { r.Zero(3*page, page) },
			"touch":   func() { r.Touch(3 * page) },
		}
		if r.Durability() != Msync && !r.touch {
			delete(ops, "touch")
		}
		for op, f := range ops {
			err := catch(r, f)
			var fe *FaultError
			if !errors.As(err, &fe) {
				t.Errorf("%s: %s beyond the end: %v", name, op, err)
				continue
			}
			if fe.Off/page != 3 || fe.Path != r.Path() || !errors.Is(err, syscall.EIO) || !strings.Contains(err.Error(), "truncated to") || fe.Medium {
				t.Errorf("%s: %s: %+v: %v", name, op, fe, err)
			}
		}
		if err := catch(r, func() { r.Write(page, p); r.Store32(0, 7); r.Flush(0, 2*page) }); err != nil || r.Load32(0) != 7 {
			t.Errorf("%s: the part that is left: %v", name, err)
		}
		if err := os.Truncate(r.Path(), int64(4*page)); err != nil {
			t.Fatal(err)
		}
		if err := catch(r, func() { r.Store32(3*page, 8) }); err != nil || r.Load32(3*page) != 8 {
			t.Errorf("%s: after restoring the file: %v", name, err)
		}
	}
}

// Goal: a bulk operation that runs into the missing part names a byte of that part,
// not the start of its range.
func TestFaultOffsetInsideBulk(t *testing.T) {
	needBusAddress(t)
	page := uint64(os.Getpagesize())
	r := create(t, filepath.Join(memoryDir(t), "f"), 4*page, Options{})
	if err := os.Truncate(r.Path(), int64(2*page)); err != nil {
		t.Fatal(err)
	}
	err := catch(r, func() { r.Zero(page, 2*page) })
	var fe *FaultError
	if !errors.As(err, &fe) || fe.Off/page != 2 {
		t.Errorf("fault %v, want one in page 2", err)
	}
}

// Goal: a store into a hole of a full filesystem is ENOSPC, Touch says so before
// the store would, reads of holes still work, and so do stores after space is made.
func TestFullFilesystem(t *testing.T) {
	needBusAddress(t)
	dir := t.TempDir()
	if err := unix.Mount("pmem-test", dir, "tmpfs", 0, "size=1m"); err != nil {
		t.Skipf("mounting a small tmpfs needs root: %v", err)
	}
	defer unix.Unmount(dir, unix.MNT_DETACH)
	page := uint64(os.Getpagesize())
	r := create(t, filepath.Join(dir, "f"), 4<<20, Options{})
	defer r.Close()

	p := make([]byte, page)
	var full uint64 // first page that did not fit
	for full = 0; full < 4<<20; full += page {
		if err := catch(r, func() { r.Write(full, p) }); err != nil {
			break
		}
	}
	for name, f := range map[string]func(){
		"write":   func() { r.Write(full, p) },
		"store32": func() { r.Store32(full, 1) },
		"touch":   func() { r.Touch(full) },
	} {
		err := catch(r, f)
		var fe *FaultError
		if !errors.As(err, &fe) || !errors.Is(err, syscall.ENOSPC) || fe.Off/page != full/page {
			t.Errorf("%s to a hole at %d: %v", name, full, err)
		}
	}
	if err := catch(r, func() { r.Store32(0, 5) }); err != nil || r.Load32(0) != 5 {
		t.Errorf("store to a page that exists: %v", err)
	}
	if err := unix.Mount("", dir, "", unix.MS_REMOUNT, "size=8m"); err != nil {
		t.Fatal(err)
	}
	if err := catch(r, func() { r.Touch(full); r.Store32(full, 6) }); err != nil || r.Load32(full) != 6 {
		t.Errorf("after making space: %v", err)
	}
}

// Goal: CatchFault takes nothing that is not a fault of its own mapping: other
// panics, a nil pointer, a fault of another region.
func TestCatchFaultPassesOthers(t *testing.T) {
	needBusAddress(t)
	dir := memoryDir(t)
	r := create(t, filepath.Join(dir, "a"), 4096, Options{})
	other := create(t, filepath.Join(dir, "b"), 4096, Options{})
	if err := os.Truncate(other.Path(), 0); err != nil {
		t.Fatal(err)
	}
	var null *Region
	for name, f := range map[string]func(){
		"string":       func() { panic("bug") },
		"nil pointer":  func() { _ = null.Size() },
		"other region": func() { other.Load32(0) },
	} {
		passed := func() (v any) {
			defer func() { v = recover() }()
			if err := catch(r, f); err != nil {
				t.Errorf("%s was taken for a fault: %v", name, err)
			}
			return nil
		}()
		if passed == nil {
			t.Errorf("%s: the panic vanished", name)
		}
	}
	err := catch(other, func() { _ = catch(r, func() { other.Load32(0) }) })
	var fe *FaultError
	if !errors.As(err, &fe) || fe.Path != other.Path() {
		t.Errorf("the region it belongs to did not catch it: %v", err)
	}
	if err := catch(r, func() {}); err != nil {
		t.Errorf("no panic, but %v", err)
	}
}

// Goal: what read(2) refuses with EIO, and nothing else, counts as refused. Method:
// /proc/self/mem, where that is so wherever nothing is mapped.
func TestRefuses(t *testing.T) {
	fd, err := unix.Open("/proc/self/mem", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	f, mapped := &file{fd: fd}, make([]byte, 1)
	if !f.refuses(8) || f.refuses(uint64(address(mapped))) {
		t.Errorf("refused: byte 8 %v, a byte of the heap %v; want true and false", f.refuses(8), f.refuses(uint64(address(mapped))))
	}
}

// Goal: ArmFaults nests, and the last restore puts back what was before the first.
func TestArmFaultsRestores(t *testing.T) {
	done := make(chan [3]bool)
	go func() {
		outer := ArmFaults()
		inner := ArmFaults()
		inner()
		stillArmed := armed()
		outer()
		before := armed()
		outer = ArmFaults()
		afterAgain := armed()
		outer()
		done <- [3]bool{stillArmed, before, afterAgain}
	}()
	if got := <-done; got != [3]bool{true, false, true} {
		t.Errorf("armed after inner restore, outer restore, arming again: %v", got)
	}
}

// armed reports whether faults are panics on this goroutine.
func armed() bool {
	was := debug.SetPanicOnFault(true)
	debug.SetPanicOnFault(was)
	return was
}
