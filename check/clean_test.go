package check

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/bttnbd/bttnbd/layout"
	"github.com/bttnbd/bttnbd/pmem"
)

// sound are images with nothing wrong; each is given by what it is built from.
var sound = map[string]params{
	"kernel":              {},
	"uefi":                {flavour: layout.UEFI},
	"several arenas":      {arenas: 4},
	"uefi several arenas": {flavour: layout.UEFI, arenas: 3, nfree: 8},
	"PMDK alignment":      {align: 256, sector: 520, arena: 40960},
	"4096":                {sector: 4096, nfree: 8, arena: 131072},
	"old padding":         {padding: layout.PaddingOld},
	"flags in the flog":   {pmdkFlog: true},
	"a ragged tail":       {tail: 1000},
	"one lane":            {nfree: 1},
}

func TestSoundImages(t *testing.T) {
	// Goal: an image in order is clean, fresh and after use, and with interrupted
	// writes, in every flavour, padding, alignment and flag style; and what is found
	// out about it is true.
	for name, p := range sound {
		t.Run(name, func(t *testing.T) {
			mustBeClean(t, build(t, p), 0)
			mustBeClean(t, used(t, p), 0)
			for _, im := range []*image{build(t, p), used(t, p)} {
				for arena := range im.starts {
					im.interrupt(arena, 0, 5)
				}
				mustBeClean(t, im, 1)
			}
		})
	}
}

func mustBeClean(t *testing.T, im *image, inFlight uint64) {
	t.Helper()
	rep := im.run()
	if !rep.Clean() || rep.Damaged() {
		t.Fatalf("not clean: %+v", rep.Findings)
	}
	if rep.Format != im.flavour.Name || len(rep.Arenas) != im.arenas || rep.SectorSize != im.sector || rep.UUID != testUUID.String() || rep.Size != im.region.Size() {
		t.Errorf("report %+v of image %+v", rep, im.params)
	}
	if want := uint64(im.arenas) * uint64(im.geo.ExternalNLBA); rep.Sectors != want {
		t.Errorf("%d sectors, want %d", rep.Sectors, want)
	}
	survey := im.survey()
	for i, a := range rep.Arenas {
		if s := survey[i]; !s.Counted || s.Initial != a.Initial || s.Zero != a.Zero || s.Error != a.Error || s.Normal != a.Normal || s.InFlight != inFlight || s.BadLanes != 0 {
			t.Errorf("arena %d: survey %+v, report %+v", i, s, a)
		}
		if want := map[bool]FlogFlags{false: FlagsNone, true: FlagsFull}[im.pmdkFlog]; survey[i].FlogFlags != want && !(im.pmdkFlog && survey[i].FlogFlags == FlagsMixed) {
			t.Errorf("arena %d: flags in the flog: %s, want %s", i, survey[i].FlogFlags, want)
		}
		var want [4]uint64
		for lba := range layout.PremapLBA(im.geo.ExternalNLBA) {
			want[im.entry(i, lba).State()]++
		}
		if got := [4]uint64{a.Initial, a.Error, a.Zero, a.Normal}; got != want || a.InFlight != inFlight || !a.Checked {
			t.Errorf("arena %d: %+v; want entries %v, %d in flight", i, a, want, inFlight)
		}
		if a.Offset != im.starts[i] || a.Size != im.arena || a.Lanes != im.nfree {
			t.Errorf("arena %d: %+v, want it at %d with %d bytes", i, a, im.starts[i], im.arena)
		}
		if (a.Padding == "{0,2}") != (im.padding == layout.PaddingOld && im.group(i, 0)[2] != layout.FlogRecord{}) {
			t.Errorf("arena %d: padding %s", i, a.Padding)
		}
	}
}

