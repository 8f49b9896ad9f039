package pmem

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
)

// Goal: WithFile, Stat and Reopen go by what is open, also when another file has its path,
// and leave the lock where it is; heap memory is no file.
func TestReopen(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a")
	r, err := Create(path, 8192, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if err := errors.Join(os.Rename(path, path+".moved"), os.WriteFile(path, make([]byte, 4096), 0o600)); err != nil {
		t.Fatal(err)
	}
	if err := r.WithFile(func(f *os.File) error { return f.Truncate(16384) }); err != nil {
		t.Fatal(err)
	}
	big, err := r.Reopen()
	if err != nil {
		t.Fatal(err)
	}
	big.Store64(16376, 7)
	if err := errors.Join(big.Persist(16376, 8), big.Close()); err != nil {
		t.Fatal(err)
	}
	is, err := r.Stat()
	moved, _ := os.Stat(path + ".moved")
	if err != nil || !os.SameFile(is, moved) || moved.Size() != 16384 {
		t.Errorf("%v, %v", err, moved)
	}
	var inUse *InUseError
	if _, err := Open(path+".moved", Options{}); !errors.As(err, &inUse) {
		t.Errorf("the lock has gone: %v", err)
	}
	heap := NewHeap(4096)
	err = heap.WithFile(func(*os.File) error { return nil })
	_, again := heap.Reopen()
	if !errors.Is(err, fs.ErrInvalid) || !errors.Is(again, fs.ErrInvalid) {
		t.Errorf("heap: %v, %v", err, again)
	}
}
