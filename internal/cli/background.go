package cli

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/bttnbd/bttnbd/internal/attach"
	"github.com/bttnbd/bttnbd/internal/kernel"
)

// A Go process cannot fork. To go to the background it starts itself again, with
// --foreground, in a session of its own, and waits until that one says through a
// pipe that it is ready, or ends.
//
//	parent                             child
//	  |  starts with a pipe ------------>|
//	  |                                  |  attaches
//	  |  <-- "/dev/nbd0\nnote\n" --------|  (the pipe)
//	  |  prints, exits                   |  serves
//
// What the child logs until then, from warnings on, the parent shows.

// readyVariable tells a child the descriptor of the pipe.
const readyVariable = "BTTNBD_READY_FD"

// attachInBackground runs this very command line as a child.
func attachInBackground(ctx context.Context, stdout, stderr io.Writer, o *attachOptions) error {
	if err := o.prepare(); err != nil {
		return err
	}
	log, err := os.CreateTemp(attach.Runtime, "attach-*.log")
	if err != nil {
		return err
	}
	defer log.Close()
	defer os.Remove(log.Name()) // it has another name if all goes well
	ready, childs, err := os.Pipe()
	if err != nil {
		return err
	}
	defer ready.Close()
	child := exec.Command("/proc/self/exe", inForeground(os.Args[1:])...)
	child.Args[0] = os.Args[0]
	child.Stderr = log
	child.ExtraFiles = []*os.File{childs}
	child.Env = append(os.Environ(), readyVariable+"=3")
	child.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = child.Start()
	childs.Close()
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { child.Process.Signal(syscall.SIGTERM) })
	answer, err := io.ReadAll(ready)
	stop() // what is ready outlives us and our context
	device, note, _ := strings.Cut(string(answer), "\n")
	if err != nil || device == "" {
		return failedChild(ctx, child.Wait(), log, stderr)
	}
	failure := relay(log, stderr)
	d, err := kernel.ParseDevice(device)
	if err == nil {
		err = os.Rename(log.Name(), attach.LogFile(d))
	}
	if note = strings.TrimSpace(note); note != "" {
		fmt.Fprintf(stderr, "bttnbd: %s: %s\n", device, note)
	}
	_, printed := fmt.Fprintln(stdout, device)
	return errors.Join(failure, err, printed)
}

// inForeground adds --foreground where it beats what was given: behind all flags. What
// is behind "--" is none.
func inForeground(args []string) []string {
	end := slices.Index(args, "--")
	if end < 0 {
		end = len(args)
	}
	return slices.Insert(slices.Clone(args), end, "--foreground")
}

// failedChild is the error of a child that ended before it was ready.
func failedChild(ctx context.Context, exit error, log io.ReadSeeker, stderr io.Writer) error {
	err := relay(log, stderr)
	var status *exec.ExitError
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case err == nil:
		return fmt.Errorf("the server ended before the device was ready: %w", exit)
	case errors.As(exit, &status) && status.ExitCode() == exitUsage:
		return usagef("%v", err)
	}
	return err
}

// relay shows what a child has logged that a user should see, and returns its last
// words, the error line, if there are any.
func relay(log io.ReadSeeker, stderr io.Writer) (lastWords error) {
	if _, err := log.Seek(0, io.SeekStart); err != nil {
		return err
	}
	lines := bufio.NewScanner(log)
	for lines.Scan() {
		var entry struct{ Level, Message, Error string }
		switch {
		case !bytes.HasPrefix(lines.Bytes(), []byte("{")):
			lastWords = errors.New(strings.TrimPrefix(lines.Text(), "bttnbd: "))
		case json.Unmarshal(lines.Bytes(), &entry) == nil && entry.Level == "warn":
			if entry.Error != "" {
				entry.Message += ": " + strings.ReplaceAll(entry.Error, "\n", "; ")
			}
			fmt.Fprintf(stderr, "bttnbd: warning: %s\n", visible(entry.Message))
		}
	}
	return lastWords
}

// waitingParent is the pipe to the parent, or nil if nobody waits there. It is not
// passed on to anybody.
func waitingParent() *os.File {
	fd, err := strconv.Atoi(os.Getenv(readyVariable))
	if err != nil {
		return nil
	}
	os.Unsetenv(readyVariable)
	return os.NewFile(uintptr(fd), "pipe to the parent")
}

func tellParent(parent *os.File, d kernel.Device, note string) error {
	defer parent.Close()
	_, err := fmt.Fprintf(parent, "%s\n%s\n", d.Path(), note)
	return err
}
