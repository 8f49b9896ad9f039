package report

import (
	"fmt"
	"math"

	"github.com/bttnbd/bttnbd/check"
	"github.com/bttnbd/bttnbd/internal/units"
	"github.com/bttnbd/bttnbd/layout"
)

// The picture, in units of about a pixel. For each arena:
//
//	arena 0 …                            title
//	|i|  data                   |m|f|i|  all of it, to scale; above it, what was found
//	                           /      \
//	|  map                         |f|i| from the map on, to scale
//	                                /  \
//	|  flog                   |  info  | from the flog on, to scale
const (
	picWidth  = 960
	barHeight = 34
	barGap    = 34 // between two bars, for the lines of the zoom and the names of what is small
	maxDrawn  = 16 // arenas
)

// picture is shapes, in the order in which they are painted.
type picture struct {
	Width, Height float64
	Shapes        []shape
	Omitted       int // arenas that are not drawn
	Legend        []mark
}

// shape is a rectangle with a text in it, a line of text, or a polygon.
type shape struct {
	Kind       string // rect, text or poly
	Class      string
	X, Y, W, H float64
	Points     string
	Text       string // of a text
	Anchor     string // of a text: start, middle or end
	Title      string // what a pointer held over it shows
}

// mark explains a colour.
type mark struct{ Class, Text string }

func (p *Page) picture() picture {
	pic := picture{Width: picWidth, Legend: []mark{
		{"data", "data (paler: less of it)"}, {"zero", "zeros"}, {"initial", "never written"}, {"free", "free blocks of lanes"},
		{"error", "error entries, bad info blocks"}, {"wrong", "blocks without an owner, or with several"}, {"info", "info block"}, {"map", "map"}, {"flog", "flog"},
	}}
	d := drawing{picture: &pic, y: 4, found: final(p.Report).Findings, image: p.Image}
	d.wholeFile()
	for i := range p.Image.Arenas {
		if i == maxDrawn {
			pic.Omitted = len(p.Image.Arenas) - i
			break
		}
		var chart *check.ArenaChart
		if i < len(p.Charts) && p.Charts[i].Charted {
			chart = &p.Charts[i]
		}
		d.arena(&p.Image.Arenas[i], chart)
	}
	pic.Height = d.y
	return pic
}

// drawing is a picture in the making.
type drawing struct {
	*picture
	y     float64 // where the next thing goes
	found []check.Finding
	image *check.Image
}

// scale maps bytes of the image to the width of the picture.
type scale struct{ from, to uint64 }

func (s scale) x(off uint64) float64 {
	off = min(max(off, s.from), s.to)
	return round(float64(off-s.from) / float64(max(1, s.to-s.from)) * picWidth)
}

func round(x float64) float64 { return math.Round(x*100) / 100 }

func (d *drawing) text(class, anchor string, x, y float64, format string, args ...any) {
	d.Shapes = append(d.Shapes, shape{Kind: "text", Class: class, Anchor: anchor, X: round(x), Y: round(y), Text: clean(fmt.Sprintf(format, args...))})
}

func (d *drawing) rect(class string, x, w, h float64, title string) {
	d.Shapes = append(d.Shapes, shape{Kind: "rect", Class: class, X: round(x), Y: d.y, W: round(max(w, 0.5)), H: h, Title: clean(title)})
}

// wholeFile is one bar with the arenas of the whole file.
func (d *drawing) wholeFile() {
	d.text("title", "start", 0, d.y+14, "the whole file, %s", units.Short(d.image.Size))
	d.y += 22
	s := scale{0, d.image.Size}
	d.rect("unused", 0, picWidth, 22, "outside of the arenas")
	for i := range d.image.Arenas {
		a := &d.image.Arenas[i]
		end := min(arenaEnd(a), d.image.Size)
		w := s.x(end) - s.x(a.Offset)
		d.rect([2]string{"even", "odd"}[i%2], s.x(a.Offset), w, 22, fmt.Sprintf("arena %d: offset %d to %d", a.Index, a.Offset, end))
		if w > 60 {
			d.text("in", "middle", s.x(a.Offset)+w/2, d.y+15, "arena %d", a.Index)
		}
	}
	if l := d.image.Lost; l != nil {
		x := min(s.x(l.Offset), picWidth-6)
		d.rect("wrong", x, 6, 22, fmt.Sprintf("an arena should begin at offset %d, and neither info block of it can be believed", l.Offset))
		d.text("small", "end", picWidth, d.y-6, "an arena without an info block at offset %d", l.Offset)
	}
	d.y += 22
	d.markers(s, d.y, true)
	d.y += 26
}

