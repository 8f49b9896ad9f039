package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"
)

// fillTime is more than enough to write an image once.
const fillTime = 2 * time.Second

// bench holds what all rows need: the programs, and a directory in memory.
type bench struct {
	dir                     string
	bttnbd, pmemblk, plugin string
}

// newBench builds our server and the peers.
func newBench() (*bench, error) {
	dir, err := os.MkdirTemp("/dev/shm", "bttnbd-bench")
	if err != nil {
		return nil, err
	}
	b := &bench{dir: dir, bttnbd: dir + "/bttnbd", pmemblk: dir + "/pmemblk", plugin: dir + "/nbdkit-pmemblk.so"}
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

func (b *bench) close() { os.RemoveAll(b.dir) }

func (b *bench) rows() (rows []bout) {
	for _, threads := range []int{1, 2} {
		for _, c := range []struct {
			mode   string
			block  int
			target float64
		}{{"write", 4096, 1.25}, {"read", 4096, 1.2}, {"write", 512, 1.5}, {"read", 512, 1.5}} {
			rows = append(rows, b.engineRow(c.mode, c.block, threads, c.target))
		}
	}
	rows = append(rows, b.streamRow())
	for _, write := range []bool{false, true} {
		for _, l := range []struct {
			load
			target, cpu float64
		}{
			{load{connections: 1, depth: 1, block: 4096}, 1.3, 0},
			{load{connections: 1, depth: 16, block: 4096}, 2, 0.4},
			{load{connections: 1, depth: 64, block: 4096}, 2, 0.4},
			{load{connections: 4, depth: 16, block: 4096}, 2, 0.4},
			{load{connections: 1, depth: 8, block: 128 << 10, sequential: true}, 1.3, 0},
			{load{connections: 1, depth: 4, block: 1 << 20, sequential: true}, 1.3, 0},
		} {
			l.write = write
			rows = append(rows, b.serverRow("nbdkit memory", l.load, l.target, l.cpu))
			if l.cpu > 0 {
				rows = append(rows, b.serverRow("nbdkit libpmemblk", l.load, 2.5, 0))
			}
		}
	}
	return append(rows, b.fileRow())
}

// engineRow is the engine against libpmemblk.
func (b *bench) engineRow(mode string, block, threads int, target float64) bout {
	return bout{
		name: fmt.Sprintf("engine %d B random %s, %d threads", block, mode, threads), peer: "libpmemblk", unit: "op/s", target: target,
		prepare: func() (us, them side, done func(), err error) {
			image, pool := b.dir+"/image", b.dir+"/pool"
			done = func() { os.Remove(image); os.Remove(pool) }
			if err := makeImage(image, uint32(block)); err != nil {
				return nil, nil, nil, err
			}
			return engineSide(image, mode, block, threads), peerSide(b.pmemblk, pool, mode, block, threads), done, nil
		},
	}
}

// streamRow is groups of 32 blocks against copying the same bytes.
func (b *bench) streamRow() bout {
	return bout{
		name: "engine sequential groups of 32 x 4 KiB", peer: "plain non-temporal copy", unit: "B/s", target: 0.85,
		prepare: func() (us, them side, done func(), err error) {
			image, other := b.dir+"/image", b.dir+"/copied"
			done = func() { os.Remove(image); os.Remove(other) }
			err = errors.Join(makeImage(image, 4096), makeImage(other, 4096))
			return engineSide(image, "group", 4096, 1), engineSide(other, "copy", 4096, 1), done, err
		},
	}
}

// serverRow is our server against another, under the same load.
func (b *bench) serverRow(peer string, l load, target, cpu float64) bout {
	what, unit := "read", "op/s"
	if l.write {
		what = "write"
	}
	if l.block > 4096 {
		unit = "B/s"
	}
	return bout{
		name: fmt.Sprintf("NBD %d KiB %s, %d x depth %d", l.block>>10, what, l.connections, l.depth),
		peer: peer, unit: unit, target: target, targetCPU: cpu,
		prepare: func() (us, them side, done func(), err error) {
			image, pool := b.dir+"/image", b.dir+"/pool"
			if err := makeImage(image, 4096); err != nil {
				return nil, nil, nil, err
			}
			ours, err := start(b.dir+"/ours.sock", b.bttnbd, "serve", "--log-level=error", "--listen=unix:"+b.dir+"/ours.sock", image)
			if err != nil {
				return nil, nil, nil, err
			}
			args := []string{"-f", "-U", b.dir + "/theirs.sock", "memory", "1G"}
			if peer == "nbdkit libpmemblk" {
				args = []string{"-f", "-U", b.dir + "/theirs.sock", b.plugin, "pool=" + pool, fmt.Sprintf("bytes=%d", imageSize)}
			}
			theirs, err := start(b.dir+"/theirs.sock", "nbdkit", args...)
			if err != nil {
				ours.stop()
				return nil, nil, nil, err
			}
			// Fill the peer too: what was never written is quicker to read.
			fill := load{socket: theirs.socket, connections: 1, depth: 4, block: 1 << 20, write: true, sequential: true}
			if _, err := fill.run(fillTime); err != nil {
				return nil, nil, nil, err
			}
			return ours.side(l), theirs.side(l), func() { ours.stop(); theirs.stop(); os.Remove(image); os.Remove(pool) }, nil
		},
	}
}

// fileRow is an ordinary file, where a write costs an msync.
func (b *bench) fileRow() bout {
	return bout{
		name: "NBD 4 KiB write to a file, 1 x depth 64", peer: "qemu-nbd cache=writethrough", unit: "op/s",
		prepare: func() (us, them side, done func(), err error) {
			dir, err := os.MkdirTemp("/var/tmp", "bttnbd-bench")
			if err != nil {
				return nil, nil, nil, err
			}
			raw, image := dir+"/raw", dir+"/image"
			done = func() { os.RemoveAll(dir) }
			if err := errors.Join(os.WriteFile(raw, nil, 0o600), os.Truncate(raw, imageSize)); err != nil {
				return nil, nil, done, err
			}
			if out, err := exec.Command(b.bttnbd, "create", "--size=1G", image).CombinedOutput(); err != nil {
				return nil, nil, done, fmt.Errorf("%w: %s", err, out)
			}
			ours, err := start(b.dir+"/ours.sock", b.bttnbd, "serve", "--log-level=error", "--listen=unix:"+b.dir+"/ours.sock", image)
			if err != nil {
				return nil, nil, done, err
			}
			theirs, err := start(b.dir+"/theirs.sock", "qemu-nbd", "--persistent", "--shared=8", "--cache=writethrough", "-f", "raw", "-k", b.dir+"/theirs.sock", raw)
			if err != nil {
				ours.stop()
				return nil, nil, done, err
			}
			l := load{connections: 1, depth: 64, block: 4096, write: true}
			return ours.side(l), theirs.side(l), func() { ours.stop(); theirs.stop(); os.RemoveAll(dir) }, nil
		},
	}
}
