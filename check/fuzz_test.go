package check

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"slices"
	"testing"

	"github.com/bttnbd/bttnbd/layout"
	"github.com/bttnbd/bttnbd/pmem"
)

const fuzzArena = 20480

// fuzzRun checks raw bytes as an image. Nothing may panic or change, findings must
// be presentable, and what is called clean must be a BTT in which every block has
// one owner, by code other than the check's.
func fuzzRun(t *testing.T, raw []byte) {
	raw = raw[:len(raw)&^7]
	r := pmem.NewHeap(uint64(len(raw)))
	r.Write(0, raw)
	o := Options{MaxArena: fuzzArena}
	rep, err := Run(context.Background(), r, o)
	after := make([]byte, len(raw))
	r.Read(after, 0)
	if !bytes.Equal(after, raw) {
		t.Fatal("the check has written")
	}
	if err != nil {
		if !errors.Is(err, ErrNoBTT) || rep != nil {
			t.Fatalf("%+v, %v", rep, err)
		}
		return
	}
	mustBePresentable(t, rep)
	seen, err := Inspect(r, o)
	if err != nil || len(seen.Arenas) != len(rep.Arenas) {
		t.Fatalf("inspect: %+v, %v; the check saw %d arenas", seen, err, len(rep.Arenas))
	}
	if list, err := Survey(context.Background(), r, seen, true, o); err != nil || len(list) != len(seen.Arenas) {
		t.Fatalf("survey: %+v, %v", list, err)
	}
	for i := range seen.Arenas {
		seen.Arenas[i].Differ()
	}
	if len(rep.Arenas) == 0 && rep.Clean() && !slices.Contains(kinds(rep), "pool-empty") {
		t.Fatal("clean without an arena")
	}
	for i, a := range seen.Arenas {
		if !rep.Clean() {
			break
		}
		if a.Info.Flags != 0 || a.Missing != 0 || a.Primary.Err != nil || a.Backup.Err != nil {
			t.Fatalf("clean, with arena %+v", a)
		}
		im := &image{t: t, params: params{nfree: a.Info.Nfree}, region: r, starts: []uint64{a.Offset}, geo: a.Info.Geometry()}
		if _, _, bad := meaning(im, 0); bad != "" {
			t.Fatalf("arena %d is called clean: %s", i, bad)
		}
	}
}

func FuzzRun(f *testing.F) {
	// Goal: see fuzzRun, for any bytes. With fix, checksums are made right where info
	// blocks stand in the seeds, since no fuzzer finds them.
	for _, p := range []params{{}, {flavour: layout.UEFI, arenas: 2}, {padding: layout.PaddingOld}} {
		im := used(f, p)
		im.interrupt(0, 0, 5)
		f.Add(im.bytes(), false)
		f.Add(im.bytes(), true)
		f.Add(im.bytes()[:12288], true)
	}
	f.Add([]byte{}, true)
	f.Fuzz(func(t *testing.T, raw []byte, fix bool) {
		if len(raw) > 1<<17 {
			return
		}
		if fix {
			raw = bytes.Clone(raw)
			for off := 0; off+layout.InfoSize <= len(raw); off += 4096 {
				if b := raw[off:][:layout.InfoSize]; layout.HasSignature(b) {
					layout.PatchFlags(b, binary.LittleEndian.Uint32(b[48:]))
				}
			}
		}
		fuzzRun(t, raw)
	})
}

func FuzzDamage(f *testing.F) {
	// Goal: see fuzzRun, for a used image with a few words altered: each 4 bytes of
	// patch say where (in words of the metadata: both info blocks, map and flog), and
	// what to do there. Checksums are made right.
	f.Add([]byte{0, 1, 0, 5}, false)
	f.Add([]byte{4, 16, 1, 200, 7, 7, 2, 3}, true)
	f.Fuzz(func(t *testing.T, patch []byte, old bool) {
		p := params{}
		if old {
			p.padding = layout.PaddingOld
		}
		im := used(t, p)
		im.interrupt(0, 0, 5)
		im.patch(patch, true)
		fuzzRun(t, im.bytes())
	})
}

