package pmem

import (
	"os"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// cachedPages is how many pages of mem, a mapping of a file, the page cache holds.
// Unlike a read that must not wait, which starts one, it changes nothing.
func cachedPages(t *testing.T, mem []byte) (n int) {
	t.Helper()
	page := os.Getpagesize()
	pages := make([]byte, (len(mem)+page-1)/page)
	_, _, err := unix.Syscall(unix.SYS_MINCORE, uintptr(unsafe.Pointer(unsafe.SliceData(mem))),
		uintptr(len(mem)), uintptr(unsafe.Pointer(unsafe.SliceData(pages))))
	if err != 0 {
		t.Fatalf("mincore: %v", err)
	}
	for _, p := range pages {
		n += int(p & 1)
	}
	return n
}
