package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// bench holds what all rows need: the programs, a directory in memory, and servers
// that go on from one row to the next.
type bench struct {
	dir                     string
	bttnbd, pmemblk, plugin string
	servers                 map[string]*server // by who it is; see serve
	old                     string             // see -old
	engineBlock             int                // of the images of engineRow
}

// newBench builds our server and the peers.
func newBench(old string) (*bench, error) {
	dir, err := os.MkdirTemp("/dev/shm", "bttnbd-bench")
	if err != nil {
		return nil, err
	}
	b := &bench{dir: dir, bttnbd: dir + "/bttnbd", pmemblk: dir + "/pmemblk", plugin: dir + "/nbdkit-pmemblk.so", servers: map[string]*server{}, old: old}
	peers, err := filepath.Abs("internal/bench/peers")
	if err != nil {
		return nil, err
	}
	for _, c := range [][]string{
		{"go", "build", "-o", b.bttnbd, "./cmd/bttnbd"},
		{"gcc", "-O2", "-o", b.pmemblk, peers + "/pmemblk.c", "-lpmemblk", "-lpthread"},
		{"gcc", "-O2", "-shared", "-fPIC", "-o", b.plugin, peers + "/nbdkit-pmemblk.c", "-lpmemblk"},
	} {
		cmd := exec.Command(c[0], c[1:]...)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			b.close()
			return nil, fmt.Errorf("%v: %w\n%s", cmd, err, out)
		}
	}
	return b, nil
}

func (b *bench) close() {
	b.stopServers()
	os.RemoveAll(b.dir)
}

func (b *bench) rows() (rows []bout) {
	for _, c := range []struct {
		mode   string
		block  int
		target float64
	}{{"write", 4096, 1.25}, {"read", 4096, 1.2}, {"write", 512, 1.5}, {"read", 512, 1.5}} {
		for _, threads := range []int{1, 2} {
			rows = append(rows, b.engineRow(c.mode, c.block, threads, c.target))
		}
	}
	rows = append(rows, b.streamRow())
	// Streams first, as long as what they read has been written in sequence.
	for _, l := range []struct {
		load
		target, cpu float64
	}{
		{load{connections: 1, depth: 8, block: 128 << 10, sequential: true}, 1.3, 0},
		{load{connections: 1, depth: 4, block: 1 << 20, sequential: true}, 1.3, 0},
		{load{connections: 1, depth: 1, block: 4096}, 1.3, 0},
		{load{connections: 1, depth: 16, block: 4096}, 2, 0.4},
		{load{connections: 1, depth: 64, block: 4096}, 2, 0.4},
		{load{connections: 4, depth: 16, block: 4096}, 2, 0.4},
	} {
		for _, l.write = range []bool{false, true} {
			rows = append(rows, b.serverRow("nbdkit memory", l.load, l.target, l.cpu))
			if l.cpu > 0 {
				rows = append(rows, b.serverRow("nbdkit libpmemblk", l.load, 2.5, 0))
			}
		}
	}
	return append(rows, b.fioRow("randread", 16), b.fioRow("randwrite", 64), b.fileRow())
}

// engineRow is the engine against libpmemblk. Images and pools serve all rows of a
// block size.
func (b *bench) engineRow(mode string, block, threads int, target float64) bout {
	return bout{
		name: fmt.Sprintf("engine %d B random %s, %s", block, mode, threadsName(threads)), peer: "libpmemblk", unit: "op/s", target: target,
		prepare: func(*scope) (us, them side, err error) {
			image, pool := b.dir+"/engine-image", b.dir+"/engine-pool"
			if b.engineBlock != block {
				b.engineBlock = block
				os.Remove(image)
				os.Remove(pool)
			}
			us = engineSide(os.Args[0], image, mode, block, threads)
			if b.old != "" {
				return us, engineSide(b.old+"/bench", pool, mode, block, threads), nil
			}
			return us, peerSide(b.pmemblk, pool, mode, block, threads), nil
		},
	}
}

