package layout

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"testing"
)

func TestFlogGroupBytes(t *testing.T) {
	// Goal: records stand at 0, 16, 32 and 48, fields at 0, 4, 8 and 12 in each, and
	// the two words hold {lba, old} and {new, seq}.
	var g FlogGroup
	for i := range g {
		n := uint32(i) << 4
		g[i] = FlogRecord{LBA: PremapLBA(n + 1), Old: MapEntry(n + 2), New: MapEntry(n + 3), Seq: n + 4}
	}
	var b [FlogGroupSize]byte
	g.Encode(b[:])
	want := ""
	for i := range 4 {
		for f := range 4 {
			want += fmt.Sprintf("%02x000000", i<<4+f+1)
		}
	}
	if got := hex.EncodeToString(b[:]); got != want {
		t.Errorf("bytes\n%s, want\n%s", got, want)
	}
	if got := DecodeFlogGroup(b[:]); got != g {
		t.Errorf("decoded %v, want %v", got, g)
	}
	lbaOld, newSeq := FlogRecord{0x11111111, 0x22222222, 0x33333333, 0x44444444}.Words()
	if lbaOld != 0x2222222211111111 || newSeq != 0x4444444433333333 {
		t.Errorf("words %#x and %#x", lbaOld, newSeq)
	}
}

func TestFlogWordsRoundTrip(t *testing.T) {
	// Goal: RecordFromWords is the inverse of Words, for extremes and random values.
	rng := rand.New(rand.NewPCG(1, 2))
	values := []uint32{0, 1, 3, 1<<30 - 1, 1 << 30, 1 << 31, 1<<32 - 1, rng.Uint32(), rng.Uint32()}
	for _, lba := range values {
		for _, old := range values {
			for _, new := range values {
				for _, seq := range values {
					r := FlogRecord{PremapLBA(lba), MapEntry(old), MapEntry(new), seq}
					if got := RecordFromWords(r.Words()); got != r {
						t.Fatalf("%v, want %v", got, r)
					}
				}
			}
		}
	}
}

func TestRecordMoves(t *testing.T) {
	// Goal: flags do not make a move, since writers differ in the flags they store.
	for _, c := range []struct {
		old, new MapEntry
		want     bool
	}{
		{5, 5, false}, {5, 6, true}, {ZeroEntry(5), 5, false}, {ErrorEntry(5), NormalEntry(5), false}, {NormalEntry(5), NormalEntry(6), true},
	} {
		if got := (FlogRecord{Old: c.old, New: c.new}).Moves(); got != c.want {
			t.Errorf("%v to %v: moves %v, want %v", c.old, c.new, got, c.want)
		}
	}
}

func TestCurrent(t *testing.T) {
	// Goal: for every pair of sequence numbers 0 to 4, and for both paddings, the
	// record that the specification calls current, or a refusal.
	const bad = -1
	want := [5][5]int{ // by first, then by second: 0, 1 (the second) or bad
		{bad, 1, 1, 1, bad},
		{0, bad, 1, 0, bad},
		{0, 0, bad, 1, bad},
		{0, 1, 0, bad, bad},
		{bad, bad, bad, bad, bad},
	}
	for first := range want {
		for second, w := range want[first] {
			for _, p := range []Padding{PaddingNew, PaddingOld} {
				var g FlogGroup
				g[0].Seq, g[p].Seq = uint32(first), uint32(second)
				got, err := g.Current(p)
				switch {
				case w == bad && err == nil:
					t.Errorf("(%d,%d) %v: record %d, want an error", first, second, p, got)
				case w != bad && (err != nil || got != w*int(p)):
					t.Errorf("(%d,%d) %v: record %d, %v; want %d", first, second, p, got, err, w*int(p))
				}
			}
		}
	}
}

func TestNextSeq(t *testing.T) {
	// Goal: 1, 2, 3, 1; 0 stays; and a record written with the next number becomes
	// current over the one before it, wherever the two stand.
	for seq, want := range []uint32{0, 2, 3, 1} {
		if got := NextSeq(uint32(seq)); got != want {
			t.Errorf("after %d comes %d, want %d", seq, got, want)
		}
	}
	g := InitialFlogGroup(0, 100)
	for range 10 {
		i, err := g.Current(PaddingNew)
		if err != nil {
			t.Fatal(err)
		}
		g[1-i].Seq = NextSeq(g[i].Seq)
		if now, err := g.Current(PaddingNew); err != nil || now != 1-i {
			t.Fatalf("sequence numbers %d and %d: record %d, %v; want the one just written, %d", g[0].Seq, g[1].Seq, now, err, 1-i)
		}
	}
}

