package vm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// ErrPowerCut is the error of a guest that ended by [Guest.PowerCut].
var ErrPowerCut = errors.New("the guest's power was cut")

// The serial ports of the guest, see init.
const (
	consolePort = iota
	outputPort
	statusPort
	ports
)

// A Guest is a running machine.
type Guest struct {
	ctx   context.Context
	cmd   *exec.Cmd
	port  [ports]*transcript
	qemu  *transcript // what QEMU itself says
	cut   bool
	ended chan struct{} // closed when QEMU is gone and all output is read
	err   error         // of QEMU; set before ended is closed
}

// A Result is what a guest that was switched off by its script has left.
type Result struct {
	Status  int    // exit status of the script
	Output  string // of the script, stdout and stderr
	Console string // of the kernel, warnings and worse
}

// String is everything the guest said, for people.
func (r *Result) String() string {
	return fmt.Sprintf("exit status %d\n--- console ---\n%s\n--- output ---\n%s", r.Status, r.Console, r.Output)
}

// start starts QEMU with a pipe for each serial port.
func start(ctx context.Context, cmd *exec.Cmd) (*Guest, error) {
	g := &Guest{ctx: ctx, cmd: cmd, ended: make(chan struct{}), qemu: newTranscript()}
	cmd.Stderr = g.qemu
	var readers, writers []*os.File
	closeAll := func(files []*os.File) {
		for _, f := range files {
			f.Close()
		}
	}
	for range ports {
		r, w, err := os.Pipe()
		if err != nil {
			closeAll(append(readers, writers...))
			return nil, err
		}
		readers, writers = append(readers, r), append(writers, w)
	}
	cmd.ExtraFiles = append(cmd.ExtraFiles, writers...)
	err := cmd.Start()
	closeAll(writers)
	if err != nil {
		closeAll(readers)
		return nil, fmt.Errorf("%w: run scripts/vm-deps", err)
	}
	var reading sync.WaitGroup
	for i, r := range readers {
		t := newTranscript()
		g.port[i] = t
		reading.Go(func() {
			defer r.Close()
			io.Copy(t, r) // ends when QEMU does
			t.end()
		})
	}
	go func() {
		reading.Wait()
		g.err = cmd.Wait()
		close(g.ended)
	}()
	return g, nil
}

// Await returns when the script has printed the line, or with an error when it ended
// without doing so.
func (g *Guest) Await(line string) error {
	if g.port[outputPort].await(line) {
		return nil
	}
	r, err := g.Wait()
	if err != nil {
		return fmt.Errorf("waiting for the line %q: %w", line, err)
	}
	return fmt.Errorf("the guest ended without the line %q: %v", line, r)
}

// Ended is closed when the guest has ended, in whatever way.
func (g *Guest) Ended() <-chan struct{} { return g.ended }

// Freeze stops the guest between two of its instructions, calls f, and lets it go on.
// What f finds in the files of the NVDIMMs is what a power failure at this moment
// would leave, so one boot gives many.
func (g *Guest) Freeze(f func() error) error {
	pid := g.cmd.Process.Pid
	if err := unix.Kill(pid, unix.SIGSTOP); err != nil {
		return fmt.Errorf("freeze: %w", err)
	}
	// Returns when the last thread has stopped.
	if err := waitStopped(pid); err != nil {
		return fmt.Errorf("freeze: %w: %v", err, g.said())
	}
	return errors.Join(f(), unix.Kill(pid, unix.SIGCONT))
}

func waitStopped(pid int) error {
	for {
		err := unix.Waitid(unix.P_PID, pid, nil, unix.WSTOPPED, nil)
		if err != unix.EINTR {
			return err
		}
	}
}

// PowerCut ends the guest at once and waits until it is gone.
func (g *Guest) PowerCut() error {
	g.cut = true
	if err := g.cmd.Process.Kill(); err != nil {
		return fmt.Errorf("power cut: %w: %v", err, g.said())
	}
	if _, err := g.Wait(); !errors.Is(err, ErrPowerCut) {
		return fmt.Errorf("power cut: the guest had ended before: %v", g.said())
	}
	return nil
}

// Wait returns when the guest has ended. A script that fails is no error of Wait;
// a guest that ended without reporting the script's status is, and the error holds
// what it said.
func (g *Guest) Wait() (*Result, error) {
	<-g.ended
	r := g.said()
	status := strings.TrimSpace(g.port[statusPort].String())
	if n, err := strconv.Atoi(status); err == nil {
		r.Status = n
		return r, nil
	}
	switch {
	case g.ctx.Err() != nil:
		return r, fmt.Errorf("the guest did not end in time: %w\n%v", context.Cause(g.ctx), r)
	case g.cut:
		return r, ErrPowerCut
	}
	return r, fmt.Errorf("the guest ended without a status: %w\n%s\n%v", errors.Join(g.err, errors.New("see its console")), g.qemu, r)
}

func (g *Guest) said() *Result {
	return &Result{Status: -1, Output: g.port[outputPort].String(), Console: g.port[consolePort].String()}
}

// A transcript is what came out of a pipe so far.
type transcript struct {
	mu    sync.Mutex
	more  sync.Cond
	text  []byte
	ended bool
}

func newTranscript() *transcript {
	t := &transcript{}
	t.more.L = &t.mu
	return t
}

func (t *transcript) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.text = append(t.text, p...)
	t.more.Broadcast()
	return len(p), nil
}

func (t *transcript) end() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.ended = true
	t.more.Broadcast()
}

func (t *transcript) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(t.text)
}

// await reports whether the line came before the end.
func (t *transcript) await(line string) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	for {
		if bytes.Contains(append([]byte{'\n'}, t.text...), []byte("\n"+line+"\n")) {
			return true
		}
		if t.ended {
			return false
		}
		t.more.Wait()
	}
}
