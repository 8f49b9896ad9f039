package attach

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"testing"

	"github.com/rs/zerolog"

	"github.com/bttnbd/bttnbd/internal/kernel"
	"github.com/bttnbd/bttnbd/nbd"
)

// Goal: while an image grows nothing is executed, and the image is closed; what the
// kernel has sent meanwhile is answered afterwards, once, whatever became of the growth.
// The sizes are told to who has asked, and kept. There is no device here: that the
// kernel refuses the new size is the outcome of a growth that succeeds.
func TestGrowUnderLoad(t *testing.T) {
	for name, failure := range map[string]error{"grown": nil, "failed": errors.New("no room")} {
		t.Run(name, func(t *testing.T) {
			s, b, k := serving(t)
			s.setup.Index = 1 << 19 // nobody's
			ours, theirs := packets(t)
			var closed closer
			s.source.(*imageSource).image.Closer = &closed
			s.o.Grow = func(want Growth, _ fs.FileInfo) (Growth, error) {
				if !closed {
					t.Error("the image is still open")
				}
				write(t, k, writeOf(7, 0, make([]byte, 4096)))
				if want.Size != 2*size || b.writes.Load() != 0 {
					t.Errorf("asked for %+v, %d writes executed", want, b.writes.Load())
				}
				return Growth{Usable: size + 4097}, failure
			}
			if err := s.grow(grower{ours, Growth{Size: 2 * size}}); err != nil {
				t.Fatal(err)
			}
			m, _, err := receive(theirs)
			if err != nil {
				t.Fatal(err)
			}
			want, kept := "no room", uint64(size)
			if failure == nil {
				want, kept = "the image has grown, but /dev/nbd0 has not: ", size+4096
			}
			if !strings.HasPrefix(m.Error, want) || s.setup.Size != kept {
				t.Errorf("told %+v, kept %d", m, s.setup.Size)
			}
			reply(t, k, 7)
			if n := b.writes.Load(); n != 1 {
				t.Errorf("%d writes executed", n)
			}
			write(t, k, commandOf(nbd.NBD_CMD_DISC, 8))
			s.keeping.Wait()
		})
	}
}

type closer bool

func (c *closer) Close() error {
	*c = true
	return nil
}

// Goal: another image that has got the path while the image was closed is not served
// under the device, which waits: neither one with another UUID, nor a copy of it, nor
// one that has other blocks. The file that was open is told to whoever makes it grow.
func TestGrowSwapped(t *testing.T) {
	files := twoFiles(t)
	for name, swap := range map[string]func(*Image){
		"another uuid": func(im *Image) { im.Backend = "another" },
		"a copy":       func(im *Image) { im.File = files[1] },
		"other blocks": func(im *Image) { im.BlockSize *= 2 },
		"the same":     nil,
	} {
		t.Run(name, func(t *testing.T) {
			s, b, k := serving(t)
			s.setup.Index = 1 << 19 // nobody's
			source := s.source.(*imageSource)
			source.image.File, source.image.Closer = files[0], new(closer)
			open, closed := source.open, closer(false)
			source.open = func() (*Image, error) {
				im, err := open()
				if im.File = files[0]; swap != nil {
					swap(im)
				}
				im.Closer = &closed
				return im, err
			}
			s.o.Grow = func(_ Growth, is fs.FileInfo) (Growth, error) {
				if is != files[0] {
					t.Error("another file is to grow")
				}
				write(t, k, writeOf(7, 0, make([]byte, 4096)))
				return Growth{Usable: 2 * size}, nil
			}
			ours, theirs := packets(t)
			err := s.grow(grower{ours, Growth{}})
			m, _, told := receive(theirs)
			if swap == nil {
				if err != nil || bool(closed) {
					t.Errorf("%v, closed: %v", err, closed)
				}
				reply(t, k, 7)
				write(t, k, commandOf(nbd.NBD_CMD_DISC, 8))
				s.keeping.Wait()
				return
			}
			if err == nil || !strings.Contains(err.Error(), "again after it has grown: ") || told != nil || m.Error == "" || !bool(closed) || b.writes.Load() != 0 {
				t.Errorf("%v, told %+v, %v; closed: %v; %d writes executed", err, m, told, closed, b.writes.Load())
			}
		})
	}
}

// Goal: what cannot grow under its device is refused, and goes on being served.
func TestGrowRefused(t *testing.T) {
	s, _, k := serving(t)
	s.o.Grow = func(Growth, fs.FileInfo) (Growth, error) { panic("grown") }
	s.source.(*imageSource).image.Export.ReadOnly = true
	remote := &Service{source: &remoteSource{}, o: Options{Log: zerolog.Nop()}}
	for want, s := range map[string]*Service{"attached read-only": s, "on another server": remote} {
		ours, theirs := packets(t)
		if err := s.grow(grower{ours, Growth{}}); err != nil {
			t.Fatal(err)
		}
		if m, _, err := receive(theirs); err != nil || !strings.Contains(m.Error, want) {
			t.Errorf("%+v, %v; want %q", m, err, want)
		}
	}
	write(t, k, writeOf(7, 0, make([]byte, 4096)))
	reply(t, k, 7)
	write(t, k, commandOf(nbd.NBD_CMD_DISC, 8))
	s.keeping.Wait()
}

// Goal: a device that waits is revived with the image that it had, or with that image
// after it has grown, and not with one that is smaller; behind a server, whose image may
// be any, with one of the same size.
func TestReviveAfterGrowth(t *testing.T) {
	for _, c := range []struct {
		image  uint64
		remote bool
		ok     bool
	}{{size, false, true}, {2 * size, false, true}, {size / 2, false, false}, {size, true, true}, {2 * size, true, false}} {
		root := t.TempDir()
		d := kernel.DeviceIn(root, 0)
		sys := root + "/sys/block/nbd0"
		err := errors.Join(os.MkdirAll(sys+"/queue", 0o755), os.WriteFile(sys+"/size", fmt.Append(nil, size/512), 0o600),
			os.WriteFile(sys+"/queue/logical_block_size", []byte("4096"), 0o600))
		if err != nil {
			t.Fatal(err)
		}
		s := &Service{setup: kernel.Setup{Size: c.image, BlockSize: 4096}}
		if c.remote {
			s.o.Remote = &Remote{}
		}
		if err := s.sameShape(d); (err == nil) != c.ok {
			t.Errorf("a device of %d bytes, and %+v: %v", size, c, err)
		}
	}
}
