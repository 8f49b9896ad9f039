package clienttest

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"maps"
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
	command    func(t *testing.T, socket, certificates string) []string // no certificates: no TLS
	export     string
	deviations map[string]string
	races      map[string]string
	forced     bool              // with TLS, nothing without it
	tls        map[string]string // deviations with TLS, besides the others
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
			startPeer(t, socket, p.command(t, socket, ""))
			nbdtest.Conformance(t, dialer(t, socket), nbdtest.Options{
				Export: p.export, Deviations: p.deviations, Races: p.races, Patience: 5 * time.Second,
			})
		})
	}
}

// Goal: all of it again over TLS, and what concerns TLS alone.
func TestConformanceTLS(t *testing.T) {
	pki := newPKI(t)
	config := pki.config(t, pki.alice)
	for mode, verify := range map[string]string{"on": "--tls-verify-peer=false", "require": "--tls-verify-peer"} {
		t.Run("bttnbd/"+mode, func(t *testing.T) {
			img := create(t, tmpfs(t), 64*mib, 4096)
			s := serve(t, img, "--tls", mode, "--tls-certificates", pki.server, verify)
			nbdtest.Conformance(t, dialer(t, s.socket), nbdtest.Options{Complete: true, TLS: config, TLSRequired: mode == "require"})
			s.stop(t)
			img.check(t)
		})
	}
	for _, p := range peers {
		t.Run(p.name, func(t *testing.T) {
			need(t, p.needs)
			socket := filepath.Join(socketDir(t), "nbd.sock")
			startPeer(t, socket, p.command(t, socket, pki.server))
			deviations := maps.Clone(p.deviations)
			maps.Copy(deviations, p.tls)
			nbdtest.Conformance(t, dialer(t, socket), nbdtest.Options{
				Export: p.export, Deviations: deviations, Races: p.races, Patience: 5 * time.Second, TLS: config, TLSRequired: p.forced,
			})
		})
	}
}

// config is that of a Go client with the certificate in dir.
func (p *pki) config(t *testing.T, dir string) *tls.Config {
	t.Helper()
	cert, err := tls.LoadX509KeyPair(filepath.Join(dir, "client-cert.pem"), filepath.Join(dir, "client-key.pem"))
	if err != nil {
		t.Fatal(err)
	}
	c := &tls.Config{RootCAs: x509.NewCertPool(), ServerName: "localhost", Certificates: []tls.Certificate{cert}}
	c.RootCAs.AddCert(p.cert)
	return c
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

// qemuNBD is the command line of a qemu-nbd.
func qemuNBD(t *testing.T, program, socket, certificates string) []string {
	c := []string{program, "--socket", socket, "--export-name", "disk", "--persistent", "--shared=8", "--format=raw", "--discard=unmap"}
	if certificates != "" {
		c = append(c, "--object", "tls-creds-x509,id=t,endpoint=server,verify-peer=off,dir="+certificates, "--tls-creds", "t")
	}
	return append(c, peerImage(t))
}

// qemuDeviations are what qemu-nbd does otherwise in the forms that it has.
func qemuDeviations(forms ...string) map[string]string {
	d := make(map[string]string)
	for _, f := range forms {
		d[f+"/past-the-end"] = "EINVAL for WRITE too"
		d[f+"/far-past-the-end"] = "EINVAL for WRITE too"
		d[f+"/wrap-around"] = "EINVAL for WRITE too"
		d[f+"/bad-magic-drops"] = "answers EINVAL before it closes"
		if f == "extended" {
			d["extended/payload-beyond-maximum-drops"] = "answers EINVAL"
			d["extended/length-of-64-bits"] = "EINVAL for WRITE_ZEROES past the end"
		}
	}
	return d
}

// atDisconnect says what a server with threads may do to what is in flight.
func atDisconnect(does string, forms ...string) map[string]string {
	r := make(map[string]string)
	for _, f := range forms {
		r[f+"/disconnect-answers-first"] = does
	}
	return r
}

func qemuRaces(forms ...string) map[string]string {
	return atDisconnect("may close before it answers what is in flight", forms...)
}

var qemuTLS = map[string]string{
	"tls/version-1.1-is-refused": "speaks it: Debian's GnuTLS decides",
	"tls/starttls-with-data":     "closes without an answer",
	"tls/not-required-for-abort": "refuses ABORT, too",
	noCloseNotify:                "none",
}

const noCloseNotify = "tls/close-notify-at-the-end"

// What nbdkit 1.32 does to the payload of a WRITE that it refuses.
const skipsCipherText = "skips the payload of a refused WRITE in what comes from the socket, not from TLS, and waits for ever"

var peers = []peer{
	{
		name: "nbdkit", needs: "nbdkit",
		command: func(t *testing.T, socket, certificates string) []string {
			if certificates != "" {
				return []string{"nbdkit", "--foreground", "--tls=on", "--tls-certificates=" + certificates, "--unix", socket, "memory", "64M"}
			}
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
		races: atDisconnect("may answer ESHUTDOWN to what is in flight", "simple", "structured"),
		tls: map[string]string{
			"tls/version-1.1-is-refused":  "speaks it: Debian's GnuTLS decides",
			"simple/past-the-end":         skipsCipherText,
			"simple/far-past-the-end":     skipsCipherText,
			"simple/wrap-around":          skipsCipherText,
			"simple/unknown-flag":         skipsCipherText,
			"simple/misplaced-flag":       skipsCipherText,
			"structured/past-the-end":     skipsCipherText,
			"structured/far-past-the-end": skipsCipherText,
			"structured/wrap-around":      skipsCipherText,
			"structured/unknown-flag":     skipsCipherText,
			"structured/misplaced-flag":   skipsCipherText,
			"structured/df-on-write":      skipsCipherText,
		},
	},
	{
		name: "qemu-nbd", needs: "qemu-nbd", export: "disk", forced: true,
		command: func(t *testing.T, socket, certificates string) []string {
			return qemuNBD(t, "qemu-nbd", socket, certificates)
		},
		deviations: qemuDeviations("simple", "structured"),
		races:      qemuRaces("simple", "structured"),
		tls:        qemuTLS,
	},
	{
		name: "qemu-nbd-10", needs: "qemu-nbd", export: "disk", forced: true,
		command: func(t *testing.T, socket, certificates string) []string {
			return qemuNBD(t, qemu10(t, "qemu-nbd"), socket, certificates)
		},
		deviations: qemuDeviations("simple", "structured", "extended"),
		races:      qemuRaces("simple", "structured", "extended"),
		tls:        qemuTLS,
	},
	{
		name: "nbd-server", needs: "nbd-server", export: "disk", forced: true,
		command: func(t *testing.T, socket, certificates string) []string {
			tls := ""
			if certificates != "" {
				tls = fmt.Sprintf("certfile = %[1]s/server-cert.pem\nkeyfile = %[1]s/server-key.pem\ncacertfile = %[1]s/ca-cert.pem\nforce_tls = true\n", certificates)
			}
			config, pidFile := filepath.Join(t.TempDir(), "config"), filepath.Join(t.TempDir(), "pid")
			text := fmt.Sprintf("[generic]\nunixsock = %s\nallowlist = true\n%s[disk]\nexportname = %s\nflush = true\nfua = true\ntrim = true\n", socket, tls, peerImage(t))
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
		tls: map[string]string{
			"tls/version-1.1-is-refused": "speaks it: Debian's GnuTLS decides",
			"tls/starttls-with-data":     "waits for the TLS handshake",
			"tls/not-required-for-abort": "closes without an ACK",
			noCloseNotify:                "none",
		},
	},
}
