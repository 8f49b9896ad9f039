package clienttest

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"testing"
)

// Goal: what docs/compat.md says of PMDK's false verdicts is so, and we tell the
// truth in the same places.
func TestPMDKFalseVerdicts(t *testing.T) {
	used := func(t *testing.T) *pool {
		p := pmdkPool(t, tmpfs(t), 4096)
		p.pmdkUses(t, rand.New(rand.NewPCG(1, 6)), 400)
		return p
	}
	t.Run("primary info block damaged", func(t *testing.T) {
		p := used(t)
		p.edit(t, func(b []byte) { b[8192+200] = 1 })
		copied := *p
		copied.path += ".copy"
		run(t, "cp", p.path, copied.path)
		nothing := func(int64) []contents { return []contents{zeros} }
		copied.is = map[int64]contents{}
		copied.mustHold(t, "PMDK takes the pool for an empty one", copied.theirs(t), nothing)

		if o := try(t, bttcheck, "--progress", "never", p.path); o.status != 4 || !strings.Contains(o.stdout, "info") {
			t.Errorf("bttcheck: exit status %d\n%s", o.status, o.stdout)
		}
		s := serve(t, p.image)
		p.mustHold(t, "we use the backup", p.ours(dialServer(t, s)), p.known)
		s.stop(t)
	})
	type c struct {
		name    string
		spoil   func(b []byte) // the whole pool
		library string         // what the library does with it
		finds   string
	}
	const reads, empty, refuses = "reads it", "takes it for empty", "refuses it"
	both := func(fn func(info []byte)) func([]byte) {
		return func(b []byte) {
			for _, info := range infoBlocks(b) {
				fn(info)
				setChecksum(info)
			}
		}
	}
	for _, c := range []c{
		{"primary info block zeroed", func(b []byte) { clear(infoBlocks(b)[0]) }, empty, "info-signature"},
		{"both info blocks zeroed", func(b []byte) { all := infoBlocks(b); clear(all[0]); clear(all[1]) }, empty, "arena-lost"},
		{"parent uuid of another pool set", both(func(i []byte) { i[32]++ }), empty, "arena-parent"},
		{"info blocks of two BTTs", func(b []byte) { i := infoBlocks(b)[1]; i[16]++; setChecksum(i) }, reads, "info-copies"},
		{"error flag", both(func(i []byte) { i[48] = 1 }), reads, "arena-error"},
		{"block size of the pool", func(b []byte) { b[4096]++ }, refuses, "pool-header"},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := used(t)
			p.edit(t, c.spoil)
			if o := try(t, "pmempool", "check", p.path); o.status != 0 {
				t.Errorf("pmempool check has become better: exit status %d\n%s", o.status, o.stdout)
			}
			if o := try(t, bttcheck, "--progress", "never", p.path); o.status != 4 || !strings.Contains(o.stdout, "error: "+c.finds) {
				t.Errorf("bttcheck: exit status %d\n%s", o.status, o.stdout)
			}
			if o := try(t, p.blk, "dump", p.path); (o.status == 0) == (c.library == refuses) {
				t.Errorf("PMDK, which %s: exit status %d", c.library, o.status)
			} else if allZero := strings.Trim(o.stdout, "\x00") == ""; o.status == 0 && allZero != (c.library == empty) {
				t.Errorf("PMDK, which %s: all zeros %v", c.library, allZero)
			}
		})
	}
	t.Run("interrupted writes, flog without flags", func(t *testing.T) {
		p := used(t)
		n := 0
		p.edit(t, func(b []byte) { n = takeBack(b[8192:], true) })
		if n == 0 {
			t.Fatal("no write was taken back")
		}
		if out := run(t, "pmempool", "check", "-v", p.path); !strings.Contains(out, "consistent") {
			t.Errorf("pmempool check says:\n%s", out)
		}
		copied := *p
		copied.path += ".copy"
		run(t, "cp", p.path, copied.path)
		lost := 0
		read, got := copied.theirs(t), make([]byte, p.sector)
		for lba := range copied.blocks {
			isBad, err := read(lba, got)
			if err != nil {
				t.Fatal(err)
			}
			if isBad != (p.is[lba] == bad) || !isBad && !bytes.Equal(got, p.block(lba, p.is[lba])) {
				lost++
			}
		}
		if lost != n {
			t.Errorf("PMDK loses %d of %d writes", lost, n)
		}
		if got := p.inFlight(t); got != n {
			t.Errorf("bttcheck sees %d of %d interrupted writes", got, n)
		}
		s := serve(t, p.image)
		p.mustHold(t, "we complete the writes", p.ours(dialServer(t, s)), p.known)
		s.stop(t)
	})
}

// Goal: the header of a pool, damaged in any one field or gone, is put together again so
// that PMDK opens the pool, finds it consistent, and reads every block.
func TestPMDKHeaderRepaired(t *testing.T) {
	p := pmdkPool(t, tmpfs(t), 512)
	p.pmdkUses(t, rand.New(rand.NewPCG(1, 7)), 300)
	at := func(off int) func([]byte) { return func(b []byte) { b[off] ^= 0x55 } }
	for name, spoil := range map[string]func([]byte){
		"signature": at(3), "major": at(8), "compat": at(12), "incompat": at(16), "ro_compat": at(20),
		"poolset": at(24), "part": at(40), "link": at(72), "creation": at(120), "alignment": at(130),
		"class": at(136), "machine": at(142), "reserved": at(500), "checksum": at(4090), "bsize": at(4097),
		"page": func(b []byte) { clear(b[:4096]) },
	} {
		t.Run(name, func(t *testing.T) {
			copied := *p
			copied.path = filepath.Join(tmpfs(t), "pool")
			run(t, "cp", p.path, copied.path)
			copied.edit(t, spoil)
			if o := try(t, "pmempool", "check", copied.path); o.status == 0 && !strings.Contains(o.stdout, "invalid pmemblk.bsize") { // of which it exits 0
				t.Fatalf("pmempool sees nothing:\n%s", o.stdout)
			}
			if o := try(t, bttcheck, "--repair", "--progress", "never", copied.path); o.status != 1 {
				t.Fatalf("bttcheck --repair: exit status %d\n%s", o.status, o.stdout)
			}
			copied.approved(t)
			copied.mustHold(t, "PMDK reads the repaired pool", copied.theirs(t), copied.known)
		})
	}
}

// infoBlocks are the two of a pool of one arena.
func infoBlocks(b []byte) [2][]byte {
	arena := b[8192:]
	return [2][]byte{arena[:4096], arena[binary.LittleEndian.Uint64(arena[112:]):][:4096]}
}

// setChecksum makes that of an info block right.
func setChecksum(info []byte) {
	var lo, hi uint32
	for i := 0; i < 4096; i += 4 {
		if i < 4088 {
			lo += binary.LittleEndian.Uint32(info[i:])
		}
		hi += lo
	}
	binary.LittleEndian.PutUint64(info[4088:], uint64(hi)<<32|uint64(lo))
}
