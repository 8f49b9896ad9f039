package main

import (
	"fmt"

	"github.com/bttnbd/bttnbd/layout"
)

// drawMedia is what layout/doc.go says, with the figures of one example: containers
// above, then an arena, then a map entry and a lane of the flog.
func drawMedia() ([]byte, error) {
	const size, sector = 1 << 30, 4096
	g, err := layout.Kernel.Geometry(size-layout.Kernel.Start, sector, layout.DefaultNfree)
	if err != nil {
		return nil, err
	}
	c := newCanvas(940, 606, "The Block Translation Table on media",
		"Containers of the three flavours, the areas of an arena, the bits of a map entry, and the two records of a lane of the flog.")
	c.text(20, 30, "head", "Container: where the arenas are")
	const left, right = 130, 920
	y := 48
	for _, f := range layout.Flavours() {
		c.text(20, y+20, "", f.Name)
		drawContainer(c, f, left, right, y)
		y += 52
	}
	c.zoom(left+150, left+440, y-22, left, right, y+30)
	c.text(20, y+22, "head", "Arena")
	drawArena(c, g, left, right, y+30)
	c.text(20, y+122, "dim", fmt.Sprintf("Example: a file of 1 GiB, flavour %s, sectors of %d bytes. Offsets count from the start of the arena.", layout.Kernel.Name, sector))
	c.text(20, y+139, "dim", fmt.Sprintf("%d internal blocks, one for each of %d blocks that the user sees, and a free one for each of %d lanes.",
		g.InternalNLBA, g.ExternalNLBA, g.Nfree))
	drawEntry(c, left, right, y+166)
	drawLane(c, left, right, y+280)
	return c.bytes(), nil
}

// drawContainer is a row: what stands in front of arena 0, arena 0, and the others.
func drawContainer(c *canvas, f layout.Flavour, left, right, y int) {
	const h, first, next, more = 30, 150, 440, 640
	switch {
	case f.Pool:
		c.box(left, y, 75, h, "info", "header")
		c.box(left+75, y, 75, h, "box", "block size")
	case f.Start > 0:
		c.box(left+75, y, 75, h, "box", "unused")
	}
	c.box(left+first, y, next-first, h, "data", "arena 0")
	c.box(left+next, y, more-next, h, "data", "arena 1 …")
	c.box(left+more, y, right-left-more, h, "box", fmt.Sprintf("rest, if < %d MiB", layout.MinArenaSize>>20))
	c.text(left+first, y+h+14, "dim code middle", fmt.Sprint(f.Start))
	second := fmt.Sprintf("%d GiB", layout.MaxArenaSize>>30)
	if f.Start > 0 {
		second = fmt.Sprintf("%d + %s", f.Start, second)
	}
	c.text(left+next, y+h+14, "dim code middle", second)
}

func drawArena(c *canvas, g layout.Geometry, left, right, y int) {
	type area struct {
		name, note, class string
		off               uint64
		w                 int
	}
	areas := []area{
		{"info", fmt.Sprintf("%d B", layout.InfoSize), "info", 0, 70},
		{"internal blocks", fmt.Sprintf("%d × %d B", g.InternalNLBA, g.InternalLBASize), "data", g.DataOff, 330},
		{"map", "4 B a block", "meta", g.MapOff, 170},
		{"flog", fmt.Sprintf("%d B a lane", layout.FlogGroupSize), "meta", g.FlogOff, 130},
		{"info", "backup", "info", g.InfoOff, right - left - 700},
	}
	x := left
	for _, a := range areas {
		c.box(x, y, a.w, 50, a.class, a.name, a.note)
		c.text(x+2, y+66, "dim code", fmt.Sprintf("%#x", a.off))
		x += a.w
	}
}

// drawEntry is a map entry, and what its flags mean.
func drawEntry(c *canvas, left, right, y int) {
	c.text(20, y, "head", "Map entry: 4 bytes for each block that the user sees")
	c.box(left, y+14, 70, 32, "info", "zero")
	c.box(left+70, y+14, 70, 32, "info", "error")
	c.box(left+140, y+14, right-left-140, 32, "meta", "internal block that it owns: 30 bits")
	c.text(left+35, y+60, "dim code middle", "31")
	c.text(left+105, y+60, "dim code middle", "30")
	c.text(left+140, y+60, "dim code", "29 … 0")
	x := left
	for _, e := range []struct {
		entry layout.MapEntry
		means string
	}{
		{layout.NormalEntry(0), "1 1 normal"},
		{layout.ZeroEntry(0), "1 0 reads as zeros"},
		{layout.ErrorEntry(0), "0 1 reads fail"},
		{0, "0 0 never written: owns the block of its number"},
	} {
		c.text(x, y+84, "dim", e.means)
		x += 150
		if got := fmt.Sprintf("%d %d", uint32(e.entry)>>31, uint32(e.entry)>>30&1); got != e.means[:3] {
			panic("the picture says " + e.means + ", the format " + got)
		}
	}
}

// drawLane is one lane of the flog in the padding of today.
func drawLane(c *canvas, left, right, y int) {
	c.text(20, y, "head", fmt.Sprintf("Flog: a lane is one cache line of %d bytes with two records; the one with the newer seq is current", layout.FlogGroupSize))
	const field = 68
	x := left
	for range layout.PaddingNew + 1 {
		for _, name := range []string{"lba", "old", "new", "seq"} {
			c.box(x, y+14, field, 32, "meta", name)
			x += field
		}
	}
	c.box(x, y+14, right-x, 32, "box", "zeros: padding "+layout.PaddingNew.String())
	for i := range 3 {
		c.text(left+i*4*field+2, y+60, "dim code", fmt.Sprint(i*layout.FlogRecordSize))
	}
	c.lines(left, y+84, "dim", "A record says: block lba moves from internal block old to new. It is stored as {lba, old}, then {new, seq}: of a",
		"cache line a crash leaves a prefix of what was stored.")
}
