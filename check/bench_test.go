package check

import (
	"context"
	"encoding/binary"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/bttnbd/bttnbd/layout"
	"github.com/bttnbd/bttnbd/pmem"
)

func BenchmarkRun(b *testing.B) {
	// Entries a second, for a map that was never written and for one that was
	// written at random.
	const entries = 4 << 20
	im := build(b, params{sector: 8, align: 8, nfree: 256, arena: entries*12 + 65536})
	random := pmem.NewHeap(im.region.Size())
	random.Write(0, im.bytes())
	n := im.geo.ExternalNLBA
	for lba, block := range rand.New(rand.NewPCG(1, 2)).Perm(int(n)) {
		random.Store32(im.entryAt(0, layout.PremapLBA(lba)), uint32(layout.NormalEntry(layout.PostmapLBA(block))))
	}
	for name, r := range map[string]*pmem.Region{"initial": im.region, "random": random} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				if rep, err := Run(context.Background(), r, im.options()); err != nil || rep.Damaged() {
					b.Fatal(rep, err)
				}
			}
			b.ReportMetric(float64(n)*float64(b.N)/b.Elapsed().Seconds()/1e6, "Mentries/s")
		})
	}
}

func BenchmarkBesidePmempool(b *testing.B) {
	// Entries a second of bttcheck and of pmempool check, in pairs on the same pools of
	// 16.7 million entries: one never written to, one written in order, one at random.
	// What either takes to start is left out. Best with -benchtime 15x, on a machine
	// that does nothing else.
	pmempool, err := exec.LookPath("pmempool")
	if err != nil {
		b.Skip("NOT MEASURED: pmempool is not installed: run make deps")
	}
	dir := b.TempDir()
	ours := filepath.Join(dir, "bttcheck")
	if out, err := exec.Command("go", "build", "-o", ours, "../cmd/bttcheck").CombinedOutput(); err != nil {
		b.Fatalf("%v: %s", err, out)
	}
	startTheirs, startOurs := took(b, pmempool, "--version"), took(b, ours, "--version")
	for _, how := range []string{"initial", "in order", "random"} {
		b.Run(how, func(b *testing.B) {
			path, entries := benchPool(b, how)
			took(b, ours, path) // from here on the page cache has the map
			var theirs, mine []time.Duration
			for b.Loop() {
				theirs = append(theirs, took(b, pmempool, "check", path)-startTheirs)
				mine = append(mine, took(b, ours, path)-startOurs)
			}
			t, m := median(theirs).Seconds(), median(mine).Seconds()
			b.ReportMetric(entries/t/1e6, "pmempool-Mentries/s")
			b.ReportMetric(entries/m/1e6, "bttcheck-Mentries/s")
			b.ReportMetric(t/m, "times")
		})
	}
}

// benchPool is a sparse pool of 512-byte blocks as PMDK lays it out.
func benchPool(b *testing.B, how string) (path string, entries float64) {
	b.Helper()
	path = filepath.Join(b.TempDir(), "pool")
	const size = 8_657_199_104
	r, err := pmem.Create(path, size, pmem.Options{Durability: pmem.ForceProcess})
	if err != nil {
		b.Fatal(err)
	}
	defer r.Close()
	f := layout.PMEMBLK
	geo, err := f.Geometry(size-f.Start, 512, layout.DefaultNfree)
	if err != nil {
		b.Fatal(err)
	}
	h := layout.NewPoolHeader(testParent, uuid.UUID{5}, 0, layout.MachineAMD64, 512)
	header := make([]byte, layout.PoolDataOff)
	h.Encode(header, size)
	r.Write(0, header)
	info, raw := geo.Info(f, testUUID, testParent, 0), make([]byte, layout.InfoSize)
	info.Encode(raw)
	r.Write(f.Start, raw)
	r.Write(f.Start+geo.InfoOff, raw)
	group := make([]byte, layout.FlogGroupSize)
	for lane := range layout.Lane(geo.Nfree) {
		f.LoneFlogGroup(layout.PremapLBA(lane), layout.PostmapLBA(geo.ExternalNLBA)+layout.PostmapLBA(lane)).Encode(group)
		r.Write(f.Start+geo.FlogOff+uint64(lane)*layout.FlogGroupSize, group)
	}
	if how != "initial" {
		blocks := make([]uint32, geo.ExternalNLBA)
		for i := range blocks {
			blocks[i] = uint32(i)
		}
		if how == "random" {
			rand.New(rand.NewPCG(1, 2)).Shuffle(len(blocks), func(i, j int) { blocks[i], blocks[j] = blocks[j], blocks[i] })
		}
		m := make([]byte, 0, 4*len(blocks))
		for _, block := range blocks {
			m = binary.LittleEndian.AppendUint32(m, uint32(layout.NormalEntry(layout.PostmapLBA(block))))
		}
		r.Write(f.Start+geo.MapOff, append(m, make([]byte, len(m)%8)...))
	}
	return path, float64(geo.ExternalNLBA)
}

// took is how long a program takes that must succeed.
func took(b *testing.B, name string, args ...string) time.Duration {
	b.Helper()
	cmd := exec.Command(name, args...)
	cmd.Env = os.Environ()
	start := time.Now()
	out, err := cmd.CombinedOutput()
	d := time.Since(start)
	if err != nil {
		b.Fatalf("%v: %v: %s", cmd, err, out)
	}
	return d
}

func median(d []time.Duration) time.Duration {
	slices.Sort(d)
	return d[len(d)/2]
}
