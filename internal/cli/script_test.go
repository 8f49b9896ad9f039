package cli

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/bttnbd/bttnbd/internal/sandbox"
	"github.com/bttnbd/bttnbd/nbd"
	"github.com/bttnbd/bttnbd/nbd/nbdtest"
)

// TestMain makes this test binary be bttnbd and bttcheck when a script calls them.
func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){
		"bttnbd":   func() { os.Exit(Main(NewRoot(), os.Args[1:], os.Stdout, os.Stderr)) },
		"bttcheck": func() { os.Exit(Main(NewCheck("bttcheck"), os.Args[1:], os.Stdout, os.Stderr)) },
		"deaf":     func() { os.Exit(Main(newDeaf(commonStatus), os.Args[1:], os.Stdout, os.Stderr)) },
		"deafsck":  func() { os.Exit(Main(newDeaf(fsckStatus), os.Args[1:], os.Stdout, os.Stderr)) },
	})
}

// newDeaf is a command that a first signal does not end. It prints a line when it
// is ready and one when the signal has come.
func newDeaf(status string) *cobra.Command {
	return &cobra.Command{Use: "deaf", Annotations: map[string]string{exitStatus: status}, RunE: func(cmd *cobra.Command, _ []string) error {
		fmt.Fprintln(cmd.OutOrStdout(), "ready")
		<-cmd.Context().Done()
		fmt.Fprintln(cmd.OutOrStdout(), context.Cause(cmd.Context()))
		select {}
	}}
}

// Goal: every command does what it says, and every bad input is refused with one
// line, the right exit code, and nothing changed.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:           "testdata/script",
		UpdateScripts: os.Getenv("UPDATE") != "", // rewrites goldens
		Setup: func(env *testscript.Env) error {
			env.Values[stateKey{}] = &scriptState{running: map[string]*process{}, sums: map[string]string{}}
			env.Setenv("PATH", env.Getenv("PATH")+":/usr/sbin:/sbin")
			env.Setenv("GORACE", quickExit)
			repo, err := filepath.Abs("../..")
			env.Setenv("REPO", repo)
			return err
		},
		Condition: func(cond string) (bool, error) {
			switch cond {
			case "root":
				return os.Getuid() == 0, nil
			case "landlock":
				return sandbox.Level() > 0, nil
			}
			return false, fmt.Errorf("unknown condition %s", cond)
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"exits":     cmdExits,
			"snapshot":  cmdSnapshot,
			"unchanged": cmdUnchanged,
			"start":     cmdStart,
			"signal":    cmdSignal,
			"reload":    cmdReload,
			"line":      cmdLine,
			"ended":     cmdEnded,
			"abandon":   cmdAbandon,
			"nbd":       cmdNBD,
			"poke":      cmdPoke,
			"families":  cmdFamilies,
		},
	})
}

// quickExit keeps the race detector from waiting a second at each exit.
const quickExit = "atexit_sleep_ms=0"

type stateKey struct{}

type scriptState struct {
	running map[string]*process
	sums    map[string]string
}

func state(ts *testscript.TestScript) *scriptState { return ts.Value(stateKey{}).(*scriptState) }

// exits CODE COMMAND ARG… runs a command and demands its exit code. An error is one
// line on stderr.
func cmdExits(ts *testscript.TestScript, _ bool, args []string) {
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	got := exitOf(ts, ts.Exec(args[1], args[2:]...))
	if got != want {
		ts.Fatalf("exit code %d, want %d", got, want)
	}
	reported := want == 0 || want == fsckDamage || slices.Contains(args, "--repair") && want <= fsckRepaired|fsckDamage
	if stderr := ts.ReadFile("stderr"); !reported && (strings.Count(stderr, "\n") != 1 || !strings.HasSuffix(stderr, "\n")) {
		ts.Fatalf("stderr must be one line, is %q", stderr)
	}
}

func exitOf(ts *testscript.TestScript, err error) int {
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		ts.Fatalf("%v", err)
	}
	if exit == nil {
		return 0
	}
	if status := exit.Sys().(syscall.WaitStatus); status.Signaled() {
		return 128 + int(status.Signal())
	}
	return exit.ExitCode()
}

