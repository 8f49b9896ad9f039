package main

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"syscall"
)

// hwPoison is MADV_HWPOISON of include/uapi/asm-generic/mman-common.h.
const hwPoison = 100

// poison makes the first page of the file or device, size bytes long, that begins with
// mark bad memory, as a processor does that could not correct it, and prints its offset.
// Who touches it from then on gets SIGBUS with BUS_MCEERR_AR, and on device DAX this
// program itself at once, and dies of it.
func poison(path, size, mark string) error {
	n, err := strconv.Atoi(size)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	m, err := syscall.Mmap(int(f.Fd()), 0, n, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_SHARED)
	if err != nil {
		return err
	}
	for off := 0; off < n; off += page {
		if bytes.HasPrefix(m[off:off+page], []byte(mark)) {
			fmt.Println(off)
			return syscall.Madvise(m[off:off+page], hwPoison)
		}
	}
	return fmt.Errorf("%s: no page begins with %q", path, mark)
}