func arenaEnd(a *check.Arena) uint64 { return a.Offset + a.Info.InfoOff + layout.InfoSize }

// part is an area of an arena.
type part struct {
	class, name string
	from, to    uint64 // in the image
	strip       *check.Strip
}

// arena is drawn in up to three bars, each of which shows the end of the one above.
func (d *drawing) arena(a *check.Arena, chart *check.ArenaChart) {
	in, base := &a.Info, a.Offset
	data := part{"even", "data", base + in.DataOff, base + in.DataOff + uint64(in.InternalNLBA)*uint64(in.InternalLBASize), nil}
	entries := part{"map", "map", base + in.MapOff, base + in.MapOff + 4*uint64(in.ExternalNLBA), nil}
	if chart != nil {
		data.strip, entries.strip = &chart.Postmap, &chart.Premap
	}
	parts := []part{
		data, entries, {infoClass(&a.Primary), "info block", base, base + layout.InfoSize, nil},
		{"flog", "flog", base + in.FlogOff, base + in.FlogOff + uint64(in.Nfree)*layout.FlogGroupSize, nil},
		{infoClass(&a.Backup), "info block, backup", base + in.InfoOff, arenaEnd(a), nil},
	}
	d.text("title", "start", 0, d.y+14, "arena %d at offset %d, %s in %d blocks of %d bytes, %d lanes",
		a.Index, base, units.Short(arenaEnd(a)-base), in.InternalNLBA, in.InternalLBASize, in.Nfree)
	d.y += 26
	bars := []struct {
		scale scale
		note  string
	}{
		{scale{base, arenaEnd(a)}, ""},
		{scale{base + in.MapOff, arenaEnd(a)}, "from the map on"},
		{scale{base + in.FlogOff, arenaEnd(a)}, "from the flog on"},
	}
	for i, b := range bars {
		d.bar(b.scale, parts, a)
		if i+1 == len(bars) {
			break
		}
		next := bars[i+1].scale
		d.text("small", "start", 0, d.y+15, "%s: %s, to scale", bars[i+1].note, units.Short(next.to-next.from))
		d.zoom(b.scale, next)
	}
	d.y += 22
}

// infoClass is the colour of a copy of the info block.
func infoClass(c *check.InfoCopy) string {
	if c.Err != nil {
		return "info broken"
	}
	return "info"
}

// bar draws the parts that lie in the scale, what is missing of the arena, and what
// was found there.
func (d *drawing) bar(s scale, parts []part, a *check.Arena) {
	d.markers(s, d.y, false)
	d.rect("slack", 0, picWidth, barHeight, "unused")
	for i := range parts {
		p := &parts[i]
		if p.from < s.from {
			continue
		}
		x, w := s.x(p.from), s.x(p.to)-s.x(p.from)
		if least := 3.0; p.to-p.from == layout.InfoSize && w < least { // to be seen at all
			x, w = min(x, picWidth-least), least
		}
		title := fmt.Sprintf("%s: offset %d, %s", p.name, p.from, units.Bytes(p.to-p.from))
		class := p.class
		if p.strip != nil {
			class = "initial" // what is between its cells
		}
		d.rect(class, x, w, barHeight, title)
		d.strip(p, x, w)
		d.frame(x, w)
		if w > 7*float64(len(p.name))+10 {
			class = "in"
			if p.strip != nil || a.Missing > 0 {
				class = "over"
			}
			d.text(class, "middle", x+w/2, d.y+barHeight/2+4, "%s", p.name)
		}
	}
	if a.Missing > 0 {
		x := s.x(arenaEnd(a) - min(a.Missing, arenaEnd(a)-s.from))
		d.rect("missing", x, picWidth-x, barHeight, "the file ends here")
		if s.from == a.Offset {
			d.text("over", "end", picWidth-6, d.y+barHeight/2+4, "missing: %s", units.Short(a.Missing))
		}
	}
	d.y += barHeight
}