// snapshot FILE… remembers contents and size; unchanged FILE… compares with that.
func cmdSnapshot(ts *testscript.TestScript, _ bool, args []string) {
	for _, name := range args {
		state(ts).sums[name] = checksum(ts, name)
	}
}

func cmdUnchanged(ts *testscript.TestScript, neg bool, args []string) {
	for _, name := range args {
		if same := checksum(ts, name) == state(ts).sums[name]; same == neg {
			ts.Fatalf("%s: unchanged is %v", name, same)
		}
	}
}

func checksum(ts *testscript.TestScript, name string) string {
	f, err := os.Open(ts.MkAbs(name))
	ts.Check(err)
	defer f.Close()
	h := sha256.New()
	n, err := io.Copy(h, f)
	ts.Check(err)
	return fmt.Sprintf("%d %x", n, h.Sum(nil))
}

// process is a command in the background.
type process struct {
	cmd    *exec.Cmd
	stdout *bufio.Reader
	stderr lockedBuffer
	lines  []string // read from stdout so far
}

// maxRuntime is when a command in the background is killed, so that a test of one
// which does not end fails.
const maxRuntime = time.Minute

// start NAME LINES COMMAND ARG… starts a command and returns when it has printed
// that many lines on stdout; line I of them is then in $NAME_I, from 1.
func cmdStart(ts *testscript.TestScript, _ bool, args []string) {
	name := args[0]
	want, err := strconv.Atoi(args[1])
	ts.Check(err)
	path, err := exec.LookPath(args[2])
	ts.Check(err)
	ctx, cancel := context.WithTimeout(context.Background(), maxRuntime)
	p := &process{cmd: exec.CommandContext(ctx, path, args[3:]...)}
	p.cmd.Dir = ts.MkAbs(".")
	p.cmd.Env = append(os.Environ(), "GORACE="+quickExit)
	p.cmd.Stderr = &p.stderr
	out, err := p.cmd.StdoutPipe()
	ts.Check(err)
	p.stdout = bufio.NewReader(out)
	ts.Check(p.cmd.Start())
	ts.Defer(func() { cancel(); p.cmd.Wait() })
	state(ts).running[name] = p
	for range want {
		p.readLine(ts)
		ts.Setenv(fmt.Sprintf("%s_%d", name, len(p.lines)), p.lines[len(p.lines)-1])
	}
	ts.Setenv(name+"_PID", strconv.Itoa(p.cmd.Process.Pid))
}

func (p *process) readLine(ts *testscript.TestScript) {
	line, err := p.stdout.ReadString('\n')
	if err != nil {
		p.cmd.Wait()
		ts.Fatalf("after %d lines of stdout: %v; stderr: %s", len(p.lines), err, p.stderr.String())
	}
	p.lines = append(p.lines, strings.TrimSuffix(line, "\n"))
}

func running(ts *testscript.TestScript, name string) *process {
	p := state(ts).running[name]
	if p == nil {
		ts.Fatalf("nothing of the name %s was started", name)
	}
	return p
}

// signal NAME TERM|INT|KILL
func cmdSignal(ts *testscript.TestScript, _ bool, args []string) {
	ts.Check(running(ts, args[0]).cmd.Process.Signal(unix.SignalNum("SIG" + args[1])))
}

// reload NAME TEXT sends SIGHUP and waits for the end of the reload, of which the log
// must say TEXT.
func cmdReload(ts *testscript.TestScript, _ bool, args []string) {
	const ended = `"message":"reload`
	p := running(ts, args[0])
	before := strings.Count(p.stderr.String(), ended)
	ts.Check(p.cmd.Process.Signal(unix.SIGHUP))
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(maxRuntime)
	for strings.Count(p.stderr.String(), ended) == before {
		select {
		case <-tick.C:
		case <-deadline:
			ts.Fatalf("no end of the reload: %s", p.stderr.String())
		}
	}
	log := p.stderr.String()
	if last := log[strings.LastIndex(log, ended):]; !strings.HasPrefix(last, `"message":"`+args[1]) {
		ts.Fatalf("want %q: %s", args[1], log)
	}
}

