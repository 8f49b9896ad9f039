package check

import (
	"context"
	"encoding/binary"
	"math/bits"
	"sync"
	"sync/atomic"

	"github.com/bttnbd/bttnbd/layout"
	"github.com/bttnbd/bttnbd/pmem"
)

// Cell is what a run of blocks holds. In the order of the map
// (pre-map LBAs) a block is an external one; in the order of the data (post-map LBAs)
// an internal one, and counts for what owns it.
type Cell struct {
	Initial uint64 `json:"initial"` // never written; owns the internal block of its own number
	Zero    uint64 `json:"zero"`
	Error   uint64 `json:"error"`
	Data    uint64 `json:"data"`
	Free    uint64 `json:"free"`  // post-map only: the free block of a lane
	Wrong   uint64 `json:"wrong"` // pre-map: of all these, entries that name no block; post-map: blocks without an owner, or owners too many
}

// Strip is an area cut into cells of the same number of blocks, the last one perhaps
// shorter.
type Strip struct {
	Blocks  uint32 `json:"blocks"`   // of the whole area
	PerCell uint32 `json:"per_cell"` // at least 1
	Cells   []Cell `json:"cells"`
}

// ArenaChart is where in an arena what is.
type ArenaChart struct {
	Arena   int    `json:"arena"`
	Charted bool   `json:"charted"` // false: the arena is cut off, and the strips are empty
	Premap  Strip  `json:"premap"`
	Postmap Strip  `json:"postmap"`
	Sum     Cell   `json:"sum"`   // of the map entries
	Lanes   uint64 `json:"lanes"` // with a free block
}

// maxCells bounds the memory of a chart: 3 MiB for each core.
const maxCells = 1 << 15

// Chart counts, for the arenas of an inspected image, what is in each of so many cells
// (1 to 32768) of their maps and of their data areas. Each map is read once, on all
// cores, and not kept in memory. It never writes. If the image is in use, the numbers
// are those of one moment or another, and Wrong means little. Errors are those of [Run].
func Chart(ctx context.Context, r *pmem.Region, im *Image, cells int, o Options) (list []ArenaChart, err error) {
	defer r.CatchFault(&err)
	defer pmem.ArmFaults()()
	x := newReader(r, o)
	x.flavour = im.Flavour
	p := newProgress(im, o)
	for i := range im.Arenas {
		c, err := x.chartArena(ctx, &im.Arenas[i], uint32(min(max(cells, 1), maxCells)), &p)
		if err != nil {
			return nil, err
		}
		list = append(list, c)
	}
	return list, nil
}

func (x *reader) chartArena(ctx context.Context, a *Arena, cells uint32, p *progress) (ArenaChart, error) {
	c := ArenaChart{Arena: a.Index, Premap: newStrip(a.Info.ExternalNLBA, cells), Postmap: newStrip(a.Info.InternalNLBA, cells)}
	if a.Missing > 0 {
		p.add(uint64(a.Info.ExternalNLBA))
		return c, nil
	}
	s := &mapScan{reader: x, c: new(collector), a: a}
	workers := make([]chartWorker, s.workers())
	errs := make([]error, len(workers))
	var next atomic.Uint32
	var wg sync.WaitGroup
	for i := range workers {
		w := &workers[i]
		w.mapScan, w.chart, w.next = s, &c, &next
		if i > 0 {
			wg.Go(func() { errs[i] = w.run(ctx, nil) })
		}
	}
	errs[0] = workers[0].run(ctx, p)
	wg.Wait()
	for i := range workers {
		if errs[i] != nil {
			return c, errs[i]
		}
		c.Premap.add(workers[i].premap)
		c.Postmap.add(workers[i].postmap)
	}
	p.add(uint64(a.Info.ExternalNLBA))
	c.Charted = true
	for i := range c.Premap.Cells {
		c.Sum.add(&c.Premap.Cells[i])
	}
	c.addLanes(x, a)
	c.Postmap.settle()
	return c, nil
}

// addLanes puts the free blocks of the lanes where they are, as the map stands now:
// while a write is in flight its map entry still has the old block.
func (c *ArenaChart) addLanes(x *reader, a *Arena) {
	lanes, _ := x.lanes(new(collector), a)
	for i := range lanes {
		if b := lanes[i].claims(); lanes[i].owns && uint32(b) < a.Info.InternalNLBA {
			c.Postmap.Cells[uint32(b)/c.Postmap.PerCell].Free++
			c.Lanes++
		}
	}
}

