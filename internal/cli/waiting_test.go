package cli

import (
	"bytes"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rs/zerolog"

	"github.com/bttnbd/bttnbd/internal/kernel"
)

// waitFor has d, which the kernel need not have, wait for the file at path.
func waitFor(t *testing.T, d kernel.Device, path string) {
	t.Helper()
	was := waiting
	t.Cleanup(func() { waiting = was })
	awaited, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	waiting = func(is fs.FileInfo) (kernel.Device, bool) { return d, os.SameFile(is, awaited) }
}

// Goal: an image that a device without a server waits for is not laid out anew, not
// grown under a ublk device, which keeps its size, and not served to others who could
// write: nothing in it changes, and the error names the device and the command that
// attaches it again. Serving it read-only, growing it under an NBD device, and all of
// it with another image are allowed.
func TestWaitedFor(t *testing.T) {
	nbd, ublk := kernel.DeviceOf(1<<19), kernel.UblkOf(1<<19)
	grow := func(path string) error {
		o := growOptions{path: path, size: 48 << 20, progress: newProgressFlag()}
		_, err := o.run(t.Context(), io.Discard)
		return err
	}
	create := func(path string) error {
		spec, err := (&createOptions{path: path, sectorSize: 4096, format: choiceFlag{value: "kernel"}, force: true}).spec()
		if err != nil {
			return err
		}
		_, err = spec.makeOver(t.Context())
		return err
	}
	serve := func(readOnly bool) func(path string) error {
		return func(path string) error {
			s := service{log: zerolog.Nop()}
			im, err := s.open(t.Context(), exportSpec{exportArg: exportArg{path: path}, readOnly: readOnly})
			if err == nil {
				err = im.close()
			}
			return err
		}
	}
	for _, c := range []struct {
		name   string
		device kernel.Device
		do     func(path string) error
		want   string // in the error, behind the path; "": it is allowed
	}{
		{"grow, ublk", ublk, grow, ": /dev/ublkb524288 was attached from it, has no server, and waits for it in this size: nothing was changed: attach it again (bttnbd attach --ublk /dev/ublkb524288 "},
		{"grow, nbd", nbd, grow, ""},
		{"create, ublk", ublk, create, "attach it again (bttnbd attach --ublk /dev/ublkb524288 "},
		{"create, nbd", nbd, create, "attach it again (bttnbd attach /dev/nbd524288 "},
		{"serve, ublk", ublk, serve(false), "or bttnbd detach /dev/ublkb524288 first"},
		{"serve, nbd", nbd, serve(false), "or bttnbd detach /dev/nbd524288 first"},
		{"serve read-only", nbd, serve(true), ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			path, other := filepath.Join(dir, "a.btt"), filepath.Join(dir, "b.btt")
			makeImage(t, path)
			makeImage(t, other)
			before, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			waitFor(t, c.device, path)
			err = c.do(path)
			switch {
			case c.want == "" && err != nil:
				t.Error(err)
			case c.want != "" && (err == nil || !strings.HasPrefix(err.Error(), path+": ") || !strings.Contains(err.Error(), c.want)):
				t.Errorf("%v, want %q", err, c.want)
			}
			if after, err := os.ReadFile(path); c.want != "" && (err != nil || !bytes.Equal(before, after)) {
				t.Errorf("the image has changed; %v", err)
			}
			if err := c.do(other); err != nil {
				t.Errorf("another image: %v", err)
			}
		})
	}
}

// Goal: the command that attaches a device again can be pasted, for paths and for URIs.
func TestAttachAgain(t *testing.T) {
	for source, want := range map[string]string{
		"/srv/my disk.btt":                   "bttnbd attach /dev/nbd524288 '/srv/my disk.btt'",
		"nbd+unix:///?socket=/run/disk.sock": "bttnbd attach /dev/nbd524288 'nbd+unix:///?socket=/run/disk.sock'",
	} {
		if got := attachAgain(kernel.DeviceOf(1<<19), source); got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
}