// lockedBuffer collects the output of a running process.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// line NAME TEXT reads the next line of stdout, which must be TEXT.
func cmdLine(ts *testscript.TestScript, _ bool, args []string) {
	p := running(ts, args[0])
	p.readLine(ts)
	if got := p.lines[len(p.lines)-1]; got != args[1] {
		ts.Fatalf("line %q, want %q", got, args[1])
	}
}

// ended NAME CODE waits until the command has ended, with that code and without
// another word on stdout, and puts its stderr into the file NAME.log.
func cmdEnded(ts *testscript.TestScript, _ bool, args []string) {
	p := running(ts, args[0])
	rest, err := io.ReadAll(p.stdout)
	ts.Check(err)
	got := exitOf(ts, p.cmd.Wait())
	ts.Check(os.WriteFile(ts.MkAbs(args[0]+".log"), []byte(p.stderr.String()), 0o600))
	if strconv.Itoa(got) != args[1] {
		ts.Fatalf("exit code %d, want %s; stderr: %s", got, args[1], p.stderr.String())
	}
	if len(rest) > 0 {
		ts.Fatalf("more on stdout: %q", rest)
	}
}

// abandon SOCKET leaves a unix socket as a killed server does: there, but dead.
func cmdAbandon(ts *testscript.TestScript, _ bool, args []string) {
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: ts.MkAbs(args[0]), Net: "unix"})
	ts.Check(err)
	l.SetUnlinkOnClose(false)
	ts.Check(l.Close())
}

// nbd URI write|read OFFSET TEXT stores or expects TEXT. nbd URI facts prints what
// the server says of the export. Both take the URI apart as a client would.
func cmdNBD(ts *testscript.TestScript, neg bool, args []string) {
	network, addr, export := dissect(ts, args[0])
	c, info, err := nbdtest.Dial(network, addr, export)
	if neg {
		if err == nil {
			ts.Fatalf("%s: connected", args[0])
		}
		return
	}
	ts.Check(err)
	defer c.Close()
	ts.Check(c.SetDeadline(time.Now().Add(30 * time.Second)))
	if args[1] == "facts" {
		fmt.Fprintf(ts.Stdout(), "size %d preferred %d minimum %d read-only %v\n", info.Size, info.Preferred, info.MinBlock, info.Flags&nbd.NBD_FLAG_READ_ONLY != 0)
		return
	}
	off, err := strconv.ParseUint(args[2], 0, 64)
	ts.Check(err)
	request := nbdtest.Read(7, off, uint32(len(args[3])))
	if args[1] == "write" {
		request = nbdtest.Write(7, off, []byte(args[3]))
	}
	reply, err := c.Do(request)
	ts.Check(err)
	if reply.Err != 0 {
		ts.Fatalf("%s at %d: %v", args[1], off, reply.Err)
	}
	if args[1] == "read" && string(reply.Data) != args[3] {
		ts.Fatalf("read %q at %d, want %q", reply.Data, off, args[3])
	}
	ts.Check(c.Disconnect())
}

func dissect(ts *testscript.TestScript, uri string) (network, addr, export string) {
	u, err := url.Parse(uri)
	ts.Check(err)
	export = strings.TrimPrefix(u.Path, "/")
	if u.Scheme == "nbd" {
		return "tcp", u.Host, export
	}
	return "unix", u.Query().Get("socket"), export
}

// families URI connects to localhost in both families.
func cmdFamilies(ts *testscript.TestScript, _ bool, args []string) {
	_, addr, export := dissect(ts, args[0])
	_, port, err := net.SplitHostPort(addr)
	ts.Check(err)
	for _, ip := range []string{"127.0.0.1", "::1"} {
		c, _, err := nbdtest.Dial("tcp", net.JoinHostPort(ip, port), export)
		ts.Check(err)
		ts.Check(c.Disconnect())
		c.Close()
	}
}

// poke FILE OFFSET HEX overwrites a few bytes of an image.
func cmdPoke(ts *testscript.TestScript, _ bool, args []string) {
	f, err := os.OpenFile(ts.MkAbs(args[0]), os.O_WRONLY, 0)
	ts.Check(err)
	off, err := strconv.ParseInt(args[1], 0, 64)
	ts.Check(err)
	b, err := hex.DecodeString(args[2])
	ts.Check(err)
	_, err = f.WriteAt(b, off)
	ts.Check(err)
	ts.Check(f.Close())
}
