package main

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
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

// engineArgs are PATH MODE BLOCK THREADS SECONDS. Modes: write, read (random
// blocks), group (sequential 128 KiB), copy (the same bytes, without a BTT).
func engineSide(path, mode string, block, threads int) side {
	return func(d time.Duration) (measurement, error) {
		out, err := exec.Command(os.Args[0], engineWorker, path, mode, strconv.Itoa(block), strconv.Itoa(threads), fmt.Sprint(d.Seconds())).Output()
		if err != nil {
			return measurement{}, err
		}
		return number(out)
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
		return number(out)
	}
}

func number(out []byte) (measurement, error) {
	v, err := strconv.ParseFloat(strings.TrimSpace(string(out)), 64)
	return measurement{Rate: v}, err
}

// makeImage makes a BTT at path of which every block has data.
func makeImage(path string, sector uint32) error {
	r, err := pmem.Create(path, imageSize, pmem.Options{Durability: pmem.ForceDAX})
	if err != nil {
		return err
	}
	if err := btt.Format(r, btt.FormatParams{Flavour: layout.Kernel, SectorSize: sector, UUID: uuid.New(), Zeroed: true}); err != nil {
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
	rate, err := engineRate(args)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Printf("%.0f\n", rate)
}

func engineRate(args []string) (float64, error) {
	path, mode := args[0], args[1]
	block, _ := strconv.Atoi(args[2])
	threads, _ := strconv.Atoi(args[3])
	seconds, _ := strconv.ParseFloat(args[4], 64)
	r, err := pmem.Open(path, pmem.Options{Durability: pmem.ForceDAX})
	if err != nil {
		return 0, err
	}
	d, err := btt.Open(r, btt.Options{})
	if err != nil {
		return 0, err
	}
	defer d.Close()
	var stop atomic.Bool
	var total atomic.Int64
	var wg sync.WaitGroup
	start := time.Now()
	for t := range threads {
		wg.Go(func() { total.Add(engineLoop(d, r, mode, block, uint64(t), &stop)) })
	}
	time.Sleep(time.Duration(seconds * float64(time.Second)))
	stop.Store(true)
	wg.Wait()
	return float64(total.Load()) / time.Since(start).Seconds(), nil
}

// engineLoop returns operations, or bytes for the modes group and copy.
func engineLoop(d *btt.Device, r *pmem.Region, mode string, block int, seed uint64, stop *atomic.Bool) (n int64) {
	const stream = 128 << 10
	rng := rand.New(rand.NewPCG(seed, 1))
	p := make([]byte, max(block, stream))
	for i := range p {
		p[i] = byte(rng.Uint32())
	}
	blocks, streams := int64(d.Size())/int64(block), int64(d.Size())/stream
	for i := int64(0); !stop.Load(); i++ {
		var err error
		switch mode {
		case "write":
			_, err = d.WriteAt(p[:block], rng.Int64N(blocks)*int64(block))
			n++
		case "read":
			_, err = d.ReadAt(p[:block], rng.Int64N(blocks)*int64(block))
			n++
		case "group":
			_, err = d.WriteAt(p[:stream], i%streams*stream)
			n += stream
		case "copy":
			// Over the data area only: the image stays a BTT.
			r.Write(8192+uint64(i%streams)*stream, p[:stream])
			err = r.Drain()
			n += stream
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	return n
}
