// Command guest is the part of the VM tests that runs inside the guest, as a static
// binary. The device is read and written directly, past the page cache.
//
//	guest fill DEVICE SEED             a pattern over all of it, in pieces of many sizes, out of order
//	guest compare DEVICE SEED          whether it holds that pattern
//	guest log DEVICE COUNTERS SECTOR SEED N      N logs, until a write fails
//	guest verify DEVICE COUNTERS SECTOR SEED N   whether all that was acknowledged is there
//	guest replay DEVICE LOG FROM TO    what dm-log-writes has written down in LOG
//	guest points LOG N                 points of such a log at which all before is durable
//	guest crowd MIB ROUNDS             so much memory in use, in so many rounds
//	guest poison FILE SIZE MARK        makes the page that begins with MARK bad memory
//	guest progress COUNTERS N MORE     waits until so many writes more are acknowledged
//
// With GUEST_SYNC set, what is acknowledged has been synced (O_DSYNC).
//
// COUNTERS is a device or file with a page for each log, the first 8 bytes of which
// are the number of the last write acknowledged (little-endian).
package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"strconv"
	"sync"
	"syscall"

	"github.com/bttnbd/bttnbd/test/vm/workload"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "guest:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) == 4 && args[0] == "progress" {
		return progress(args[1], args[2:])
	}
	if len(args) == 4 && args[0] == "poison" {
		return poison(args[1], args[2], args[3])
	}
	if len(args) < 3 {
		return errors.New("too few arguments, see the source")
	}
	if args[0] == "points" || args[0] == "crowd" {
		n, err := strconv.Atoi(args[2])
		if err != nil {
			return err
		}
		if args[0] == "points" {
			return points(args[1], n)
		}
		mib, err := strconv.Atoi(args[1])
		if err != nil {
			return err
		}
		return crowd(mib, n)
	}
	device, err := openDirect(args[1])
	if err != nil {
		return err
	}
	defer device.Close()
	size, err := device.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	switch verb := args[0]; verb {
	case "fill", "compare":
		seed, err := strconv.ParseUint(args[2], 0, 64)
		if err != nil {
			return err
		}
		if verb == "fill" {
			return fill(device, size, seed)
		}
		return compare(device, size, seed)
	case "replay":
		return replay(device, args[2:])
	case "log", "verify":
		logs, counters, err := parseLogs(args[2:], size)
		if err != nil {
			return err
		}
		defer counters.Close()
		if verb == "log" {
			return writeLogs(device, counters, logs)
		}
		return verifyLogs(device, counters, logs)
	}
	return fmt.Errorf("no command %s", args[0])
}

// openDirect opens past the page cache, where there is one.
func openDirect(path string) (*os.File, error) {
	flags := os.O_RDWR
	if os.Getenv("GUEST_SYNC") != "" {
		flags |= syscall.O_DSYNC
	}
	f, err := os.OpenFile(path, flags|syscall.O_DIRECT, 0)
	if errors.Is(err, syscall.EINVAL) {
		return os.OpenFile(path, os.O_RDWR|syscall.O_SYNC, 0)
	}
	return f, err
}

// pages returns memory for direct I/O, which wants its buffers aligned.
func pages(n int) []byte {
	p, err := syscall.Mmap(-1, 0, n, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_ANON|syscall.MAP_PRIVATE)
	if err != nil {
		panic(err)
	}
	return p
}

// fill writes the pattern in stretches of 1 MiB, each of them by one of four writers
// in pieces of 4 KiB to 256 KiB, last piece first.
func fill(w io.WriterAt, size int64, seed uint64) error {
	const stretch = 1 << 20
	type job struct {
		off int64
		p   []byte
	}
	jobs := make(chan job)
	errs := make(chan error, 4)
	for range cap(errs) {
		go func() {
			var err error
			for j := range jobs {
				for err == nil && len(j.p) > 0 {
					n := min(len(j.p), 4096<<rand.IntN(7))
					at := (len(j.p) - n) &^ 4095
					_, err = w.WriteAt(j.p[at:], j.off+int64(at))
					j.p = j.p[:at]
				}
			}
			errs <- err
		}()
	}
	pattern := workload.Pattern(seed)
	for off := int64(0); off < size; off += stretch {
		p := pages(int(min(stretch, size-off)))
		io.ReadFull(pattern, p) // never fails
		jobs <- job{off, p}
	}
	close(jobs)
	var all error
	for range cap(errs) {
		all = errors.Join(all, <-errs)
	}
	return all
}

func compare(r io.ReaderAt, size int64, seed uint64) error {
	return workload.ComparePattern(&directReader{r: r, buf: pages(1 << 20), size: size}, seed, size)
}

// A directReader reads through a buffer that is aligned.
type directReader struct {
	r         io.ReaderAt
	buf, left []byte
	off, size int64
}

func (d *directReader) Read(p []byte) (int, error) {
	if len(d.left) == 0 {
		n := min(int64(len(d.buf)), d.size-d.off)
		if n == 0 {
			return 0, io.EOF
		}
		if _, err := d.r.ReadAt(d.buf[:n], d.off); err != nil {
			return 0, err
		}
		d.left = d.buf[:n]
		d.off += n
	}
	n := copy(p, d.left)
	d.left = d.left[n:]
	return n, nil
}

const page = 4096

func parseLogs(args []string, size int64) ([]workload.Log, *os.File, error) {
	if len(args) != 4 {
		return nil, nil, errors.New("want DEVICE COUNTERS SECTOR SEED N")
	}
	var n [3]uint64
	for i := range n {
		var err error
		if n[i], err = strconv.ParseUint(args[1+i], 0, 64); err != nil {
			return nil, nil, err
		}
	}
	counters, err := openDirect(args[0])
	return workload.Split(n[1], int(n[0]), size, int(n[2])), counters, err
}

// writeLogs ends with the first error of each log.
func writeLogs(device, counters *os.File, logs []workload.Log) error {
	errs := make([]error, len(logs))
	var running sync.WaitGroup
	for i, l := range logs {
		running.Go(func() {
			counter := pages(page)
			errs[i] = l.Write(device, pages(workload.MaxBlocks*l.Sector), func(n uint64) error {
				binary.LittleEndian.PutUint64(counter, n)
				_, err := counters.WriteAt(counter, int64(i)*page)
				return err
			})
		})
	}
	fmt.Println("log: started")
	running.Wait()
	return errors.Join(errs...)
}

func verifyLogs(device, counters *os.File, logs []workload.Log) error {
	counter := pages(page)
	for i, l := range logs {
		if _, err := counters.ReadAt(counter, int64(i)*page); err != nil {
			return err
		}
		acked := binary.LittleEndian.Uint64(counter)
		r := &alignedReaderAt{r: device, buf: pages(1 << 20)}
		if err := l.Verify(r, acked); err != nil {
			return fmt.Errorf("log %d, %d writes acknowledged: %w", i, acked, err)
		}
		fmt.Printf("log %d: %d writes acknowledged, all there\n", i, acked)
	}
	return nil
}

// An alignedReaderAt reads through a buffer that is aligned.
type alignedReaderAt struct {
	r   io.ReaderAt
	buf []byte
}

func (a *alignedReaderAt) ReadAt(p []byte, off int64) (int, error) {
	n, err := a.r.ReadAt(a.buf[:len(p)], off)
	return copy(p, a.buf[:n]), err
}