func FuzzRepair(f *testing.F) {
	// Goal: whatever is wrong with an image, a repair ends clean or says what it leaves;
	// it never panics, never writes to a block of data, and has nothing left to do the
	// second time. LBAs that it names fail, all others read as before.
	// Method: patches as in [FuzzDamage], of two arenas in turn, in three flavours.
	f.Add([]byte{0, 1, 0, 5}, byte(0))
	f.Add([]byte{4, 16, 1, 200, 7, 7, 2, 3, 80, 0, 3, 1, 90, 0, 3, 95}, byte(1))
	f.Add([]byte{120, 0, 0, 5, 130, 0, 0, 7, 0, 0, 3, 1, 1, 0, 3, 2}, byte(6))
	f.Fuzz(func(t *testing.T, patch []byte, how byte) {
		p := params{flavour: []layout.Flavour{layout.Kernel, layout.UEFI}[how&1], arenas: 1 + int(how>>1&1)}
		if how&4 != 0 {
			p.padding = layout.PaddingOld
		}
		im := used(t, p)
		im.mark()
		im.interrupt(0, 0, 5)
		good := im.info(im.primary(0))
		im.patch(patch, how&8 != 0)
		data, reads := im.dataAreas(), im.mayRead()
		rep, err := Repair(context.Background(), im.region, RepairOptions{Options: im.options()})
		if err != nil {
			if !errors.Is(err, ErrNoBTT) {
				t.Fatal(err)
			}
			return
		}
		mustBePresentable(t, rep)
		seen, err := Inspect(im.region, im.options())
		if err != nil {
			t.Fatal(err)
		}
		for _, a := range seen.Arenas {
			if a.Info.Geometry() != good.Geometry() {
				return // another geometry, sound by itself
			}
		}
		if !bytes.Equal(data, im.dataAreas()) {
			t.Fatalf("data was written: %+v %+v", rep.Findings, rep.Plan.Refused)
		}
		after := im.run()
		if !after.Clean() && len(rep.Plan.Refused) == 0 {
			t.Fatalf("nothing was refused, and there is %+v", after.Findings)
		}
		if again := im.repair(RepairOptions{}); len(again.Plan.Steps) > 0 {
			t.Fatalf("a second repair does %+v", again.Plan.Steps)
		}
		if after.Clean() && len(seen.Arenas) == len(im.starts) && seen.Flavour == im.flavour {
			im.mustRead(t, reads, rep.Plan.Lost())
		}
	})
}

// patch alters words of the metadata, 4 bytes of p a time; see [FuzzDamage]. With
// fix, the checksums of info blocks are made right.
func (im *image) patch(p []byte, fix bool) {
	raw := im.bytes()
	places := metadata(im)
	for ; len(p) >= 4; p = p[4:] {
		off := places[int(binary.LittleEndian.Uint16(p))%len(places)]
		word := binary.LittleEndian.Uint32(raw[off:])
		switch p[2] % 4 {
		case 0:
			word ^= 1 << (p[3] % 32)
		case 1:
			word = word&^0xff | uint32(p[3])
		case 2:
			word += uint32(p[3])
		case 3:
			word = binary.LittleEndian.Uint32(raw[places[int(p[3])%len(places)]:])
		}
		binary.LittleEndian.PutUint32(raw[off:], word)
	}
	for _, off := range []uint64{im.primary(0), im.backup(0)} {
		if b := raw[off:][:layout.InfoSize]; fix {
			layout.PatchFlags(b, binary.LittleEndian.Uint32(b[48:]))
		}
	}
	im.region.Write(0, raw)
}

// metadata are the offsets of all words of an image's first arena that mean something.
func metadata(im *image) (offs []uint64) {
	add := func(from, n uint64) {
		for off := from; off < from+n; off += 4 {
			offs = append(offs, off)
		}
	}
	add(im.entryAt(0, 0), 4*uint64(im.geo.ExternalNLBA))
	add(im.groupAt(0, 0), layout.FlogGroupSize*uint64(im.nfree))
	add(im.primary(0)+48, 72)
	add(im.backup(0)+48, 72)
	return offs
}