func TestInitialFlogGroup(t *testing.T) {
	// Goal: a lane as the kernel formats it: {lane, external_nlba+lane twice, seq 1}
	// without flags, then zeros.
	g := InitialFlogGroup(3, 100)
	want := FlogGroup{{LBA: 3, Old: 103, New: 103, Seq: 1}}
	if g != want {
		t.Errorf("%v, want %v", g, want)
	}
	if i, err := g.Current(PaddingNew); i != 0 || err != nil {
		t.Errorf("current record %d, %v; want 0", i, err)
	}
}

func TestPaddingDetection(t *testing.T) {
	// Goal: what Linux log_set_indices finds or refuses. A lane is given by which of
	// its four records are not zero.
	for _, c := range []struct {
		lanes []string
		want  Padding
		bad   int // index of the first lane refused, -1: none
	}{
		{[]string{"x---", "x---"}, PaddingNew, -1},
		{[]string{"xx--"}, PaddingNew, -1},
		{[]string{"x-x-"}, PaddingOld, -1},
		{[]string{"x---", "x---", "x-x-", "x---", "x-x-"}, PaddingOld, -1},
		{[]string{"x---", "xx--", "x---"}, PaddingNew, -1},
		{[]string{"xx--", "x-x-"}, 0, 1},
		{[]string{"x-x-", "xx--"}, 0, 1},
		{[]string{"x--x"}, 0, 0},
		{[]string{"xx--", "x--x"}, 0, 1},
		{[]string{"xxx-"}, 0, 0},
		{[]string{"x-xx"}, 0, 0},
		{[]string{"x---", "-x--"}, 0, 1},
		{[]string{"----"}, 0, 0},
		{[]string{"--x-"}, 0, 0},
	} {
		var d PaddingDetector
		bad := -1
		for i, lane := range c.lanes {
			if err := d.Add(groupOf(lane)); err != nil {
				bad = i
				break
			}
		}
		if bad != c.bad || bad < 0 && d.Padding() != c.want {
			t.Errorf("%v: padding %v, lane %d refused; want %v, %d", c.lanes, d.Padding(), bad, c.want, c.bad)
		}
	}
	if s := PaddingNew.String() + PaddingOld.String(); s != "{0,1}{0,2}" {
		t.Errorf("the names of the schemes are %s", s)
	}
}

// groupOf is a group whose records are not zero where used has an x. Half of
// them differ from zero only in their last field, half only in their first.
func groupOf(used string) *FlogGroup {
	var g FlogGroup
	for i, c := range used {
		if c == 'x' && i%2 == 0 {
			g[i].Seq = 1
		} else if c == 'x' {
			g[i].LBA = 1
		}
	}
	return &g
}

func FuzzFlogGroup(f *testing.F) {
	// Goal: of any 64 bytes, the same bytes come back; Current says 0, the second
	// record or an error, and never names a record that was never written; and the
	// detector accepts exactly the groups with a record 0 and at most one of 1 and 2.
	initial, zero := make([]byte, 64), make([]byte, 64)
	InitialFlogGroup(1, 9).Encode(initial)
	f.Add(initial, false)
	f.Add(zero, true)
	f.Add(bytes.Repeat([]byte{1, 0, 0, 0}, 16), true)
	f.Fuzz(func(t *testing.T, b []byte, old bool) {
		if len(b) < FlogGroupSize {
			return
		}
		g := DecodeFlogGroup(b)
		var again [FlogGroupSize]byte
		g.Encode(again[:])
		if !bytes.Equal(again[:], b[:64]) {
			t.Fatalf("encoded % x, want % x", again, b[:64])
		}
		p := PaddingNew
		if old {
			p = PaddingOld
		}
		if i, err := g.Current(p); err == nil && (i != 0 && i != int(p) || g[i].Seq < 1 || g[i].Seq > 3) {
			t.Fatalf("%v, padding %v: current is %d", g, p, i)
		}
		var none FlogRecord
		valid := g[0] != none && g[3] == none && (g[1] == none || g[2] == none)
		var d PaddingDetector
		if err := d.Add(&g); (err == nil) != valid {
			t.Fatalf("%v: %v", g, err)
		} else if err == nil && (d.Padding() == PaddingOld) != (g[2] != none) {
			t.Fatalf("%v: padding %v", g, d.Padding())
		}
	})
}
