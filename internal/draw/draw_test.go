package draw

import (
	"strings"
	"testing"

	"github.com/bttnbd/bttnbd/check"
)

// Goal: colour and Unicode are for terminals that have them, and for who wants them.
func TestStyleOf(t *testing.T) {
	for _, c := range []struct {
		terminal        bool
		env             string
		colour, unicode bool
	}{
		{false, "TERM=xterm LANG=C.UTF-8", false, false},
		{true, "TERM=xterm LANG=de_DE.utf8", true, true},
		{true, "TERM=xterm LANG=C", true, false},
		{true, "TERM=xterm", true, false},
		{true, "TERM=xterm LANG=C.UTF-8 LC_ALL=C", true, false},
		{true, "TERM=xterm LANG=C LC_CTYPE=en_US.UTF-8", true, true},
		{true, "TERM=xterm NO_COLOR=1 LANG=C.UTF-8", false, true},
		{true, "TERM=dumb LANG=C.UTF-8", false, true},
		{true, "LANG=C.UTF-8", false, true},
	} {
		s := StyleOf(c.terminal, 100, func(name string) string {
			for _, pair := range strings.Fields(c.env) {
				if value, ok := strings.CutPrefix(pair, name+"="); ok {
					return value
				}
			}
			return ""
		})
		if s.Colour != c.colour || s.Unicode != c.unicode || s.Width != 100 {
			t.Errorf("%v %s: %v", c.terminal, c.env, s)
		}
	}
}

// oneOfEach is a chart with a cell of each look, of 8 blocks each.
func oneOfEach() []check.ArenaChart {
	cells := []check.Cell{
		{Initial: 8}, {Zero: 6, Initial: 2}, {Zero: 2, Initial: 6}, {Data: 1, Initial: 7}, {Data: 4, Zero: 4}, {Data: 8},
		{Data: 7, Error: 1}, {Free: 4, Data: 4}, {Free: 3, Data: 5}, {Data: 8, Wrong: 1}, {Free: 8},
	}
	c := check.ArenaChart{Charted: true, Lanes: 15, Sum: check.Cell{Data: 37, Zero: 12, Error: 1, Initial: 15}}
	c.Premap = check.Strip{Blocks: 8 * uint32(len(cells)), PerCell: 8, Cells: cells}
	c.Postmap = c.Premap
	return []check.ArenaChart{c}
}

// Goal: each kind of cell has its look, an error however small, and the legend has the
// numbers.
func TestCharts(t *testing.T) {
	both := Order{Premap: true, Postmap: true}
	plain := Charts(oneOfEach(), both, Style{})
	for _, want := range []string{
		"\narena 0 by LBA: 8 blocks in each cell\n           0 |.0.-+#EF+!F|\n",
		"\narena 0 by place on media: 8 blocks in each cell\n           0 |.0.-+#EF+!F|\n",
		"whole arena\n             |       43 8|\n",
		"\n  -+#                 37  data, ", "\n  0                   12  zeros\n", "\n  F                   15  free",
		"\n  !                    1  blocks without an owner",
	} {
		if !strings.Contains(plain, want) {
			t.Errorf("no %q in\n%s", want, plain)
		}
	}
	for _, r := range plain {
		if r > '~' || r < ' ' && r != '\n' {
			t.Errorf("%q in plain text", r)
		}
	}
	full := Charts(oneOfEach(), both, Style{Colour: true, Unicode: true})
	const want = "│\x1b[90m·\x1b[0m\x1b[34m○\x1b[0m\x1b[90m·\x1b[0m\x1b[32m▂▅█\x1b[0m\x1b[31m✖\x1b[0m\x1b[33m◆\x1b[0m\x1b[32m▆\x1b[0m\x1b[31m!\x1b[0m\x1b[33m◆\x1b[0m│"
	if !strings.Contains(full, want) {
		t.Errorf("no %q in\n%q", want, full)
	}
	if lba := Charts(oneOfEach(), Order{Premap: true}, Style{}); strings.Contains(lba, "media") || strings.Contains(lba, "free") {
		t.Errorf("more than was asked for:\n%s", lba)
	}
}

// Goal: no row is wider than the terminal, and an image with many arenas not longer
// than a few rows for each.
func TestWidth(t *testing.T) {
	for _, width := range []int{0, 40, 80, 132, 1000} {
		s := Style{Width: width}
		for _, arenas := range []int{1, 4, 100} {
			cells := make([]check.Cell, s.Cells(arenas))
			strip := check.Strip{Blocks: uint32(len(cells)), PerCell: 1, Cells: cells}
			text := Charts([]check.ArenaChart{{Charted: true, Premap: strip, Postmap: strip}}, Order{true, true}, s)
			rows := 0
			for line := range strings.Lines(text) {
				if strings.Contains(line, "|") {
					if rows++; len(line)-1 > s.width() {
						t.Errorf("width %d: a row of %d", s.width(), len(line)-1)
					}
				}
			}
			if rows > 2*maxRows+1 || arenas >= maxRows && rows > 3 {
				t.Errorf("width %d, %d arenas: %d rows", width, arenas, rows)
			}
		}
	}
	if text := Charts([]check.ArenaChart{{Arena: 3}}, Order{true, true}, Style{}); !strings.Contains(text, "arena 3 is cut off") {
		t.Error(text)
	}
}