func newStrip(blocks, cells uint32) Strip {
	if blocks == 0 {
		return Strip{PerCell: 1}
	}
	s := Strip{Blocks: blocks, PerCell: (blocks-1)/cells + 1}
	s.Cells = make([]Cell, (blocks-1)/s.PerCell+1)
	return s
}

// Size is how many blocks the cell of that index stands for.
func (s *Strip) Size(cell int) uint64 {
	return uint64(min(s.PerCell, s.Blocks-uint32(cell)*s.PerCell))
}

func (c *Cell) add(o *Cell) {
	c.Initial += o.Initial
	c.Zero += o.Zero
	c.Error += o.Error
	c.Data += o.Data
	c.Free += o.Free
	c.Wrong += o.Wrong
}

// settle counts, in a strip of owners, by how many they are too few or too many. Where
// one block of a cell has two owners and another none, only a check can tell.
func (s *Strip) settle() {
	for i := range s.Cells {
		c, size := &s.Cells[i], s.Size(i)
		owners := c.Initial + c.Zero + c.Error + c.Data + c.Free
		c.Wrong = max(owners, size) - min(owners, size)
	}
}

// tally is what a goroutine counts in a cell: entries by their states, so that there is
// no branch to be mispredicted, and those that name no block.
type tally struct {
	states [4]uint64 // by layout.EntryState
	wrong  uint64
}

// add takes what a goroutine has counted in the cells of s.
func (s *Strip) add(counts []tally) {
	for i := range counts {
		c, n := &s.Cells[i], &counts[i]
		c.Initial += n.states[layout.Initial]
		c.Zero += n.states[layout.Zero]
		c.Error += n.states[layout.Error]
		c.Data += n.states[layout.Normal]
		c.Wrong += n.wrong
	}
}

// chartWorker is one goroutine of a chart.
type chartWorker struct {
	*mapScan
	chart           *ArenaChart    // for its geometry
	next            *atomic.Uint32 // chunk that nobody has taken yet
	premap, postmap []tally
}

func (w *chartWorker) run(ctx context.Context, p *progress) (err error) {
	defer w.region.CatchFault(&err)
	defer pmem.ArmFaults()()
	w.premap, w.postmap = make([]tally, len(w.chart.Premap.Cells)), make([]tally, len(w.chart.Postmap.Cells))
	buf := w.buffer()
	for chunk := w.next.Add(1) - 1; chunk < w.chunks(); chunk = w.next.Add(1) - 1 {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		first, b := chunk*chunkEntries, w.read(chunk*chunkEntries, buf)
		for len(b) > 0 { // a cell of the map at a time
			cell := first / w.chart.Premap.PerCell
			n := min(uint32(len(b)/4), (cell+1)*w.chart.Premap.PerCell-first)
			w.count(&w.premap[cell], first, b[:4*n])
			first, b = first+n, b[4*n:]
		}
		if p != nil {
			p.reached(min(uint64(w.next.Load())*chunkEntries, uint64(w.a.Info.ExternalNLBA)))
		}
	}
	return nil
}

// count counts the entries in b, which are of one cell of the map, the first of them
// that of the LBA first. Those never written are zeros, and go by the run.
func (w *chartWorker) count(cell *tally, first uint32, b []byte) {
	blocks, postmap := w.chart.Postmap.Blocks, w.postmap
	// A division by PerCell as a multiplication: exact for 32 bits (Lemire, Kaser and
	// Kurz, "Faster remainder by direct computation", 2019), unless PerCell is 1.
	reciprocal := ^uint64(0)/uint64(w.chart.Postmap.PerCell) + 1
	for i := 0; i < len(b); {
		lba := first + uint32(i/4)
		e := layout.MapEntry(binary.LittleEndian.Uint32(b[i:]))
		if e == 0 {
			n := zeros(b[i:])
			cell.states[layout.Initial] += uint64(n)
			w.initial(lba, n)
			i += 4 * int(n)
			continue
		}
		i += 4
		state := e.State()
		cell.states[state&3]++
		block := uint32(e.Owned(layout.PremapLBA(lba)))
		if block >= blocks {
			cell.wrong++
			continue
		}
		index, _ := bits.Mul64(reciprocal, uint64(block))
		if reciprocal == 0 {
			index = uint64(block)
		}
		postmap[index].states[state&3]++
	}
}

// initial counts n blocks from first on that were never written.
func (w *chartWorker) initial(first, n uint32) {
	for per := w.chart.Postmap.PerCell; n > 0; {
		run := min(n, per-first%per)
		w.postmap[first/per].states[layout.Initial] += uint64(run)
		first, n = first+run, n-run
	}
}
