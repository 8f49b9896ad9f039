package main

// steps are the write path of btt/doc.go, from left to right. Between two steps is a
// drain.
var steps = []struct {
	title string
	area  int // where it stores, of areas below; -1: nowhere
	does  []string
	after []string // what recovery finds, and does, when power fails before the next drain is done
	block string   // what the block is then
}{
	{
		title: "1  data", area: 0,
		does:  []string{"copy the data into", "the lanes’ free blocks,", "around the cache"},
		after: []string{"old record, old map:", "nothing to do"},
		block: "old",
	},
	{
		title: "2  announce", area: 1,
		does:  []string{"lock the map lines;", "{lba, old}, {new, seq}", "into the older record"},
		after: []string{"old record: nothing to do", "new record: roll forward"},
		block: "old, or new",
	},
	{
		title: "3  swing", area: 2,
		does:  []string{"the map entry now", "names the new block:", "one store of 4 bytes"},
		after: []string{"new record, old map:", "roll forward;", "new map: nothing to do"},
		block: "new",
	},
	{
		title: "answer", area: -1,
		does:  []string{"unlock, give back", "the lanes: each owns", "the block replaced"},
		after: []string{"new record, new map:", "nothing to do"},
		block: "new, and acknowledged",
	},
}

// drawWrite has time from left to right, what is stored to from top to bottom, and
// below what recovery makes of a power cut in each step.
func drawWrite() []byte {
	const left, column, gap, row = 130, 172, 28, 76
	c := newCanvas(940, 504, "The write path: three steps, three drains",
		"A write fills a free block, announces the move in the flog, and swings the map entry over, with a drain after each. A power cut in the first step leaves the old block, in the second the old or the new one, in the third the new one.")
	c.text(20, 30, "head", "A write of up to 32 blocks: three drains, however many blocks")
	areas := []struct{ name, class string }{{"free blocks", "data"}, {"flog", "meta"}, {"map", "meta"}}
	for i, a := range areas {
		y := 70 + i*row
		c.text(20, y+row/2+4, "", a.name)
		c.path(false, "M%d %dH%d", left-10, y+row/2, 920)
	}
	foot := 70 + len(areas)*row
	c.text(20, foot+50, "", "power fails:")
	c.text(20, foot+67, "dim", "recovery finds")
	c.text(20, foot+136, "", "the block is")
	for i, s := range steps {
		x := left + i*(column+gap)
		c.text(x+column/2, 60, "middle head", s.title)
		if s.area >= 0 {
			c.box(x, 76+s.area*row, column, row-12, areas[s.area].class, s.does...)
		} else {
			c.box(x, 76, column, 3*row-12, "box", s.does...)
		}
		c.lines(x, foot+50, "", s.after...)
		c.box(x, foot+116, column, 32, "info", s.block)
		if i > 0 {
			c.add(`<rect class="drain" x="%d" y="70" width="6" height="%d" rx="2"/>`, x-gap/2-3, foot-60)
			c.text(x-gap/2, foot+25, "middle dim", "drain")
		}
	}
	c.lines(20, foot+176, "dim",
		"A drain waits until everything stored before it is durable. Without the first, a record could name a block whose data is torn; without the second,",
		"a block could be in the map and free at once; without the third, a lane could be used again while the map on media still names its block.")
	return c.bytes()
}