func (d *drawing) frame(x, w float64) { d.rect("frame", x, w, barHeight, "") }

// strip fills a part with the cells of a chart; neighbours that look alike are one.
func (d *drawing) strip(p *part, x, w float64) {
	if p.strip == nil || len(p.strip.Cells) == 0 {
		return
	}
	at := func(cell int) float64 {
		return x + w*min(1, float64(cell)*float64(p.strip.PerCell)/float64(p.strip.Blocks))
	}
	for i := 0; i < len(p.strip.Cells); {
		class := cellClass(&p.strip.Cells[i], p.strip.Size(i))
		j := i + 1
		for j < len(p.strip.Cells) && cellClass(&p.strip.Cells[j], p.strip.Size(j)) == class {
			j++
		}
		d.rect("cell "+class, at(i), at(j)-at(i), barHeight, "")
		i = j
	}
}

// cellClass is the colour of a cell: what is wrong first, then what there is most of.
func cellClass(c *check.Cell, size uint64) string {
	switch {
	case c.Wrong > 0:
		return "wrong"
	case c.Error > 0:
		return "error"
	case c.Free > 0 && c.Free >= c.Data && c.Free >= c.Initial && c.Free >= c.Zero:
		return "free"
	case c.Data > 0:
		return fmt.Sprintf("data d%d", 1+min(3, c.Data*4/size))
	case c.Zero > c.Initial:
		return "zero"
	}
	return "initial"
}

// zoom leads from where the next scale lies in this one to the bar of the next.
func (d *drawing) zoom(s, next scale) {
	from := s.x(next.from)
	d.Shapes = append(d.Shapes, shape{Kind: "poly", Class: "zoom", Points: fmt.Sprintf("%g,%g %d,%g %d,%g 0,%g",
		from, d.y, picWidth, d.y, picWidth, d.y+barGap, d.y+barGap)})
	d.y += barGap
}

// markers are small triangles above or below y where errors and warnings are, at most
// one on each place.
func (d *drawing) markers(s scale, y float64, below bool) {
	worst := map[int]*check.Finding{}
	for i := range d.found {
		f := &d.found[i]
		if f.Severity == check.Info || f.More > 0 || f.Offset < s.from || f.Offset >= s.to {
			continue
		}
		at := int(s.x(f.Offset)) / 4
		if was := worst[at]; was == nil || was.Severity < f.Severity {
			worst[at] = f
		}
	}
	const size = 5
	tip, flat := y, y-2*size
	if below {
		tip, flat = y+1, y+1+2*size
	}
	for at := range picWidth/4 + 1 {
		if f := worst[at]; f != nil {
			x := s.x(f.Offset)
			d.Shapes = append(d.Shapes, shape{
				Kind: "poly", Class: "mark " + f.Severity.String(),
				Points: fmt.Sprintf("%g,%g %g,%g %g,%g", x, tip, x-size, flat, x+size, flat),
				Title:  clean(fmt.Sprintf("%v at offset %d: %s", f.Kind, f.Offset, f.Message)),
			})
		}
	}
}

// placed is a mark of the legend of a picture that stands alone.
type placed struct {
	mark
	X, Y, TextX, TextY float64
}

const (
	legendColumns = 3
	legendRow     = 22
)

// LegendAt are the marks of the legend, in rows.
func (p *picture) LegendAt() (list []placed) {
	for i, m := range p.Legend {
		x, y := float64(i%legendColumns*picWidth/legendColumns), float64(i/legendColumns*legendRow)
		list = append(list, placed{m, x, y, x + 20, y + 12})
	}
	return list
}

// PageWidth is the width with room for a marker at either end.
func (p *picture) PageWidth() float64 { return p.Width + 16 }

// OuterWidth and OuterHeight are the sizes with margin, headline and legend.
func (p *picture) OuterWidth() float64 { return p.Width + 32 }

// OuterHeight: see OuterWidth.
func (p *picture) OuterHeight() float64 {
	rows := (len(p.Legend) + legendColumns - 1) / legendColumns
	return p.Height + 70 + float64(rows)*legendRow + 16
}
