package clienttest

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/bttnbd/bttnbd/nbd/nbdtest"
)

// A peer is another NBD server, and what of the suite it is known to do
// otherwise. Its table is how the suite is tested: a case that nobody else passes
// may be wrong about the protocol.
type peer struct {
	name       string
	needs      string
	command    func(t *testing.T, socket string) []string
	export     string
	deviations map[string]string
	races      map[string]string
}

// Goal: the conformance suite holds against the real binary, and against the
// servers that Debian has, but for what is listed.
func TestConformance(t *testing.T) {
	t.Run("bttnbd", func(t *testing.T) {
		img := create(t, tmpfs(t), 64*mib, 4096)
		s := serve(t, img)
		nbdtest.Conformance(t, dialer(t, s.socket), nbdtest.Options{Complete: true})
		s.stop(t)
		img.check(t)
	})
	for _, p := range peers {
		t.Run(p.name, func(t *testing.T) {
			need(t, p.needs)
			socket := filepath.Join(socketDir(t), "nbd.sock")
			startPeer(t, socket, p.command(t, socket))
			nbdtest.Conformance(t, dialer(t, socket), nbdtest.Options{
				Export: p.export, Deviations: p.deviations, Races: p.races, Patience: 5 * time.Second,
			})
		})
	}
}

// dialer returns a function that connects to a unix socket.
func dialer(t *testing.T, socket string) func() net.Conn {
	return func() net.Conn {
		c, err := net.Dial("unix", socket)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
}

// startPeer runs a server until the end of the test, and returns when it listens.
func startPeer(t *testing.T, socket string, command []string) {
	t.Helper()
	log := &lockedBuffer{}
	cmd := exec.Command(command[0], command[1:]...)
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
		if t.Failed() {
			t.Logf("%v:\n%s", cmd, log)
		}
	})
	eventually(t, command[0]+" to listen", func() bool {
		c, err := net.Dial("unix", socket)
		if err == nil {
			c.Close()
		}
		return err == nil
	})
}

// endDaemon kills at the end of the test what has put itself into the background.
func endDaemon(t *testing.T, pidFile string) {
	t.Cleanup(func() {
		text, err := os.ReadFile(pidFile)
		if err != nil {
			t.Error(err)
			return
		}
		pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
		if err == nil {
			err = syscall.Kill(pid, syscall.SIGKILL)
		}
		if err != nil {
			t.Errorf("%s: %q: %v", pidFile, text, err)
		}
	})
}

// peerImage makes a file of 64 MiB for a server that needs one.
func peerImage(t *testing.T) string {
	t.Helper()
	path := filepath.Join(tmpfs(t), "disk")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, 64*mib); err != nil {
		t.Fatal(err)
	}
	return path
}

var peers = []peer{
	{
		name: "nbdkit", needs: "nbdkit",
		command: func(t *testing.T, socket string) []string {
			return []string{"nbdkit", "--foreground", "--unix", socket, "memory", "64M"}
		},
		deviations: map[string]string{
			"handshake/go-to-unknown-export":      "the memory plugin has every export there is",
			"handshake/export-name-unknown-drops": "the memory plugin has every export there is",
			"meta/unknown-export":                 "the memory plugin has every export there is",
			"simple/empty-requests":               "EINVAL, where the document leaves the answer open",
			"structured/empty-requests":           "EINVAL, where the document leaves the answer open",
			"structured/error-with-message":       "no messages",
		},
	},
	{
		name: "qemu-nbd", needs: "qemu-nbd", export: "disk",
		command: func(t *testing.T, socket string) []string {
			return []string{"qemu-nbd", "--socket", socket, "--export-name", "disk", "--persistent", "--shared=8", "--format=raw", "--discard=unmap", peerImage(t)}
		},
		deviations: map[string]string{
			"simple/past-the-end":         "EINVAL for WRITE too",
			"simple/far-past-the-end":     "EINVAL for WRITE too",
			"simple/wrap-around":          "EINVAL for WRITE too",
			"simple/bad-magic-drops":      "answers EINVAL before it closes",
			"structured/past-the-end":     "EINVAL for WRITE too",
			"structured/far-past-the-end": "EINVAL for WRITE too",
			"structured/wrap-around":      "EINVAL for WRITE too",
			"structured/bad-magic-drops":  "answers EINVAL before it closes",
		},
		races: map[string]string{
			"simple/disconnect-answers-first":     "may close before it answers what is in flight",
			"structured/disconnect-answers-first": "may close before it answers what is in flight",
		},
	},
	{
		name: "nbd-server", needs: "nbd-server", export: "disk",
		command: func(t *testing.T, socket string) []string {
			config, pidFile := filepath.Join(t.TempDir(), "config"), filepath.Join(t.TempDir(), "pid")
			text := fmt.Sprintf("[generic]\nunixsock = %s\nallowlist = true\n[disk]\nexportname = %s\nflush = true\nfua = true\ntrim = true\n", socket, peerImage(t))
			if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			endDaemon(t, pidFile)
			return []string{"nbd-server", "-C", config, "-p", pidFile}
		},
		deviations: map[string]string{
			"handshake/unknown-client-flag-drops": "takes unknown client flags",
			"handshake/abort":                     "closes without an ACK",
			"handshake/abort-with-data":           "closes without an ACK",
			"handshake/list-with-data":            "sends two replies",
			"handshake/info-and-go-agree":         "INFO tells a size of 0",
			"handshake/go-malformed":              "does not skip the rest, and loses step",
			"handshake/go-with-too-few-wishes":    "waits for more data than the option has",
			"handshake/go-to-long-name":           "does not skip the rest, and loses step",
			"simple/misplaced-flag":               "takes NO_HOLE on a WRITE",
		},
	},
}
