package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/google/uuid"

	"github.com/bttnbd/bttnbd/btt"
	"github.com/bttnbd/bttnbd/layout"
	"github.com/bttnbd/bttnbd/pmem"
)

// engineWorker is the first argument of a process that measures the engine: each
// measurement of the peer is a process of its own as well.
const engineWorker = "engine-worker"

const imageSize = 1 << 30

// engineSide runs a build of this program, whose further arguments are PATH MODE BLOCK THREADS SECONDS. Modes: write, read (random
// blocks), group (sequential 128 KiB), copy (the same bytes, without a BTT).
func engineSide(program, path, mode string, block, threads int) side {
	return func(d time.Duration) (measurement, error) {
		out, err := exec.Command(program, engineWorker, path, mode, strconv.Itoa(block), strconv.Itoa(threads), fmt.Sprint(d.Seconds())).Output()
		if err != nil {
			return measurement{}, err
		}
		return parse(out)
	}
}

// peerSide runs the C program over libpmemblk.
func peerSide(program, path, mode string, block, threads int) side {
	return func(d time.Duration) (measurement, error) {
		c := exec.Command(program, path, strconv.Itoa(block), strconv.Itoa(imageSize), mode, strconv.Itoa(threads), fmt.Sprint(d.Seconds()))
		c.Env = append(os.Environ(), "PMEM_IS_PMEM_FORCE=1")
		out, err := c.Output()
		if err != nil {
			return measurement{}, err
		}
		return parse(out)
	}
}

// parse reads what either worker prints: operations or bytes a second, and CPU
// seconds for each.
func parse(out []byte) (m measurement, err error) {
	_, err = fmt.Sscan(string(out), &m.Rate, &m.CPU)
	return m, err
}

// cpuTime is the CPU time of this process so far, in seconds.
func cpuTime() float64 {
	var u syscall.Rusage
	syscall.Getrusage(syscall.RUSAGE_SELF, &u) // cannot fail
	return float64(u.Utime.Nano()+u.Stime.Nano()) / 1e9
}

// makeImage makes a BTT at path of which every block has data; nfree 0 is the default.
func makeImage(path string, sector, nfree uint32) error {
	r, err := pmem.Create(path, imageSize, pmem.Options{Durability: pmem.ForceDAX})
	if err != nil {
		return err
	}
	if err := btt.Format(r, btt.FormatParams{Flavour: layout.Kernel, SectorSize: sector, Nfree: nfree, UUID: uuid.New(), Zeroed: true}); err != nil {
		return err
	}
	d, err := btt.Open(r, btt.Options{})
	if err != nil {
		return err
	}
	defer d.Close()
	p := make([]byte, 1<<20)
	for off := int64(0); off < int64(d.Size()); off += int64(len(p)) {
		if _, err := d.WriteAt(p[:min(int64(len(p)), int64(d.Size())-off)], off); err != nil {
			return err
		}
	}
	return nil
}

func engineMain(args []string) {
	m, err := measureEngine(args)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println(m.Rate, m.CPU)
}

func measureEngine(args []string) (m measurement, err error) {
	path, mode := args[0], args[1]
	block, _ := strconv.Atoi(args[2])
	threads, _ := strconv.Atoi(args[3])
	seconds, _ := strconv.ParseFloat(args[4], 64)
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		if err := makeImage(path, uint32(block), 0); err != nil {
			return m, err
		}
	}
	r, err := pmem.Open(path, pmem.Options{Durability: pmem.ForceDAX})
	if err != nil {
		return m, err
	}
	d, err := btt.Open(r, btt.Options{})
	if err != nil {
		return m, err
	}
	defer d.Close()
	if err := warmUp(d); err != nil {
		return m, err
	}
	var stop atomic.Bool
	var total atomic.Int64
	var wg sync.WaitGroup
	start, cpu := time.Now(), cpuTime()
	for t := range threads {
		wg.Go(func() { total.Add(engineLoop(d, r, mode, block, uint64(t), &stop)) })
	}
	time.Sleep(time.Duration(seconds * float64(time.Second)))
	stop.Store(true)
	wg.Wait()
	n := float64(total.Load())
	return measurement{n / time.Since(start).Seconds(), (cpuTime() - cpu) / n}, nil
}

// warmUp reads every block, so that all pages are mapped before the clock starts.
func warmUp(d *btt.Device) error {
	p := make([]byte, 1<<20)
	for off := int64(0); off < int64(d.Size()); off += int64(len(p)) {
		if _, err := d.ReadAt(p[:min(int64(len(p)), int64(d.Size())-off)], off); err != nil {
			return err
		}
	}
	return nil
}

// xorshift is the generator of the peer, so that choosing a block costs the same.
type xorshift uint64

func (s *xorshift) block(n int64) int64 {
	*s ^= *s >> 12
	*s ^= *s << 25
	*s ^= *s >> 27
	return int64(uint64(*s) * 2685821657736338717 % uint64(n))
}

// engineLoop returns operations, or bytes for the modes group and copy.
func engineLoop(d *btt.Device, r *pmem.Region, mode string, block int, seed uint64, stop *atomic.Bool) (n int64) {
	const stream = 128 << 10
	rng := xorshift(88172645463325253 + seed)
	p := make([]byte, max(block, stream))
	for i := range p {
		p[i] = byte(rng.block(256))
	}
	blocks, streams := int64(d.Size())/int64(block), int64(d.Size())/stream
	var err error
	switch mode { // outside the loops: comparing strings is no part of an operation
	case "write":
		for ; err == nil && !stop.Load(); n++ {
			_, err = d.WriteAt(p[:block], rng.block(blocks)*int64(block))
		}
	case "read":
		for ; err == nil && !stop.Load(); n++ {
			_, err = d.ReadAt(p[:block], rng.block(blocks)*int64(block))
		}
	case "group":
		for ; err == nil && !stop.Load(); n += stream {
			_, err = d.WriteAt(p[:stream], n/stream%streams*stream)
		}
	case "copy":
		for ; err == nil && !stop.Load(); n += stream {
			// Over the data area only: the image stays a BTT.
			r.Write(8192+uint64(n/stream%streams)*stream, p[:stream])
			err = r.Drain()
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	return n
}
