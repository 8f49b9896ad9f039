package check

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
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
	if len(rep.Arenas) == 0 && rep.Clean() {
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
		raw := im.bytes()
		places := metadata(im)
		for ; len(patch) >= 4; patch = patch[4:] {
			off := places[int(binary.LittleEndian.Uint16(patch))%len(places)]
			word := binary.LittleEndian.Uint32(raw[off:])
			switch patch[2] % 4 {
			case 0:
				word ^= 1 << (patch[3] % 32)
			case 1:
				word = word&^0xff | uint32(patch[3])
			case 2:
				word += uint32(patch[3])
			case 3:
				word = binary.LittleEndian.Uint32(raw[places[int(patch[3])%len(places)]:])
			}
			binary.LittleEndian.PutUint32(raw[off:], word)
		}
		for _, off := range []uint64{im.primary(0), im.backup(0)} {
			b := raw[off:][:layout.InfoSize]
			layout.PatchFlags(b, binary.LittleEndian.Uint32(b[48:]))
		}
		fuzzRun(t, raw)
	})
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
