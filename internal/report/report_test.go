package report

import (
	"bytes"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/bttnbd/bttnbd/btt"
	"github.com/bttnbd/bttnbd/check"
	"github.com/bttnbd/bttnbd/layout"
	"github.com/bttnbd/bttnbd/pmem"
)

const size = 20 << 20

// newImage is an image of one or more arenas, with the damage that poke does to it.
func newImage(t *testing.T, arenas int, poke func(*pmem.Region, *check.Image)) *pmem.Region {
	t.Helper()
	r := pmem.NewHeap(layout.Kernel.Start + uint64(arenas)*size)
	p := btt.FormatParams{Flavour: layout.Kernel, SectorSize: 4096, UUID: uuid.UUID{1}, Zeroed: true, MaxArena: size}
	if err := btt.Format(r, p); err != nil {
		t.Fatal(err)
	}
	im, err := check.Inspect(r, check.Options{MaxArena: size})
	if err != nil {
		t.Fatal(err)
	}
	poke(r, im)
	return r
}

// newPage is what check --html makes of an image.
func newPage(t *testing.T, r *pmem.Region) *Page {
	t.Helper()
	o := check.Options{MaxArena: size}
	rep, err := check.Run(t.Context(), r, o)
	if err != nil {
		t.Fatal(err)
	}
	if !rep.Clean() {
		if err := check.Preview(t.Context(), r, rep, check.RepairOptions{Options: o}); err != nil {
			t.Fatal(err)
		}
	}
	im, err := check.Inspect(r, o)
	if err != nil {
		t.Fatal(err)
	}
	charts, err := check.Chart(t.Context(), r, im, Cells, o)
	if err != nil {
		t.Fatal(err)
	}
	return &Page{Report: rep, Image: im, Charts: charts, Command: "bttcheck", Word: "disk.img", Made: time.Unix(0, 0), Program: "bttnbd test"}
}

func setEntry(r *pmem.Region, im *check.Image, arena int, lba uint64, entry layout.MapEntry) {
	a := &im.Arenas[arena]
	r.Store32(a.Offset+a.Info.MapOff+4*lba, uint32(entry))
}

func nothing(*pmem.Region, *check.Image) {}

func shared(r *pmem.Region, im *check.Image) {
	setEntry(r, im, 0, 3, layout.NormalEntry(7))
	setEntry(r, im, 0, 9, layout.NormalEntry(7))
	setEntry(r, im, 0, 100, layout.ErrorEntry(100))
}

