package cli

import (
	"bytes"
	"context"
	"io"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/google/uuid"
	"github.com/spf13/pflag"

	"github.com/bttnbd/bttnbd/check"
	"github.com/bttnbd/bttnbd/internal/units"
	"github.com/bttnbd/bttnbd/layout"
	"github.com/bttnbd/bttnbd/pmem"
)

func TestCreateRace(t *testing.T) {
	// Goal: of several that make an image of the same empty file, each of another size,
	// one succeeds and the others are refused; the image is that of the one, and whole.
	// The same of a file that is not there.
	for round := range 60 {
		path := filepath.Join(t.TempDir(), "image")
		if round%2 == 0 {
			if err := os.WriteFile(path, nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		var wg sync.WaitGroup
		start := make(chan struct{})
		errs := make([]error, 4)
		for i := range errs {
			o := createOptions{path: path}
			o.addFlags(pflag.NewFlagSet("", pflag.ContinueOnError))
			o.size = sizeFlag(mib(17 + i))
			wg.Go(func() {
				<-start
				errs[i] = runCreate(context.Background(), io.Discard, io.Discard, o)
			})
		}
		close(start)
		wg.Wait()
		var won []int
		for i, err := range errs {
			if err == nil {
				won = append(won, i)
			}
		}
		if len(won) != 1 {
			t.Fatalf("round %d: %d have made the image: %v", round, len(won), errs)
		}
		r, err := pmem.Open(path, pmem.Options{ReadOnly: true})
		if err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		rep, err := check.Run(context.Background(), r, check.Options{})
		if err != nil || !rep.Clean() || rep.Size != mib(17+won[0]) {
			t.Fatalf("round %d: %s instead of %d MiB: %+v, %v", round, units.Human(r.Size()), 17+won[0], rep, err)
		}
		if err := r.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func mib(n int) uint64 { return uint64(n) << 20 }

// Goal: an image of the size that is advised has room for what is to be copied into it,
// and not much more.
func TestRoomFor(t *testing.T) {
	spec := imageSpec{sectorSize: 4096, flavour: layout.Kernel}
	room := func(n uint64) {
		t.Helper()
		size := roomFor(n)
		p, err := spec.plan(size)
		if err != nil || p.usable < n || size > max(n+n/500+3<<20, layout.MinArenaSize+1<<20) {
			t.Errorf("%d bytes: an image of %d has %d for data: %v", n, size, p.usable, err)
		}
	}
	for n := uint64(1); n < 64<<20; n += 37 << 10 {
		room(n)
	}
	for _, n := range []uint64{1 << 30, 511 << 30, layout.MaxArenaSize - 1, layout.MaxArenaSize, layout.MaxArenaSize + 1, 600 << 30, 5 << 40} {
		room(n)
	}
}

// Goal: what is laid out is the file that was opened and looked at, also when its path
// has come to name another one since: that one keeps every byte. The same for a file
// that was empty, and for the removal of one that could not be made.
func TestCreateGoesByWhatIsOpen(t *testing.T) {
	precious := bytes.Repeat([]byte("precious"), 4096)
	tests := map[string]func(t *testing.T, path string, moved func()) error{
		"another size": func(t *testing.T, path string, moved func()) error {
			write(t, path, make([]byte, mib(17)))
			r := open(t, path, pmem.Options{})
			moved()
			s := imageSpec{path: path, size: mib(20), sectorSize: 4096, flavour: layout.Kernel, force: true, uuid: uuid.New()}
			_, err := s.overwrite(t.Context(), r)
			return err
		},
		"the same size": func(t *testing.T, path string, moved func()) error {
			write(t, path, make([]byte, mib(20)))
			r := open(t, path, pmem.Options{})
			moved()
			s := imageSpec{path: path, sectorSize: 4096, flavour: layout.Kernel, force: true, allocate: true, uuid: uuid.New()}
			_, err := s.overwrite(t.Context(), r)
			return err
		},
		"an empty file": func(t *testing.T, path string, moved func()) error {
			write(t, path, nil)
			r := open(t, path, pmem.Options{SizeIfEmpty: mib(20)})
			moved()
			s := imageSpec{path: path, size: mib(20), sectorSize: 4096, flavour: layout.Kernel, uuid: uuid.New()}
			_, err := s.layOutEmpty(t.Context(), r)
			return err
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "image")
			err := tt(t, path, func() {
				if err := os.Rename(path, path+".moved"); err != nil {
					t.Fatal(err)
				}
				write(t, path, precious)
			})
			if err != nil {
				t.Fatal(err)
			}
			if b, err := os.ReadFile(path); err != nil || !bytes.Equal(b, precious) {
				t.Errorf("the other file: %d bytes, %v", len(b), err)
			}
			rep, err := check.Run(t.Context(), open(t, path+".moved", pmem.Options{ReadOnly: true, NoLock: true}), check.Options{})
			if err != nil || !rep.Clean() || rep.Size != mib(20) {
				t.Errorf("the image: %+v, %v", rep, err)
			}
		})
	}

	path := filepath.Join(t.TempDir(), "image")
	r, err := pmem.Create(path, mib(17), pmem.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if err := os.Rename(path, path+".moved"); err != nil {
		t.Fatal(err)
	}
	write(t, path, precious)
	if err := removeOwn(r); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(path); err != nil {
		t.Errorf("somebody else's file is gone: %v", err)
	}
}

func write(t *testing.T, path string, b []byte) {
	t.Helper()
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

func open(t *testing.T, path string, o pmem.Options) *pmem.Region {
	t.Helper()
	r, err := pmem.Open(path, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return r
}
