package ublk

import (
	"errors"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// realRing is one of this kernel; nil where there are none, which must have been told.
func realRing(t *testing.T, entries, flags uint32) *ring {
	t.Helper()
	r, err := newRing(entries, flags)
	if err == nil {
		t.Cleanup(func() {
			if err := r.close(); err != nil {
				t.Error(err)
			}
		})
		return r
	}
	if !errors.Is(err, unix.ENOSYS) && !errors.Is(err, unix.EPERM) || !strings.Contains(err.Error(), "it is not in this kernel, or forbidden (sysctl") {
		t.Fatal(err)
	}
	t.Log("no io_uring here, seen is the error only:", err)
	return nil
}

// Goal: many times more commands than the ring has places go through it, short and long
// ones, and each comes back once, with its own data.
func TestRingGoesRound(t *testing.T) {
	for _, flags := range []uint32{0, setupSQE128} {
		r := realRing(t, 4, flags)
		if r == nil {
			continue
		}
		const opNop, rounds = 0, 100
		for i := range uint64(rounds) {
			for j := range uint64(4) {
				r.next(opNop, -1, 4*i+j)
			}
			if err := r.enter(4); err != nil {
				t.Fatal(err)
			}
			for j := range uint64(4) {
				if data, res, ok := r.completion(); !ok || data != 4*i+j || res != 0 {
					t.Fatalf("round %d: completion %d: %d, %d, %v", i, j, data, res, ok)
				}
			}
			if _, _, ok := r.completion(); ok {
				t.Fatal("a completion too many")
			}
		}
	}
}

// Goal: a thread that waits for requests is woken from outside, as those of a server are;
// and what a command carries arrives where the kernel looks for it: one that is not known
// fails with the number of its own.
func TestRingWakes(t *testing.T) {
	r := realRing(t, 4, 0)
	if r == nil {
		return
	}
	wake, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(wake)
	ne.PutUint32(r.next(opPollAdd, wake, wakeData)[sqeEvents:], unix.POLLIN)
	cmd := r.command(cmdFetch, wake, 5) // an eventfd has no commands
	encodeIO(cmd, 0, 0, 0, 0)
	if err := r.enter(1); err != nil {
		t.Fatal(err)
	}
	if data, res, ok := r.completion(); !ok || data != 5 || res != -int32(unix.EOPNOTSUPP) {
		t.Fatalf("the command: %d, %d, %v", data, res, ok)
	}
	if _, _, ok := r.completion(); ok {
		t.Fatal("woken before anybody has")
	}
	s := &Server{wake: wake}
	if err := s.wakeAll(); err != nil {
		t.Fatal(err)
	}
	if err := r.enter(1); err != nil {
		t.Fatal(err)
	}
	if data, res, ok := r.completion(); !ok || data != wakeData || res&unix.POLLIN == 0 {
		t.Fatalf("woken: %d, %d, %v", data, res, ok)
	}
}
