package btt

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"sync"
	"syscall"
	"testing"

	"github.com/google/uuid"

	"github.com/bttnbd/bttnbd/layout"
	"github.com/bttnbd/bttnbd/pmem"
	"github.com/bttnbd/bttnbd/pmem/pmemtest"
)

// Small geometry for tests: arenas of 24 KiB, four lanes, blocks of 128 bytes.
const (
	testSector = 128
	testArena  = 24 << 10
)

func testParams(f layout.Flavour) FormatParams {
	return FormatParams{Flavour: f, SectorSize: testSector, Nfree: 4, UUID: uuid.UUID{1}, Zeroed: true, MinArena: testArena / 2, MaxArena: testArena}
}

// newDevice formats and opens arenas of heap memory.
func newDevice(t testing.TB, f layout.Flavour, arenas int) (*Device, *pmem.Region) {
	t.Helper()
	r := pmem.NewHeap(f.Start + uint64(arenas)*testArena)
	if err := Format(r, testParams(f)); err != nil {
		t.Fatal(err)
	}
	return reopen(t, r), r
}

func reopen(t testing.TB, r *pmem.Region) *Device {
	t.Helper()
	d, err := Open(r, Options{MaxArena: testArena})
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func fill(b byte, n int) []byte { return bytes.Repeat([]byte{b}, n) }

func mustRead(t testing.TB, d *Device, off int64, want []byte) {
	t.Helper()
	got := make([]byte, len(want))
	if _, err := d.ReadAt(got, off); err != nil {
		t.Fatalf("read of %d bytes at %d: %v", len(want), off, err)
	}
	if !bytes.Equal(got, want) {
		t.Fatalf("read of %d bytes at %d: got %x…, want %x…", len(want), off, got[:min(16, len(got))], want[:min(16, len(want))])
	}
}

func mustWrite(t testing.TB, d *Device, off int64, p []byte) {
	t.Helper()
	if n, err := d.WriteAt(p, off); err != nil || n != len(p) {
		t.Fatalf("write of %d bytes at %d: %d, %v", len(p), off, n, err)
	}
}

// Goal: the device is an array of bytes like any other, whatever mix of whole and
// partial blocks, across arenas, and after a reopen. Method: random operations
// beside a plain byte slice.
func TestModel(t *testing.T) {
	for _, f := range layout.Flavours() {
		t.Run(f.Name, func(t *testing.T) {
			d, r := newDevice(t, f, 3)
			model := make([]byte, d.Size())
			rng := rand.New(rand.NewPCG(1, 2))
			for i := range 4000 {
				off := rng.Int64N(int64(len(model)))
				n := min(1+rng.Int64N(40*testSector), int64(len(model))-off)
				switch rng.IntN(8) {
				case 0, 1, 2:
					p := fill(byte(i), int(n))
					mustWrite(t, d, off, p)
					copy(model[off:], p)
				case 3:
					if err := d.ZeroAt(off, n); err != nil {
						t.Fatal(err)
					}
					clear(model[off : off+n])
				case 4:
					if err := d.TrimAt(off, n); err != nil {
						t.Fatal(err)
					}
					first, end := (off+testSector-1)/testSector*testSector, (off+n)/testSector*testSector
					if first < end {
						clear(model[first:end])
					}
				case 5:
					d = reopen(t, r)
				default:
					mustRead(t, d, off, model[off:off+n])
				}
			}
			mustRead(t, d, 0, model)
		})
	}
}

// Goal: requests of one group that overlap are applied in their order, and each
// has an outcome of its own.
func TestWriteGroup(t *testing.T) {
	d, _ := newDevice(t, layout.Kernel, 1)
	errs := []error{errors.New("stale"), nil, nil, nil}
	d.WriteGroup(
		[]int64{0, 2 * testSector, int64(d.Size()), testSector},
		[][]byte{fill(1, 3*testSector), fill(2, testSector), fill(3, testSector), fill(4, 2*testSector)}, errs)
	if errs[0] != nil || errs[1] != nil || errs[3] != nil {
		t.Errorf("outcomes %v", errs)
	}
	if !errors.Is(errs[2], syscall.ENOSPC) {
		t.Errorf("write past the end: %v, want ENOSPC", errs[2])
	}
	mustRead(t, d, 0, append(fill(1, testSector), fill(4, 2*testSector)...))
}

// Goal: when a group is committed in rounds, because lanes are short, and a later
// round fails, the earlier rounds are not written again: another client may have
// written there since. Method: the first drain of the second round fails, after a
// write by somebody else to a block of the first round.
func TestRetryKeepsNewerWrite(t *testing.T) {
	_, r := newDevice(t, layout.Kernel, 1) // 4 lanes, 2 of which a group can have
	image := make([]byte, r.Size())
	r.Read(image, 0)
	m := pmemtest.New(image)
	d := reopen(t, m.Region())
	drains := 0
	var hook func() error
	hook = func() error {
		if drains++; drains != 4 {
			return nil
		}
		m.OnDrain, m.Lanes = nil, 1
		mustWrite(t, d, 0, fill(9, testSector))
		m.OnDrain = hook
		return syscall.EIO
	}
	m.OnDrain = hook
	errs := make([]error, 4)
	var offs []int64
	var data [][]byte
	for i := range errs {
		offs, data = append(offs, int64(i)*testSector), append(data, fill(byte(i+1), testSector))
	}
	d.WriteGroup(offs, data, errs)
	for i, err := range errs {
		if err != nil {
			t.Errorf("request %d: %v: it should have been tried again", i, err)
		}
	}
	mustRead(t, d, 0, fill(9, testSector))
	mustRead(t, d, testSector, fill(2, testSector))
	mustRead(t, d, 3*testSector, fill(4, testSector))
}

// Goal: every range that is not inside the device is refused with the errno that
// the protocol asks for, overflow included.
func TestRanges(t *testing.T) {
	d, _ := newDevice(t, layout.UEFI, 1)
	size := int64(d.Size())
	for _, c := range []struct{ off, n int64 }{{size, 1}, {size - 1, 2}, {-1, 1}, {1<<63 - 1, 1}, {size + 5, 0}} {
		if _, err := d.ReadAt(make([]byte, c.n), c.off); !errors.Is(err, syscall.EINVAL) {
			t.Errorf("read of %d at %d: %v, want EINVAL", c.n, c.off, err)
		}
		if err := d.ZeroAt(c.off, c.n); !errors.Is(err, syscall.ENOSPC) {
			t.Errorf("zero of %d at %d: %v, want ENOSPC", c.n, c.off, err)
		}
		if err := d.TrimAt(c.off, c.n); !errors.Is(err, syscall.EINVAL) {
			t.Errorf("trim of %d at %d: %v, want EINVAL", c.n, c.off, err)
		}
	}
	if err := d.ZeroAt(size, 0); err != nil {
		t.Errorf("nothing at the very end: %v", err)
	}
}

// Goal: an error entry fails reads of its block and nothing else, survives a
// reopen, and goes away when the block is written.
func TestErrorEntry(t *testing.T) {
	d, r := newDevice(t, layout.Kernel, 2)
	last := layout.ExternalLBA(d.nlba - 1)
	if err := d.SetError(last); err != nil {
		t.Fatal(err)
	}
	d = reopen(t, r)
	off := int64(last) * testSector
	p := make([]byte, testSector)
	if _, err := d.ReadAt(p, off); !errors.Is(err, syscall.EIO) {
		t.Errorf("read of a bad block: %v, want EIO", err)
	}
	if err := d.Readable(0, int64(d.Size())); !errors.Is(err, syscall.EIO) {
		t.Errorf("Readable: %v, want EIO", err)
	}
	if _, err := d.WriteAt([]byte{1}, off); !errors.Is(err, syscall.EIO) {
		t.Errorf("write to a part of a bad block: %v, want EIO", err)
	}
	mustRead(t, d, off-testSector, make([]byte, testSector))
	mustWrite(t, d, off, fill(7, testSector))
	mustRead(t, reopen(t, r), off, fill(7, testSector))
}

// Goal: an arena in error serves reads, refuses writes, and comes back after the
// flag is cleared; the other arena is not concerned.
func TestArenaError(t *testing.T) {
	d, r := newDevice(t, layout.UEFI, 2)
	mustWrite(t, d, 0, fill(1, testSector))
	if err := d.SetArenaError(0, true); err != nil {
		t.Fatal(err)
	}
	d = reopen(t, r)
	if len(d.Warnings()) != 1 || d.Stats().ArenasFailed != 1 {
		t.Errorf("warnings %q, stats %+v", d.Warnings(), d.Stats())
	}
	mustRead(t, d, 0, fill(1, testSector))
	if _, err := d.WriteAt(fill(2, testSector), 0); !errors.Is(err, syscall.EIO) {
		t.Errorf("write: %v, want EIO", err)
	}
	if err := d.ZeroAt(0, testSector); !errors.Is(err, syscall.EIO) {
		t.Errorf("zero: %v, want EIO", err)
	}
	mustWrite(t, d, int64(d.Size())-testSector, fill(3, testSector))
	if err := d.SetArenaError(0, false); err != nil {
		t.Fatal(err)
	}
	mustWrite(t, reopen(t, r), 0, fill(2, testSector))
}

// Goal: a bad primary info block of any arena is made up for by its backup, with
// a warning and without a repair; with both bad the open fails and names the place.
func TestBackupInfo(t *testing.T) {
	for arena := range 2 {
		d, r := newDevice(t, layout.Kernel, 2)
		mustWrite(t, d, 0, fill(1, 3*testSector))
		a := d.arenas[arena]
		r.Store64(a.base+100*8, 1)
		d = reopen(t, r)
		if len(d.Warnings()) != 1 {
			t.Errorf("arena %d: warnings %q", arena, d.Warnings())
		}
		mustRead(t, d, 0, fill(1, 3*testSector))
		if r.Load64(a.base+100*8) != 1 {
			t.Error("open has repaired the primary without being asked")
		}
		r.Store64(a.base+a.geo.InfoOff+100*8, 1)
		var corrupt *CorruptError
		if _, err := Open(r, Options{MaxArena: testArena}); !errors.As(err, &corrupt) || corrupt.Arena != arena || corrupt.Offset != a.base {
			t.Errorf("arena %d, both copies bad: %v", arena, err)
		}
	}
}

// Goal: memory that holds no BTT, or two, is told apart from a damaged one.
func TestProbe(t *testing.T) {
	if _, err := Open(pmem.NewHeap(1<<20), Options{}); !errors.Is(err, ErrNoBTT) {
		t.Errorf("empty memory: %v", err)
	}
	if _, err := Open(pmem.NewHeap(100), Options{}); !errors.Is(err, ErrNoBTT) {
		t.Errorf("100 bytes: %v", err)
	}
	// A kernel BTT inside the first data blocks of a UEFI one. While its backup is
	// missing, the UEFI one is it.
	const size = 16 * testArena
	r := pmem.NewHeap(size)
	p := testParams(layout.UEFI)
	p.MaxArena = size
	if err := Format(r, p); err != nil {
		t.Fatal(err)
	}
	geo, err := layout.NewGeometry(testArena, layout.Params{ExternalLBASize: testSector, Nfree: 4, Align: 64})
	if err != nil {
		t.Fatal(err)
	}
	in := geo.Info(layout.Kernel, uuid.UUID{9}, uuid.UUID{}, 0)
	var raw [layout.InfoSize]byte
	in.Encode(raw[:])
	r.Write(4096, raw[:])
	isUEFI := func(what string) {
		t.Helper()
		if d, err := Open(r, Options{MaxArena: size}); err != nil || d.Flavour() != layout.UEFI {
			t.Errorf("%s: %v", what, err)
		}
	}
	isUEFI("a forged primary")
	r.Write(4096+in.InfoOff, raw[:])
	isUEFI("a whole forged BTT")
	r.Store64(size-104, 1) // the real backup
	isUEFI("a whole forged BTT, and the real backup bad")
	r.Store64(size-104, 0)
	r.Store64(2000, 1) // the real primary
	isUEFI("a whole forged BTT, and the real primary bad")
}

// Goal: nor does it help to point a forged primary at the real backup, or to put
// the forged backup into the data of another arena.
func TestProbeForgedAcrossArenas(t *testing.T) {
	const size = 16 * testArena
	r := pmem.NewHeap(2 * size)
	p := testParams(layout.UEFI)
	p.MaxArena = size
	if err := Format(r, p); err != nil {
		t.Fatal(err)
	}
	forge := func(infoOff uint64) {
		geo, err := layout.NewGeometry(testArena, layout.Params{ExternalLBASize: testSector, Nfree: 4, Align: 64})
		if err != nil {
			t.Fatal(err)
		}
		in := geo.Info(layout.Kernel, uuid.UUID{9}, uuid.UUID{}, 0)
		in.InfoOff = infoOff
		var raw [layout.InfoSize]byte
		in.Encode(raw[:])
		r.Write(4096, raw[:])
		if infoOff != size-layout.InfoSize-4096 {
			r.Write(4096+infoOff, raw[:])
		}
	}
	isUEFI := func(what string) {
		t.Helper()
		if d, err := Open(r, Options{MaxArena: size}); err != nil || d.Flavour() != layout.UEFI {
			t.Errorf("%s: %v", what, err)
		}
	}
	forge(size + 8*4096) // in the data of arena 1
	isUEFI("forged backup in the next arena")
	forge(size - layout.InfoSize - 4096) // the real backup
	isUEFI("forged primary that points at the real backup")
	r.Store64(2000, 1) // the real primary
	isUEFI("the same, and the real primary bad")
}

// Goal: when nothing tells which of two BTTs is meant, neither is opened.
func TestAmbiguous(t *testing.T) {
	_, r := newDevice(t, layout.Kernel, 1)
	geo, err := layout.NewGeometry(testArena, layout.Params{ExternalLBASize: testSector, Nfree: 4, Align: 64})
	if err != nil {
		t.Fatal(err)
	}
	in := geo.Info(layout.UEFI, uuid.UUID{9}, uuid.UUID{}, 0)
	var raw [layout.InfoSize]byte
	in.Encode(raw[:])
	r.Write(0, raw[:])
	if d := reopen(t, r); d.Flavour() != layout.Kernel {
		t.Errorf("a left-over in the first page, and it was taken for %s", d.Flavour().Name)
	}
	r.Store64(r.Size()-104, 1) // the kernel's backup
	if _, err := Open(r, Options{MaxArena: testArena}); !errors.Is(err, ErrAmbiguous) {
		t.Errorf("two BTTs with one info block each: %v", err)
	}
}

// Goal: a format over anything leaves a device that reads as zeros, and nothing
// of another flavour that would win a probe.
func TestFormatOverGarbage(t *testing.T) {
	for _, sector := range []uint32{128, 512, 4096} {
		for _, f := range layout.Flavours() {
			_, r := newDevice(t, layout.UEFI, 4)
			garbage := fill(0xa5, 4096)
			for off := uint64(8192); off < r.Size(); off += 4096 {
				if off%testArena != 0 && off%testArena != testArena-4096 {
					r.Write(off, garbage)
				}
			}
			p := testParams(f)
			p.SectorSize, p.Zeroed, p.MaxArena = sector, false, 4*testArena
			if err := Format(r, p); err != nil {
				t.Fatal(err)
			}
			d, err := Open(r, Options{MaxArena: 4 * testArena})
			if err != nil {
				t.Fatal(err)
			}
			if d.Flavour() != f || d.SectorSize() != sector {
				t.Errorf("%s/%d: opened as %s/%d", f.Name, sector, d.Flavour().Name, d.SectorSize())
			}
			mustRead(t, d, 0, make([]byte, d.Size()))
			mustWrite(t, d, 0, fill(1, int(d.Size())))
			mustRead(t, d, 0, fill(1, int(d.Size())))
		}
	}
}

// Goal: an image cannot make an open ask for more memory than is sensible.
func TestLimits(t *testing.T) {
	d, r := newDevice(t, layout.Kernel, 1)
	in := d.arenas[0].geo.Info(layout.Kernel, uuid.UUID{1}, uuid.UUID{}, 0)
	in.Nfree = maxLanes + 1
	in.InternalNLBA = in.ExternalNLBA + in.Nfree
	var raw [layout.InfoSize]byte
	in.Encode(raw[:])
	r.Write(4096, raw[:])
	r.Write(4096+in.InfoOff, raw[:])
	var field *layout.FieldError
	if _, err := Open(r, Options{MaxArena: testArena}); !errors.As(err, &field) || field.Field != "nfree" {
		t.Errorf("%d lanes: %v", in.Nfree, err)
	}
}

// Goal: after a wipe nothing finds a BTT any more, whichever flavour and however
// many arenas it had, and nothing else has changed.
func TestWipe(t *testing.T) {
	for _, f := range layout.Flavours() {
		_, r := newDevice(t, f, 3)
		before := make([]byte, r.Size())
		r.Read(before, 0)
		if err := Wipe(r); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(r, Options{MaxArena: testArena}); err == nil {
			t.Errorf("%s: still opens", f.Name)
		}
		after := make([]byte, r.Size())
		r.Read(after, 0)
		changed := 0
		for i := range before {
			if before[i] != after[i] {
				changed++
			}
		}
		if changed == 0 || changed > (3*2+1)*8 { // info blocks, and a pool's header
			t.Errorf("%s: %d bytes changed", f.Name, changed)
		}
	}
}

// Goal: under -race, no reader ever sees a mix of two writes, and no access races
// with the reuse of a block. Method: a few hot blocks, writers that fill a block
// with one byte, readers that look for a second one.
func TestConcurrent(t *testing.T) {
	d, r := newDevice(t, layout.Kernel, 1)
	const hot, rounds = 24, 3000
	var wg sync.WaitGroup
	for w := range 6 {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(w), 1))
			buf := make([]byte, 3*testSector)
			for range rounds {
				off := rng.Int64N(hot) * testSector
				switch {
				case w < 3:
					mustReadUniform(t, d, buf[:testSector], off)
				case rng.IntN(8) == 0:
					if err := d.ZeroAt(off, testSector); err != nil {
						t.Error(err)
					}
				default:
					n := testSector * (1 + rng.IntN(3))
					for i := range buf[:n] {
						buf[i] = byte(w)
					}
					if _, err := d.WriteAt(buf[:n], off); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	wg.Wait()
	if s := d.Stats(); s.BlocksWritten == 0 || s.Groups == 0 || s.BlocksMarked == 0 || s.BlocksRead == 0 {
		t.Errorf("stats %+v", s)
	}
	reopen(t, r)
}

func mustReadUniform(t *testing.T, d *Device, p []byte, off int64) {
	if _, err := d.ReadAt(p, off); err != nil {
		t.Error(err)
	}
	for _, b := range p {
		if b != p[0] {
			t.Errorf("torn read at %d: %x", off, p)
			return
		}
	}
}

// Goal: parts of one block written by different clients at once all arrive: the
// read-modify-write is atomic. Method: each of 16 writers owns 8 bytes of a block.
func TestPartialWritesAreAtomic(t *testing.T) {
	d, _ := newDevice(t, layout.Kernel, 1)
	var wg sync.WaitGroup
	for w := range 16 {
		wg.Go(func() {
			for i := range 500 {
				if _, err := d.WriteAt(fill(byte(i), 8), int64(w*8)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	mustRead(t, d, 0, fill(499%256, testSector))
}

// Goal: the data path allocates nothing.
func TestAllocations(t *testing.T) {
	d, _ := newDevice(t, layout.Kernel, 1)
	one, many := make([]byte, testSector), make([]byte, 20*testSector)
	offs, data, errs := []int64{0, 10 * testSector}, [][]byte{many[:5*testSector], one}, make([]error, 2)
	for name, f := range map[string]func(){
		"read":       func() { d.ReadAt(many, 0) },
		"write":      func() { d.WriteAt(one, 0) },
		"write many": func() { d.WriteAt(many, 0) },
		"group":      func() { d.WriteGroup(offs, data, errs) },
		"part":       func() { d.WriteAt(one[:9], 3) },
		"zero":       func() { d.ZeroAt(0, 20*testSector) },
	} {
		if n := testing.AllocsPerRun(200, f); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}

// Goal: a fault in the middle of a group leaves nothing to the next one of the same
// writer: it would be taken for a fault of the next one's lanes.
func TestGroupsBeginAnew(t *testing.T) {
	d, _ := newDevice(t, layout.UEFI, 1)
	w := writer{d: d}
	for i := range w.group {
		w.group[i].storing = true
	}
	w.request(make([]error, 1), 0, 0, make([]byte, 3*d.SectorSize()))
	if w.n != 3 {
		t.Fatalf("%d blocks in the group, want 3", w.n)
	}
	for i := range w.group[:w.n] {
		if w.group[i].storing {
			t.Errorf("block %d is still being stored", i)
		}
	}
}
