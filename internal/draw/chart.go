package draw

import (
	"fmt"
	"strings"

	"github.com/bttnbd/bttnbd/check"
	"github.com/bttnbd/bttnbd/internal/units"
)

// Order is which of the two orders of blocks are drawn.
type Order struct {
	Premap  bool // that of the map: what a user sees at an LBA
	Postmap bool // that of the data area: what is where on the medium
}

// margin is the width of the number in front of each row, and of the bars.
const margin = 14

// maxRows is how many rows a strip has at most.
const maxRows = 16

// Columns is how many cells a row has.
func (s Style) Columns() int { return max(16, min(s.width()-margin-1, 256)) }

// Cells is how many cells a strip of an image with so many arenas should have, so that
// all of it stays on a page or two.
func (s Style) Cells(arenas int) int {
	return s.Columns() * max(1, maxRows/max(1, arenas))
}

// glyphs are the characters of a chart.
type glyphs struct {
	initial, zero, free, bad, wrong string
	data                            []string // from a little to all
	bar                             string
}

var (
	ascii = glyphs{".", "0", "F", "E", "!", []string{"-", "+", "#"}, "|"}
	fancy = glyphs{"·", "○", "◆", "✖", "!", []string{"▁", "▂", "▃", "▄", "▅", "▆", "▇", "█"}, "│"}
)

func (s Style) glyphs() *glyphs {
	if s.Unicode {
		return &fancy
	}
	return &ascii
}

// glyph is what a cell looks like. An error, and what is wrong, is shown however little
// it is; else data by its share; else what there is most of.
func (g *glyphs) glyph(c *check.Cell, size uint64) (string, colour) {
	switch {
	case c.Wrong > 0:
		return g.wrong, red
	case c.Error > 0:
		return g.bad, red
	case c.Free > 0 && c.Free >= c.Data && c.Free >= c.Initial && c.Free >= c.Zero:
		return g.free, yellow
	case c.Data > 0:
		n := uint64(len(g.data))
		return g.data[min(n-1, c.Data*n/size)], green
	case c.Zero > c.Initial:
		return g.zero, blue
	}
	return g.initial, grey
}

// Charts draws the arenas, each in the orders asked for, with a legend of counts.
func Charts(list []check.ArenaChart, order Order, s Style) string {
	var b strings.Builder
	for i := range list {
		c := &list[i]
		if !c.Charted {
			fmt.Fprintf(&b, "\narena %d is cut off: its map is not there\n", c.Arena)
			continue
		}
		if order.Premap {
			fmt.Fprintf(&b, "\narena %d by LBA: %s in each cell\n", c.Arena, blocks(c.Premap.PerCell))
			s.strip(&b, &c.Premap)
		}
		if order.Postmap {
			fmt.Fprintf(&b, "\narena %d by place on media: %s in each cell\n", c.Arena, blocks(c.Postmap.PerCell))
			s.strip(&b, &c.Postmap)
			s.lanes(&b, &c.Postmap)
		}
	}
	s.legend(&b, list, order)
	return b.String()
}

func blocks(n uint32) string {
	if n == 1 {
		return "1 block"
	}
	return units.Count(uint64(n)) + " blocks"
}

// strip draws rows of cells, each with the number of its first block in front.
func (s Style) strip(b *strings.Builder, strip *check.Strip) {
	g, columns := s.glyphs(), s.Columns()
	for first := 0; first < len(strip.Cells); first += columns {
		fmt.Fprintf(b, "%*d ", margin-2, uint64(first)*uint64(strip.PerCell))
		b.WriteString(g.bar)
		var run strings.Builder // of one colour, which is then set once
		last := plain
		for i := first; i < min(first+columns, len(strip.Cells)); i++ {
			text, colour := g.glyph(&strip.Cells[i], strip.Size(i))
			if colour != last {
				b.WriteString(s.paint(last, run.String()))
				run.Reset()
				last = colour
			}
			run.WriteString(text)
		}
		b.WriteString(s.paint(last, run.String()) + g.bar + "\n")
	}
}

// lanes draws one row of the whole data area with the free blocks in each part of it:
// among the data of a large image the rows above do not show them.
func (s Style) lanes(b *strings.Builder, strip *check.Strip) {
	columns := min(s.Columns(), len(strip.Cells))
	counts := make([]uint64, columns)
	for i := range strip.Cells {
		counts[i*columns/len(strip.Cells)] += strip.Cells[i].Free
	}
	var row strings.Builder
	for _, n := range counts {
		switch {
		case n == 0:
			row.WriteByte(' ')
		case n < 10:
			fmt.Fprint(&row, n)
		default:
			row.WriteByte('+')
		}
	}
	bar := s.glyphs().bar
	fmt.Fprintf(b, "free blocks of the lanes, over the whole arena\n%*s%s%s%s\n", margin-1, "", bar, s.paint(yellow, row.String()), bar)
}

// legend explains the characters, with how many blocks there are of each kind.
func (s Style) legend(b *strings.Builder, list []check.ArenaChart, order Order) {
	var sum check.Cell
	var lanes, unowned uint64
	for i := range list {
		c := &list[i]
		sum.Data += c.Sum.Data
		sum.Zero += c.Sum.Zero
		sum.Error += c.Sum.Error
		sum.Initial += c.Sum.Initial
		sum.Wrong += c.Sum.Wrong
		lanes += c.Lanes
		for j := range c.Postmap.Cells {
			unowned += c.Postmap.Cells[j].Wrong
		}
	}
	g := s.glyphs()
	line := func(c colour, glyph string, n uint64, what string) {
		pad := strings.Repeat(" ", max(0, len(fancy.data)-len([]rune(glyph))))
		fmt.Fprintf(b, "  %s%s  %12d  %s\n", s.paint(c, glyph), pad, n, what)
	}
	b.WriteString("\n")
	line(green, strings.Join(g.data, ""), sum.Data, "data, by its share of the cell")
	line(blue, g.zero, sum.Zero, "zeros")
	line(grey, g.initial, sum.Initial, "never written: zeros, or what the file had before")
	line(red, g.bad, sum.Error, "errors: reads fail until the block is written")
	if order.Postmap {
		line(yellow, g.free, lanes, "free blocks, one of each lane (10 and more: +)")
	}
	if order.Premap && sum.Wrong > 0 {
		line(red, g.wrong, sum.Wrong, "of these, entries that name no block: see bttcheck")
	}
	if order.Postmap && unowned > 0 {
		line(red, g.wrong, unowned, "blocks without an owner, or with too many: see bttcheck, unless the image is in use")
	}
}