func TestInspect(t *testing.T) {
	// Goal: what info shows, of several arenas: places, first LBAs, which alignment
	// explains the geometry, and a backup that stands in for its primary.
	im := used(t, params{align: 256, sector: 520, arena: 40960, arenas: 3, padding: layout.PaddingOld})
	im.region.Zero(im.primary(1), layout.InfoSize)
	got, err := Inspect(im.region, im.options())
	if err != nil {
		t.Fatal(err)
	}
	if got.Flavour != layout.Kernel || len(got.Arenas) != 3 || got.Size != im.region.Size() {
		t.Fatalf("%+v", got)
	}
	for i, a := range got.Arenas {
		if a.Index != i || a.Offset != im.starts[i] || !slices.Equal(a.Aligns, []uint32{256}) || a.Padding != layout.PaddingOld || a.Missing != 0 {
			t.Errorf("arena %d: %+v", i, a)
		}
		if a.FirstLBA != layout.ExternalLBA(i)*layout.ExternalLBA(im.geo.ExternalNLBA) {
			t.Errorf("arena %d: first lba %d", i, a.FirstLBA)
		}
		if a.FromBackup != (i == 1) || a.Backup.Offset != im.backup(i) || a.Info.Geometry() != im.geo {
			t.Errorf("arena %d: from backup %v, backup at %d, %+v", i, a.FromBackup, a.Backup.Offset, a.Info)
		}
	}
	if len(got.Findings) != 2 || got.Findings[0].Kind != ArenaLimits || got.Findings[1].Kind != InfoSignature {
		t.Errorf("findings %+v, want few lanes and one lost signature", got.Findings)
	}
}

func TestNoBTT(t *testing.T) {
	// Goal: what never was a BTT is told from a damaged one, whatever its size, and
	// the error names the places looked at.
	for _, size := range []uint64{0, 8, 4095, 4096, 4104, 8192, 12288, 1 << 20} {
		for name, run := range map[string]func(*pmem.Region) error{
			"run":     func(r *pmem.Region) error { _, err := Run(context.Background(), r, Options{}); return err },
			"inspect": func(r *pmem.Region) error { _, err := Inspect(r, Options{}); return err },
		} {
			err := run(pmem.NewHeap(size))
			if !errors.Is(err, ErrNoBTT) || !strings.Contains(err.Error(), "offset 4096") || !strings.Contains(err.Error(), "offset 0") {
				t.Errorf("%s of %d zero bytes: %v, want ErrNoBTT with both places", name, size, err)
			}
		}
	}
}

// noWrites is a tracer that knows loads only: on anything else it panics, since
// the embedded interface is nil.
type noWrites struct{ pmem.Tracer }

func (noWrites) Load(off, n uint64) {}

func TestNeverWrites(t *testing.T) {
	// Goal: a check neither stores, nor flushes, nor drains, on sound and on damaged
	// images. Method: a tracer that panics on all of these, and the bytes afterwards.
	images := map[string]*image{}
	for name, p := range sound {
		images[name] = used(t, p)
	}
	for _, d := range damages {
		images[d.name] = d.image(t)
	}
	for name, im := range images {
		before := im.bytes()
		traced := *im
		buf := pmemBytes(im)
		traced.region = pmem.NewTraced(buf, noWrites{})
		if got, want := traced.run(), im.run(); !slices.EqualFunc(got.Findings, want.Findings, sameFinding) {
			t.Errorf("%s: traced and untraced findings differ", name)
		}
		traced.survey()
		im.survey()
		if !bytes.Equal(buf, before) || !bytes.Equal(im.bytes(), before) {
			t.Errorf("%s: the bytes have changed", name)
		}
	}
}

// pmemBytes is a copy of the image in memory aligned to 8 bytes.
func pmemBytes(im *image) []byte {
	b := im.bytes()
	return append(make([]byte, 0, len(b)+8), b...)
}

func sameFinding(a, b Finding) bool {
	lbas := a.LBA == b.LBA || a.LBA != nil && b.LBA != nil && *a.LBA == *b.LBA
	a.LBA, b.LBA = nil, nil
	return lbas && a == b
}

func TestCancel(t *testing.T) {
	// Goal: a cancelled check ends with the cause and without a report, at once and
	// also in the middle of a map.
	im := build(t, params{arenas: 2})
	ctx, cancel := context.WithCancelCause(context.Background())
	o := im.options()
	stop := errors.New("stop")
	calls := 0
	o.Progress = func(done, total uint64) { calls++; cancel(stop) }
	if rep, err := Run(ctx, im.region, o); !errors.Is(err, stop) || rep != nil || calls == 0 {
		t.Errorf("cancelled after the first arena: %v, %v, %d calls", rep, err, calls)
	}
	before := calls
	if _, err := Run(ctx, im.region, o); !errors.Is(err, stop) || calls != before {
		t.Errorf("cancelled before: %v, %d calls", err, calls)
	}
}

