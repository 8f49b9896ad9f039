package kernel

import (
	"errors"
	"fmt"
	"os"
	"reflect"
	"runtime"
	"runtime/debug"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// A server of a device that its own machine uses is waited for when memory is
// short: pages are free once it has written them. So it must not wait for memory in
// turn, nor for its own code to be read back from a disk, nor be killed for the
// sake of memory.
//
// An image in the page cache must stay reclaimable, or all of it would be locked. So
// there are two calls, [ProtectMemory] before it is mapped and [LockNewMemory] after;
// and [ReserveMemory], which takes its time, before anybody waits for this process.

// ProtectMemory locks what is mapped at the call, as it is used: the program, and the
// first 64 MiB that the Go runtime reserves for its heap. It brings the program into
// memory, and marks the process as one that others wait for. What the process has no
// right to do is in the error; the server works without.
func ProtectMemory() error {
	return errors.Join(
		named("mlockall", unix.Mlockall(unix.MCL_CURRENT|unix.MCL_ONFAULT)),
		loadProgram(),
		flushIO(),
		named("oom_score_adj", os.WriteFile("/proc/self/oom_score_adj", []byte("-1000"), 0)),
	)
}

// What the process is given beforehand: far more heap than 32 connections and their
// buffers take, and more threads than it ever runs at a time.
const (
	heapReserve  = 32 << 20
	spareThreads = 16
)

// ReserveMemory brings into memory what the process may need. A page that it touches for
// the first time when memory is short is one that the kernel waits for, to write others,
// to have one: be it of the heap, or of the stack on which a thread that was never
// interrupted handles its first signal. So the heap gets a reserve and need not grow;
// garbage is collected only when that is used up, and nothing goes back to the system.
//
// It does nothing without the right to lock as much as one likes: nothing keeps in
// memory then what is there.
func ReserveMemory() error {
	unlimited, err := mayLock()
	if err != nil || !unlimited {
		return err
	}
	startThreads(spareThreads)
	reserve := make([]byte, heapReserve)
	if err := populate(reflect.ValueOf(reserve).Pointer() + heapReserve); err != nil {
		return err
	}
	debug.SetGCPercent(-1) // before the reserve is free, or some of it is given back
	runtime.KeepAlive(reserve)
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	// The runtime returns memory from 95% of its limit on.
	debug.SetMemoryLimit(int64(m.Sys-m.HeapReleased) / 10 * 11)
	return nil
}

// LockNewMemory locks, as it is used, the anonymous memory that has come since
// [ProtectMemory], and all that is still to come. It does nothing without the right to
// lock as much as one likes: a limit would end the process when its heap grows.
func LockNewMemory() error {
	unlimited, err := mayLock()
	if err != nil || !unlimited {
		return err
	}
	err = eachMapping(func(from, to uintptr, mode, inode, _ string) error {
		if mode != "rw-p" || inode != "0" {
			return nil
		}
		return advise("mlock2", unix.SYS_MLOCK2, from, to, mlockOnFault)
	})
	return errors.Join(err, named("mlockall", unix.Mlockall(unix.MCL_FUTURE|unix.MCL_ONFAULT)))
}

// startThreads makes the runtime have n threads more; it ends none.
func startThreads(n int) {
	var started, ended sync.WaitGroup
	release := make(chan struct{})
	started.Add(n)
	for range n {
		ended.Go(func() {
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			started.Done()
			<-release
		})
	}
	started.Wait()
	close(release)
	ended.Wait()
}

// smallMapping is what is brought into memory as a whole. Larger ones are the runtime's
// tables, which have entries for all the addresses that there are.
const smallMapping = 4 << 20

// populate brings in what is small, and the heap up to an address.
func populate(heapEnd uintptr) error {
	return eachMapping(func(from, to uintptr, mode, _, _ string) error {
		switch {
		case mode != "rw-p":
			return nil
		case from < heapEnd && heapEnd <= to:
			to = heapEnd
		case to-from > smallMapping:
			return nil
		}
		return advise("MADV_POPULATE_WRITE", unix.SYS_MADVISE, from, to, unix.MADV_POPULATE_WRITE)
	})
}

// advise is mlock2 or madvise. The runtime may have unmapped the range meanwhile.
func advise(what string, call, from, to, how uintptr) error {
	_, _, errno := unix.Syscall(call, from, to-from, how)
	if errno != 0 && errno != unix.ENOMEM {
		return named(what, errno)
	}
	return nil
}

// mayLock reports whether the process may lock any amount of memory.
func mayLock() (bool, error) {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_MEMLOCK, &limit); err != nil {
		return false, named("RLIMIT_MEMLOCK", err)
	}
	if limit.Cur == unix.RLIM_INFINITY {
		return true, nil
	}
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var caps [2]unix.CapUserData
	if err := unix.Capget(&header, &caps[0]); err != nil {
		return false, named("capget", err)
	}
	return caps[0].Effective&(1<<unix.CAP_IPC_LOCK) != 0, nil
}

// mlockOnFault is MLOCK_ONFAULT of mlock2(2).
const mlockOnFault = 1

// eachMapping calls f for each line of /proc/self/maps:
//
//	00400000-00852000 r-xp 00000000 fe:00 1234  /usr/bin/bttnbd
func eachMapping(f func(from, to uintptr, mode, inode, name string) error) error {
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(maps)) {
		var from, to uintptr
		var mode, offset, device, inode, name string
		// Without a name there is one field less.
		if n, err := fmt.Sscanf(line, "%x-%x %s %s %s %s %s", &from, &to, &mode, &offset, &device, &inode, &name); n < 6 {
			return fmt.Errorf("/proc/self/maps: %q: %w", line, err)
		}
		if err := f(from, to, mode, inode, name); err != nil {
			return err
		}
	}
	return nil
}

// loadProgram brings all of the program into memory. That it is used is then too
// late.
func loadProgram() error {
	program, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return err
	}
	return eachMapping(func(from, to uintptr, mode, _, name string) error {
		if mode[0] != 'r' || name != program {
			return nil
		}
		// Before Linux 5.14 there is no such advice, and no backend identifier.
		return advise("MADV_POPULATE_READ", unix.SYS_MADVISE, from, to, unix.MADV_POPULATE_READ)
	})
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
