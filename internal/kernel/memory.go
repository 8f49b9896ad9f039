package kernel

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// A server of a device that its own machine uses is waited for when memory is
// short: pages are free once it has written them. So it must not wait for memory in
// turn, nor for its own code to be read back from a disk, nor be killed for the
// sake of memory.
//
// ProtectMemory is called before the image is mapped: one in the page cache must stay
// reclaimable, or all of it would be locked. So it locks what is mapped at the call, as
// it is used: the program, and the first 64 MiB that the Go runtime reserves for its
// heap. What is mapped later is not. What the process has no right to do is in the
// error; the server works without.
func ProtectMemory() error {
	return errors.Join(
		named("mlockall", unix.Mlockall(unix.MCL_CURRENT|unix.MCL_ONFAULT)),
		loadProgram(),
		flushIO(),
		named("oom_score_adj", os.WriteFile("/proc/self/oom_score_adj", []byte("-1000"), 0)),
	)
}

// loadProgram brings all of the program into memory. That it is used is then too
// late.
func loadProgram() error {
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		return err
	}
	program, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(maps)) {
		// 00400000-00852000 r-xp 00000000 fe:00 1234  /usr/bin/bttnbd
		var from, to uintptr
		var mode string
		_, err := fmt.Sscanf(line, "%x-%x %s", &from, &to, &mode)
		if err != nil || mode[0] != 'r' || !strings.HasSuffix(strings.TrimSpace(line), program) {
			continue
		}
		// Before Linux 5.14 there is no such advice, and no backend identifier.
		_, _, errno := unix.Syscall(unix.SYS_MADVISE, from, to-from, unix.MADV_POPULATE_READ)
		if errno != 0 {
			return named("MADV_POPULATE_READ", errno)
		}
	}
	return nil
}

// flushIO marks all threads as ones that the kernel's writeback depends on: their
// allocations do not start writeback themselves, and they are not throttled with
// those that dirty pages (PR_SET_IO_FLUSHER of prctl(2), since Linux 5.6). A new
// thread takes it from the one that made it.
func flushIO() error {
	_, _, errno := syscall.AllThreadsSyscall6(unix.SYS_PRCTL, unix.PR_SET_IO_FLUSHER, 1, 0, 0, 0, 0)
	if errno != 0 {
		return named("PR_SET_IO_FLUSHER", errno)
	}
	return nil
}

func named(what string, err error) error {
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return nil
}
