//go:build !race && (amd64 || arm64)

package pmem

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"testing"

	"golang.org/x/sys/unix"
)

// Goal: the assembly copies and zeroes exactly what its Go twins copy and clear,
// for every length up to three lines, every position in a line and every source
// alignment, and changes nothing beside it.
func TestStreamMatchesTwins(t *testing.T) {
	const size = 512
	rng := rand.New(rand.NewPCG(3, 4))
	got, want, src := alignedHeap(size, 64), make([]byte, size), make([]byte, size)
	for i := range src {
		src[i] = byte(rng.Uint32())
	}
	for off := 0; off < 128; off += 8 {
		for n := 0; n <= 192; n += 8 {
			fill(got, 0xa5)
			fill(want, 0xa5)
			p := src[rng.IntN(17):][:n]
			streamCopy(got[off:][:n], p)
			copy(want[off:], p)
			fence()
			if !bytes.Equal(got, want) {
				t.Fatalf("copy of %d bytes to offset %d differs from copy()", n, off)
			}
			streamZero(got[off:][:n])
			clear(want[off:][:n])
			fence()
			if !bytes.Equal(got, want) {
				t.Fatalf("zero of %d bytes at offset %d differs from clear()", n, off)
			}
		}
	}
}

// Goal: copying out gives what copy gives, on both sides of the length from which
// on it is done in assembly, and touches nothing beside the destination.
func TestCopyOutMatchesTwin(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 6))
	src, got, want := make([]byte, 3*batch), make([]byte, 3*batch), make([]byte, 3*batch)
	for i := range src {
		src[i] = byte(rng.Uint32())
	}
	for i := range 400 {
		n := rng.IntN(5000)
		if i%100 == 0 {
			n = 2*batch + rng.IntN(batch/2)
		}
		from, to := rng.IntN(len(src)-n), rng.IntN(len(got)-n)
		copyOut(got[to:][:n], src[from:][:n])
		copy(want[to:][:n], src[from:])
		if !bytes.Equal(got, want) {
			t.Fatalf("copy of %d bytes from %d to %d differs from copy()", n, from, to)
		}
	}
}

// Goal: the same for lengths that take several calls of assembly.
func TestStreamBatches(t *testing.T) {
	const size = 2*batch + 4096
	src, got := make([]byte, size), alignedHeap(size+64, 64)
	for i := range src {
		src[i] = byte(i * 7 >> 3)
	}
	fill(got, 0xa5)
	streamCopy(got[8:][:size], src)
	flushLines(got)
	fence()
	if !bytes.Equal(got[8:][:size], src) || got[7] != 0xa5 || got[size+8] != 0xa5 {
		t.Error("long copy differs from its source or its surroundings changed")
	}
	streamZero(got[16 : size-16])
	fence()
	for i, b := range got[16 : size-16] {
		if b != 0 {
			t.Fatalf("byte %d not zero", i+16)
		}
	}
	if got[15] != src[7] || got[size-16] != src[size-24] {
		t.Error("long zero changed its surroundings")
	}
}

func fill(b []byte, v byte) {
	for i := range b {
		b[i] = v
	}
}

// Goal: a flush reaches the line of the first and of the last byte of its range,
// however it is aligned, and no line beyond. Which lines an instruction writes back
// cannot be seen, but a page without access can: a flush that reaches it faults.
func TestFlushCoversItsLines(t *testing.T) {
	page := unix.Getpagesize()
	mem, err := unix.Mmap(-1, 0, 3*page, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(mem)
	fill(mem, 1)
	for _, p := range [][]byte{mem[:page], mem[2*page:]} {
		if err := unix.Mprotect(p, unix.PROT_NONE); err != nil {
			t.Fatal(err)
		}
	}
	for name, flush := range flushers() {
		if !flushFaults(flush, mem[:1]) {
			t.Skipf("%s does not fault on a page without access: an emulator; nothing can be seen here", name)
		}
		lo, hi := page, 2*page
		for k := 1; k <= 200; k++ { // distance of the other end from the page border
			for over := 0; over <= 2; over++ {
				if got := flushFaults(flush, mem[hi-k:hi+over]); got != (over > 0) {
					t.Errorf("%s of [%d,%d) around the upper border: fault %v", name, -k, over, got)
				}
				if got := flushFaults(flush, mem[lo-over:lo+k]); got != (over > 0) {
					t.Errorf("%s of [%d,%d) around the lower border: fault %v", name, -over, k, got)
				}
			}
		}
		if flushFaults(flush, mem[lo:hi]) {
			t.Errorf("%s of exactly the accessible page faults", name)
		}
	}
}

func flushFaults(flush func([]byte), b []byte) (faulted bool) {
	defer ArmFaults()()
	defer func() {
		var at interface{ Addr() uintptr }
		if err, ok := recover().(error); ok && errors.As(err, &at) {
			faulted = true
		}
	}()
	flush(b)
	fence()
	return false
}
