package btt

import (
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/uuid"

	"github.com/bttnbd/bttnbd/layout"
	"github.com/bttnbd/bttnbd/pmem"
)

// benchDevice is a 1 GiB device on /dev/shm, treated as persistent memory.
func benchDevice(b *testing.B, sector uint32) *Device {
	b.Helper()
	path := filepath.Join("/dev/shm", "bttnbd-bench-"+uuid.NewString())
	r, err := pmem.Create(path, 1<<30, pmem.Options{Durability: pmem.ForceDAX})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { os.Remove(path) })
	p := FormatParams{Flavour: layout.Kernel, SectorSize: sector, UUID: uuid.New(), Zeroed: true}
	if err := Format(r, p); err != nil {
		b.Fatal(err)
	}
	d, err := Open(r, Options{})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { d.Close() })
	block := make([]byte, 1<<20)
	for off := int64(0); off+int64(len(block)) <= int64(d.Size()); off += int64(len(block)) {
		if _, err := d.WriteAt(block, off); err != nil {
			b.Fatal(err)
		}
	}
	return d
}

func benchRandom(b *testing.B, sector uint32, size int, op func(d *Device, p []byte, off int64) error) {
	d := benchDevice(b, sector)
	p := make([]byte, size)
	rng := rand.New(rand.NewPCG(1, 2))
	n := int64(d.Size()) / int64(size)
	b.SetBytes(int64(size))
	b.ReportAllocs()
	for b.Loop() {
		if err := op(d, p, rng.Int64N(n)*int64(size)); err != nil {
			b.Fatal(err)
		}
	}
}

func writeOp(d *Device, p []byte, off int64) error { _, err := d.WriteAt(p, off); return err }
func readOp(d *Device, p []byte, off int64) error  { _, err := d.ReadAt(p, off); return err }

func BenchmarkWrite4K(b *testing.B)   { benchRandom(b, 4096, 4096, writeOp) }
func BenchmarkWrite512(b *testing.B)  { benchRandom(b, 512, 512, writeOp) }
func BenchmarkWrite128K(b *testing.B) { benchRandom(b, 4096, 128<<10, writeOp) }
func BenchmarkRead4K(b *testing.B)    { benchRandom(b, 4096, 4096, readOp) }
func BenchmarkRead512(b *testing.B)   { benchRandom(b, 512, 512, readOp) }
func BenchmarkRead128K(b *testing.B)  { benchRandom(b, 4096, 128<<10, readOp) }

// 32 blocks anywhere in one group, as a connection with a deep queue makes them.
func BenchmarkWriteGroup32(b *testing.B) {
	d := benchDevice(b, 4096)
	p, rng := make([]byte, 4096), rand.New(rand.NewPCG(1, 2))
	offs, data, errs := make([]int64, 32), make([][]byte, 32), make([]error, 32)
	b.SetBytes(32 * 4096)
	b.ReportAllocs()
	for b.Loop() {
		for i := range offs {
			offs[i], data[i] = rng.Int64N(int64(d.nlba))*4096, p
		}
		d.WriteGroup(offs, data, errs)
	}
}

// An image of 512 GiB: what it costs to make one on a sparse file, and to open it.
func BenchmarkFormat512G(b *testing.B) { bench512G(b, func(r *pmem.Region) {}) }
func BenchmarkOpen512G(b *testing.B) {
	bench512G(b, func(r *pmem.Region) {
		b.StartTimer()
		if _, err := Open(r, Options{}); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
	})
}

func bench512G(b *testing.B, then func(*pmem.Region)) {
	format := b.Name() == "BenchmarkFormat512G"
	for range b.N {
		b.StopTimer()
		path := filepath.Join("/dev/shm", "bttnbd-bench-"+uuid.NewString())
		if format {
			b.StartTimer()
		}
		r, err := pmem.Create(path, 512<<30, pmem.Options{Durability: pmem.ForceDAX})
		if err != nil {
			b.Fatal(err)
		}
		if err := Format(r, FormatParams{Flavour: layout.Kernel, SectorSize: 4096, UUID: uuid.New(), Zeroed: true}); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		then(r)
		r.Close()
		os.Remove(path)
	}
}