func html(t *testing.T, p *Page) string {
	t.Helper()
	var b bytes.Buffer
	if err := p.HTML(&b); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func svg(t *testing.T, p *Page) string {
	t.Helper()
	var b bytes.Buffer
	if err := p.SVG(&b); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// Goal: the page says first what the matter is and what to do, then everything that was
// found, what a repair does about it, and the LBAs that are lost.
func TestPage(t *testing.T) {
	for _, c := range []struct {
		name       string
		arenas     int
		poke       func(*pmem.Region, *check.Image)
		want, none []string
	}{
		{"clean", 1, nothing, []string{
			`<header class="good">`, "<h1>Clean</h1>", "<p>Nothing.</p>", "arena 0 at offset 4096", "4852 of 4096 bytes",
		}, []string{"--repair", "What a repair would do"}},
		{"shared block", 1, shared, []string{
			`<header class="bad">`, "<h1>Damaged: 3 errors, 0 warnings</h1>", "reads of 3 LBAs would fail until written",
			"<pre>bttcheck --repair --backup undo disk.img</pre>", "<code>block-duplicate</code>", `data-head="LBAs lost by a repair:">3, 7, 9</td>`,
			"What a repair would do", "Reads fail until they are written (3):</b> LBA 3, 7, 9", "070000c0<br>07000040", "<code>map-error</code>",
		}, []string{"Nothing."}},
		{"two arenas", 2, func(r *pmem.Region, im *check.Image) { setEntry(r, im, 1, 5, layout.NormalEntry(1<<29)) }, []string{
			"arena 0 at offset 4096", "arena 1 at offset 20975616", "<code>map-range</code>", ">4857<",
		}, nil},
		{"only a warning", 1, func(r *pmem.Region, im *check.Image) { setEntry(r, im, 0, 5, 77) }, []string{
			`<header class="warn">`, "<h1>No damage, 1 warning</h1>",
		}, nil},
		{"flog lost", 1, func(r *pmem.Region, im *check.Image) {
			a := &im.Arenas[0]
			r.Write(a.Offset+a.Info.FlogOff, bytes.Repeat([]byte{0xff}, int(a.Info.Nfree*layout.FlogGroupSize)))
		}, []string{`<header class="bad">`, "There is nothing that a repair would do without guessing.", "<b>A repair would change nothing:</b>", "What a repair leaves, and why", "how many"}, []string{"LBAs lost by a repair"}},
		{"one info block", 1, func(r *pmem.Region, im *check.Image) { r.Write(im.Arenas[0].Offset, make([]byte, 4096)) }, []string{
			`<header class="bad">`, "What a repair would do", "<code>info-signature</code>",
		}, []string{"bytes before, after", "4096 bytes<br>", ">LBA<", "how many", "would change nothing"}},
	} {
		page := html(t, newPage(t, newImage(t, c.arenas, c.poke)))
		for _, text := range c.want {
			if !strings.Contains(page, text) {
				t.Errorf("%s: the page does not have %q", c.name, text)
			}
		}
		for _, text := range c.none {
			if strings.Contains(page, text) {
				t.Errorf("%s: the page has %q", c.name, text)
			}
		}
		if t.Failed() {
			t.Fatal(page[strings.Index(page, "<body>"):])
		}
	}
}

// Goal: after a repair the page tells of the image as it is now, and what was done.
func TestRepaired(t *testing.T) {
	r := newImage(t, 1, shared)
	page := newPage(t, r)
	rep, err := check.Repair(t.Context(), r, check.RepairOptions{Options: check.Options{MaxArena: size}})
	if err != nil {
		t.Fatal(err)
	}
	page.Report = rep
	text := html(t, page)
	for _, want := range []string{"<h1>Repaired</h1>", "What the repair has done", "What a check found after the repair", "lba 3 is marked as an error"} {
		if !strings.Contains(text, want) {
			t.Errorf("the page does not have %q", want)
		}
	}
}

// Goal: an image of which no info block can be believed, and one that ends too early,
// are drawn as far as that goes.
func TestRuins(t *testing.T) {
	lost := newImage(t, 1, func(r *pmem.Region, im *check.Image) {
		for _, off := range []uint64{im.Arenas[0].Offset, im.Arenas[0].Offset + im.Arenas[0].Info.InfoOff} {
			r.Write(off+104, make([]byte, 8))
		}
	})
	if page := html(t, newPage(t, lost)); !strings.Contains(page, "none that can be believed") || !strings.Contains(page, "an arena without an info block at offset 4096") {
		t.Error("the lost arena is not on the page", page)
	}
	whole := newImage(t, 1, nothing)
	cut := pmem.NewHeap(size / 2)
	b := make([]byte, size/2)
	whole.Read(b, 0)
	cut.Write(0, b)
	if page := html(t, newPage(t, cut)); !strings.Contains(page, "missing: 10 MiB") || !strings.Contains(page, "arena-truncated") {
		t.Error("what is missing is not on the page", page)
	}
}

// Goal: the picture is to scale: the flog is where the geometry has it, in the bar of all
// and in that of its surroundings, and each finding has a mark at its place.
func TestScale(t *testing.T) {
	r := newImage(t, 1, shared)
	p := newPage(t, r)
	in, base := &p.Image.Arenas[0].Info, p.Image.Arenas[0].Offset
	end := in.InfoOff + layout.InfoSize
	var flogs, marks []shape
	for _, s := range p.picture().Shapes {
		switch {
		case s.Class == "flog":
			flogs = append(flogs, s)
		case strings.HasPrefix(s.Class, "mark") && strings.Contains(s.Title, "block-duplicate"):
			marks = append(marks, s)
		}
	}
	if len(flogs) != 3 || len(marks) != 2 {
		t.Fatalf("%d flogs, %d marks, want 3, 2", len(flogs), len(marks))
	}
	for i, from := range []uint64{0, in.MapOff, in.FlogOff} {
		scale := picWidth / float64(end-from)
		x, w := float64(in.FlogOff-from)*scale, float64(in.InfoOff-in.FlogOff)*scale
		if math.Abs(flogs[i].X-x) > 0.02 || math.Abs(flogs[i].W-max(w, 0.5)) > 0.02 {
			t.Errorf("bar %d: the flog is at %v, %v wide, want %v, %v", i, flogs[i].X, flogs[i].W, x, w)
		}
	}
	block := in.DataOff + 7*uint64(in.InternalLBASize)
	for i, at := range []float64{float64(base+block) / float64(p.Image.Size), float64(block) / float64(end)} {
		if want := fmt.Sprintf("%g,", round(at*picWidth)); !strings.HasPrefix(marks[i].Points, want) {
			t.Errorf("mark %d at %s, want %s", i, marks[i].Points, want)
		}
	}
}

// hostile is text as an image, or who names one, could have it.
const hostile = `"><script>alert(1)</script><img src=x onerror=alert(2)>'--></style></title>]]>&lt;` +
	"\x00\x1b[31m\x7f\u202egnp.exe\u2028\xff\xfe{{.Path}}`${1}javascript:"

// Goal: nothing that an image says becomes part of the page or of the picture.
func TestHostile(t *testing.T) {
	p := newPage(t, newImage(t, 1, shared))
	plain := [2][]string{elements(t, html(t, p)), elements(t, svg(t, p))}
	r := p.Report
	r.Path, r.Format, r.UUID, p.Word, p.Program, p.Image.Path = hostile, hostile, hostile, hostile, hostile, hostile
	for i := range r.Findings {
		r.Findings[i].Message, r.Findings[i].Repair = hostile, hostile
	}
	for i := range r.Plan.Steps {
		r.Plan.Steps[i].Why = hostile
	}
	r.Plan.Refused = append(r.Plan.Refused, check.Refusal{Why: hostile})
	r.After = r
	after := *r
	after.After = nil
	r.After = &after
	for i, text := range []string{html(t, p), svg(t, p)} {
		kinds := map[string]bool{}
		for _, e := range plain[i] {
			kinds[e] = true
		}
		for _, e := range elements(t, text) {
			if !kinds[e] && e != "h2" {
				t.Errorf("the element %s has come in", e)
			}
		}
		for _, r := range text {
			if r < ' ' && r != '\n' || r == '\u202e' || r == '\u2028' || r == 0x7f {
				t.Errorf("the character %U has come through", r)
			}
		}
		if strings.Contains(text, "<pre>bttcheck --repair --backup undo &#34;") {
			t.Error("a command to be copied has what the image says")
		}
	}
}

// elements are the names of all elements; it fails at what is not well-formed, and at
// attributes that would run or fetch anything.
func elements(t *testing.T, text string) (names []string) {
	t.Helper()
	d := xml.NewDecoder(strings.NewReader(text))
	if strings.HasPrefix(text, "<!DOCTYPE html>") { // HTML's own empty elements
		d.Strict, d.AutoClose, d.Entity = false, xml.HTMLAutoClose, xml.HTMLEntity
	}
	for {
		token, err := d.Token()
		if errors.Is(err, io.EOF) {
			return names
		}
		if err != nil {
			t.Fatalf("%v:\n%s", err, text)
		}
		if e, ok := token.(xml.StartElement); ok {
			names = append(names, e.Name.Local)
			for _, a := range e.Attr {
				if name := a.Name.Local; strings.HasPrefix(name, "on") || name == "src" || name == "href" || name == "style" {
					t.Errorf("<%s %s=%q>", e.Name.Local, name, a.Value)
				}
			}
		}
	}
}

// Goal: an image full of damage makes a page that a browser can show.
func TestMuchDamage(t *testing.T) {
	p := newPage(t, newImage(t, 2, func(r *pmem.Region, im *check.Image) {
		for lba := range uint64(3000) {
			setEntry(r, im, 0, lba, layout.NormalEntry(1<<29))
		}
	}))
	for len(p.Report.Findings) < 5000 {
		p.Report.Findings = append(p.Report.Findings, p.Report.Findings[0])
	}
	for len(p.Image.Arenas) < 100 {
		p.Image.Arenas = append(p.Image.Arenas, p.Image.Arenas[1])
	}
	text := html(t, p)
	for _, want := range []string{"4000 more are not listed", "<code>map-range</code></td></tr>", "more changes are not listed", "84 more arenas are not drawn", "Reads fail until they are written (3000):</b> LBA 0-2999<"} {
		if !strings.Contains(text, want) {
			t.Errorf("the page does not have %q", want)
		}
	}
	if len(text) > 2<<20 {
		t.Errorf("the page has %d bytes", len(text))
	}
}