func TestProgress(t *testing.T) {
	// Goal: progress grows and ends at the total, which is known from the start, also
	// if an arena cannot be examined.
	im := used(t, params{arenas: 3})
	for _, im := range []*image{im, im.resized(im.starts[2] + 8192)} {
		var last uint64
		want := 3 * uint64(im.geo.ExternalNLBA)
		o := im.options()
		o.Progress = func(done, total uint64) {
			if done < last || total != want {
				t.Errorf("%d of %d after %d, want a total of %d", done, total, last, want)
			}
			last = done
		}
		if _, err := Run(context.Background(), im.region, o); err != nil || last != want {
			t.Errorf("ended at %d of %d, %v", last, want, err)
		}
	}
}

func TestMediumFault(t *testing.T) {
	// Goal: memory that cannot be read is an error with its place, not a crash.
	// Method: cut a mapped file short under the check.
	im := used(t, params{arenas: 40})
	path := filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(path, im.bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	r, err := pmem.Open(path, pmem.Options{ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if rep, err := Run(context.Background(), r, im.options()); err != nil || !rep.Clean() || rep.Path != path {
		t.Fatalf("before the cut: %+v, %v", rep, err)
	}
	if err := os.Truncate(path, int64(im.starts[20])); err != nil {
		t.Fatal(err)
	}
	var fault *pmem.FaultError
	if _, err := Run(context.Background(), r, im.options()); !errors.As(err, &fault) || fault.Off < im.starts[20] {
		t.Errorf("after the cut: %v, want a fault at %d or behind", err, im.starts[20])
	}
	if _, err := Inspect(r, im.options()); !errors.As(err, &fault) {
		t.Errorf("inspect after the cut: %v, want a fault", err)
	}
}

func TestReportJSON(t *testing.T) {
	// Goal: the JSON form that scripts rely on: names, null for no lba, empty lists
	// and not null, codes for kind and severity, which also read back.
	lba := uint64(7)
	rep := Report{Schema: Schema, Arenas: []ArenaReport{}, Findings: []Finding{
		{Arena: 1, Kind: MapRange, Severity: Error, Offset: 9, LBA: &lba, Message: "m", Repair: "r"},
		{Arena: WholeImage, Kind: InfoSecond, Severity: Warning},
	}}
	b, err := json.Marshal(rep)
	want := `{"schema":1,"path":"","size":0,"format":"","uuid":"","sector_size":0,"sectors":0,"arenas":[],"findings":[` +
		`{"arena":1,"kind":"map-range","severity":"error","offset":9,"lba":7,"message":"m","repair":"r"},` +
		`{"arena":-1,"kind":"info-second","severity":"warning","offset":0,"lba":null,"message":"","repair":""}]}`
	if err != nil || string(b) != want {
		t.Errorf("%s, %v; want\n%s", b, err, want)
	}
	var back Report
	if err := json.Unmarshal(b, &back); err != nil || !slices.EqualFunc(back.Findings, rep.Findings, sameFinding) {
		t.Errorf("read back %+v, %v", back, err)
	}
	clean := build(t, params{sector: 512, nfree: 256, arena: 262144}).run()
	if len(clean.Findings) != 0 {
		t.Errorf("an image as Linux makes them has findings: %+v", clean.Findings)
	}
	empty, err := json.Marshal(clean)
	if err != nil || strings.Contains(string(empty), `"arenas":null`) || strings.Contains(string(empty), `"findings":null`) {
		t.Errorf("of a clean image: %s, %v", empty, err)
	}
}

func TestKindNames(t *testing.T) {
	// Goal: every kind and severity has a code of its own that reads back.
	seen := map[string]bool{}
	for k := range numKinds {
		text, err := k.MarshalText()
		var back Kind
		if err != nil || back.UnmarshalText(text) != nil || back != k || seen[string(text)] || len(text) == 0 {
			t.Errorf("kind %d: %q", k, text)
		}
		seen[string(text)] = true
	}
	for s := Info; s <= Error; s++ {
		text, _ := s.MarshalText()
		var back Severity
		if back.UnmarshalText(text) != nil || back != s {
			t.Errorf("severity %d: %q", s, text)
		}
	}
	var k Kind
	var s Severity
	if k.UnmarshalText([]byte("nonsense")) == nil || s.UnmarshalText([]byte("nonsense")) == nil {
		t.Error("nonsense reads back as a kind or severity")
	}
	if got := fmt.Sprint(numKinds, Severity(9)); got != fmt.Sprintf("kind(%d) severity(9)", numKinds) {
		t.Errorf("impossible values print as %s", got)
	}
}

// sequential is a tracer that does nothing, which makes a check use one goroutine.
type sequential struct{}

func (sequential) Load(_, _ uint64)        {}
func (sequential) Racing(_, _ uint64) bool { return true }
func (sequential) Store(_, _, _ uint64)    {}
func (sequential) Bulk(uint64, []byte)     {}
func (sequential) BulkZero(_, _ uint64)    {}
func (sequential) Flush(_, _ uint64)       {}
func (sequential) Drain() error            { return nil }
func (sequential) Await(func() bool)       {}
func (sequential) Hint() uint32            { return 0 }

func TestParallel(t *testing.T) {
	// Goal: a map of many chunks gives the same report on many goroutines as on one,
	// also when blocks are shared across chunks and odd entries are all over it.
	im := build(t, params{sector: 8, align: 8, nfree: 256, arena: 12*9*chunkEntries + 65536})
	n := im.geo.ExternalNLBA
	rnd := rand.New(rand.NewPCG(3, 4))
	for range 3000 {
		lba := layout.PremapLBA(rnd.Uint32N(n))
		im.putEntry(0, lba, layout.MapEntry(rnd.Uint32()&0xc0000000|rnd.Uint32N(n+n/64)))
	}
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(4))
	want, err := Run(context.Background(), pmem.NewTraced(pmemBytes(im), sequential{}), im.options())
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		got := im.run()
		if !slices.EqualFunc(got.Findings, want.Findings, sameFinding) || !slices.Equal(got.Arenas, want.Arenas) {
			t.Fatalf("on several goroutines %d findings, on one %d", len(got.Findings), len(want.Findings))
		}
	}
	if len(want.Findings) < 3*maxFindings {
		t.Errorf("only %d findings", len(want.Findings))
	}
}

func TestClaims(t *testing.T) {
	// Goal: both ways to keep claims come to the same owners: one bitmap for each
	// goroutine, and buckets; in a map of all kinds of entry, whole and with a block
	// that two entries have. Of that the bitmaps must say that they cannot tell.
	im := build(t, params{sector: 8, align: 8, nfree: 256, arena: 12*9*chunkEntries + 65536})
	n := im.geo.ExternalNLBA
	rnd := rand.New(rand.NewPCG(5, 6))
	for lba, block := range rnd.Perm(int(n)) {
		im.putEntry(0, layout.PremapLBA(lba), layout.MapEntry(block)|layout.MapEntry(1+rnd.Uint32N(3))<<30)
	}
	for i := range n / 4 { // runs that were never written
		im.putEntry(0, layout.PremapLBA(n/2+i), 0)
	}
	used := map[layout.PostmapLBA]bool{}
	for i := range n / 4 {
		used[layout.PostmapLBA(n/2+i)] = true
	}
	var spare []layout.PostmapLBA // blocks that the entries before had
	for b := range layout.PostmapLBA(n) {
		if !used[b] {
			spare = append(spare, b)
		}
	}
	i := 0
	for lba := range layout.PremapLBA(n) {
		if e := im.entry(0, lba); e != 0 {
			im.putEntry(0, lba, e&^layout.BlockMask|layout.MapEntry(spare[i]))
			i++
		}
	}
	for lba := range layout.PremapLBA(n / 16) { // and those that were written in order
		im.putEntry(0, lba, layout.NormalEntry(spare[lba]))
	}
	for _, twice := range []bool{false, true} {
		if twice {
			im.putEntry(0, 7, im.entry(0, 2*chunkEntries+9))
		}
		insp, err := Inspect(im.region, im.options())
		if err != nil {
			t.Fatal(err)
		}
		var sets [2]*owners
		for way := range sets {
			s := &mapScan{reader: newReader(im.region, im.options()), c: new(collector), a: &insp.Arenas[0], owners: newOwners(im.geo.InternalNLBA)}
			w := s.ownBits(3)
			if way == 1 {
				w = s.buckets(3)
			} else if twice {
				w = s.ownBits(1)
			}
			told, err := s.pass(context.Background(), w.list, new(progress))
			w.join()
			if err != nil || told == (twice && way == 0) {
				t.Errorf("way %d, a block twice: %v: told %v, %v", way, twice, told, err)
			}
			sets[way] = s.owners
		}
		if shared, _ := sets[1].listShared(); (len(shared) == 1) != twice {
			t.Errorf("a block twice: %v; shared %v", twice, shared)
		}
		if !twice && !slices.Equal(sets[0].bits, sets[1].bits) {
			t.Error("the two ways differ")
		}
	}
}