func threadsName(n int) string {
	if n == 1 {
		return "1 thread"
	}
	return fmt.Sprintf("%d threads", n)
}

// streamRow is groups of 32 blocks against copying the same bytes.
func (b *bench) streamRow() bout {
	return bout{
		name: "engine sequential groups of 32 x 4 KiB", peer: "plain non-temporal copy", unit: "B/s", target: 0.85,
		prepare: func(s *scope) (us, them side, err error) {
			image, other := b.dir+"/image", b.dir+"/copied"
			s.later(func() { os.Remove(image); os.Remove(other) })
			us = engineSide(os.Args[0], image, "group", 4096, 1)
			if b.old != "" {
				return us, engineSide(b.old+"/bench", other, "group", 4096, 1), nil
			}
			return us, engineSide(os.Args[0], other, "copy", 4096, 1), nil
		},
	}
}

// serverRow is our server against another, under the same load.
func (b *bench) serverRow(peer string, l load, target, cpu float64) bout {
	return bout{
		name: l.name(), peer: peer, unit: l.unit(), target: target, targetCPU: cpu,
		prepare: func(*scope) (us, them side, err error) {
			ours, theirs, err := b.both(peer)
			if err != nil {
				return nil, nil, err
			}
			return ours.side(l), theirs.side(l), nil
		},
	}
}

// both returns our server and that of a peer, which is our other build if there is one.
func (b *bench) both(peer string) (ours, theirs *server, err error) {
	if b.old != "" {
		peer = "another build"
	}
	if ours, err = b.serve("ours"); err == nil {
		theirs, err = b.serve(peer)
	}
	return ours, theirs, err
}

// fioRow is another load generator, which looks at its data and takes more of the
// processors: does it see the same order?
func (b *bench) fioRow(mode string, depth int) bout {
	return bout{
		name: fmt.Sprintf("NBD 4 KiB %s by fio, 1 x depth %d", mode, depth), peer: "nbdkit memory", unit: "op/s",
		prepare: func(*scope) (us, them side, err error) {
			ours, theirs, err := b.both("nbdkit memory")
			if err != nil {
				return nil, nil, err
			}
			return ours.fio(mode, depth), theirs.fio(mode, depth), nil
		},
	}
}

// fileRow is an ordinary file, where a write costs an msync.
func (b *bench) fileRow() bout {
	return bout{
		name: "NBD 4 KiB write to a file, 1 x depth 64", peer: "qemu-nbd cache=writethrough", unit: "op/s",
		prepare: func(s *scope) (us, them side, err error) {
			dir, err := os.MkdirTemp("/var/tmp", "bttnbd-bench")
			if err != nil {
				return nil, nil, err
			}
			s.later(func() { os.RemoveAll(dir) })
			raw, image := dir+"/raw", dir+"/image"
			if err := errors.Join(os.WriteFile(raw, nil, 0o600), os.Truncate(raw, imageSize)); err != nil {
				return nil, nil, err
			}
			if out, err := exec.Command(b.bttnbd, "create", "--size=1G", image).CombinedOutput(); err != nil {
				return nil, nil, fmt.Errorf("%w: %s", err, out)
			}
			ours, err := start(dir+"/ours.sock", b.bttnbd, "serve", "--log-level=error", "--listen=unix:"+dir+"/ours.sock", image)
			if err != nil {
				return nil, nil, err
			}
			s.later(ours.stop)
			theirs, err := start(dir+"/theirs.sock", "qemu-nbd", "--persistent", "--shared=8", "--cache=writethrough", "-f", "raw", "-k", dir+"/theirs.sock", raw)
			if err != nil {
				return nil, nil, err
			}
			s.later(theirs.stop)
			l := load{connections: 1, depth: 64, block: 4096, write: true}
			return ours.side(l), theirs.side(l), nil
		},
	}
}
