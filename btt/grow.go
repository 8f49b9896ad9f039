package btt

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"sort"

	"github.com/bttnbd/bttnbd/layout"
	"github.com/bttnbd/bttnbd/pmem"
)

// This file makes a BTT larger by arenas behind its last one. No arena is changed
// but for the distance to the next one in the last of them, the link:
//
//	step                                        power fails here: open sees
//	1  what an earlier run has left of the      the old BTT, or, if that was step 6, the
//	   link is made even; drain                 new one
//	2  growMark where the new space begins,     the old BTT, and what follows it is ours,
//	   drain; behind it where the new space     up to there
//	   ends, drain
//	3  map and flog of the new arenas           the same
//	   drain
//	4  their info blocks, last arena first,     the same
//	   backup before primary; a drain each,
//	   of which the first is for step 3 as well;
//	   the first two words of all come last,
//	   the second before the first; a drain each
//	5  link: backup of the last arena           the old BTT: the primary decides
//	   drain
//	6  link: its primary                        the old BTT, the new one, or a torn primary,
//	   drain                                    whose backup says: the new one
//
// So the image is the new one from the moment at which it can be shown to be, and a
// backup never says less than its primary. Without step 1 the backup of step 5 would
// point at arenas that are being made again.
//
// The last new arena ends where the container does, to a page, so that every backup is
// found from there, see backupByChain. Without that, the backup of an arena could be
// looked for where users' data is.

// page is what sizes of arenas are multiples of.
const page = 4096

// GrowParams say how [Grow] goes about it. The zero value is right for space of which
// nothing is known, outside tests.
type GrowParams struct {
	// Zeroed says that the space behind the last arena is known to read as zeros.
	Zeroed bool
	// MinArena and MaxArena are the limits of an arena's size in bytes.
	// 0: 16 MiB and 512 GiB, as the format says.
	MinArena, MaxArena uint64
	// Progress is as in [FormatParams]. After an error of it the old BTT is there.
	Progress func(done, total uint64) error
}

// Growth is what growing an image comes to.
type Growth struct {
	Arenas []ArenaInfo // the new ones
	Offset uint64      // in the image, in bytes: where the last arena ends now
	Before uint64      // capacity in bytes now
	After  uint64      // and then
	Unused uint64      // bytes behind the last new arena that none covers
	Least  uint64      // bytes that a new arena takes at least
	// Interrupted: what stands from Offset to Leftover is what a Grow has left that was
	// interrupted. Nobody needs it.
	Interrupted bool
	Leftover    uint64 // Offset, if there is no such thing
}

var (
	// ErrPoolGrows: the image is a pool, which cannot grow.
	ErrPoolGrows = errors.New("a pool cannot grow: PMDK opens none that has an arena of less than 512 GiB before its last one")
	// ErrNoRoom: what there is behind the last arena is too small for another one.
	ErrNoRoom = errors.New("no room for another arena")
	// ErrTooLarge: it would have more arenas, or more lanes, than [Open] takes.
	ErrTooLarge = errors.New("too many arenas")
)

// PlanGrow says what [Grow] would make of the image if its container had size bytes.
// Beyond what [Open] does it changes nothing. Errors are those of Open, [ErrPoolGrows],
// [ErrNoRoom] and [ErrTooLarge], with which all but the arenas is told, and a
// [*CorruptError] about what must be repaired first.
func PlanGrow(r *pmem.Region, size uint64, p GrowParams) (g Growth, err error) {
	defer r.CatchFault(&err)
	defer pmem.ArmFaults()()
	w, err := planGrow(r, size, p)
	if w == nil {
		return g, err
	}
	g = Growth{Offset: w.base, Before: w.d.Size(), After: w.d.Size(), Unused: max(size, w.base) - w.base, Least: w.least, Leftover: w.base}
	if err != nil {
		return g, err
	}
	for _, a := range w.plan {
		g.Arenas = append(g.Arenas, ArenaInfo{Offset: a.base, Geometry: a.geo, Padding: layout.PaddingNew})
		g.After += uint64(a.geo.ExternalNLBA) * uint64(w.d.sector)
		g.Unused -= a.geo.Size
	}
	g.Leftover, g.Interrupted = w.leftover()
	return g, nil
}

// Grow adds arenas behind the last one of the BTT in r, as many as the region has room
// for; what stood there is lost. The new blocks read as zeros; the old ones are not
// touched. The uuids are those of the BTT. r is open by nobody as a [Device].
//
// A power cut at any moment leaves the old BTT or the new one, and Grow can be run
// again. It is durable on return. Errors are those of [PlanGrow].
func Grow(r *pmem.Region, p GrowParams) (err error) {
	defer r.CatchFault(&err)
	defer pmem.ArmFaults()()
	if r.ReadOnly() {
		return errReadOnly
	}
	w, err := planGrow(r, r.Size(), p)
	if w == nil {
		return err
	}
	if err := cmp.Or(w.settle(), err); err != nil {
		return err
	}
	if err := w.layOut(); err != nil {
		return err
	}
	return w.last.setInfo(func(raw []byte) { layout.PatchNext(raw, w.base-w.last.base) })
}

// SettleGrow is the first step of [Grow] alone: after it no info block refers to what an
// interrupted one has left behind the last arena, so that the space may be given up,
// and if what was interrupted was the last step, the image has grown. Durable on return.
func SettleGrow(r *pmem.Region, p GrowParams) (err error) {
	defer r.CatchFault(&err)
	defer pmem.ArmFaults()()
	if r.ReadOnly() {
		return errReadOnly
	}
	w, err := planGrow(r, r.Size(), p)
	if w == nil {
		return err
	}
	return w.settle()
}

// grower is a Grow under way.
type grower struct {
	r     *pmem.Region
	d     *Device
	last  *arena // of those that there are
	base  uint64 // where it ends
	least uint64 // bytes that a new arena takes
	plan  []plannedArena
	p     GrowParams
}

// planGrow opens the BTT and settles the new arenas, for a container of size bytes.
// What it returns with [ErrNoRoom] or [ErrTooLarge] can be settled.
func planGrow(r *pmem.Region, size uint64, p GrowParams) (*grower, error) {
	if p.MinArena == 0 {
		p.MinArena = layout.MinArenaSize
	}
	if p.MaxArena == 0 {
		p.MaxArena = layout.MaxArenaSize
	}
	d, err := Open(r, Options{MaxArena: p.MaxArena})
	if err != nil {
		return nil, err
	}
	if d.flavour.Pool {
		return nil, ErrPoolGrows
	}
	w := &grower{r: r, d: d, last: d.arenas[len(d.arenas)-1], p: p}
	w.base = w.last.base + w.last.geo.Size
	if err := w.sound(); err != nil {
		return nil, err
	}
	w.least = w.leastArena()
	sizes, err := w.sizes(size)
	if err != nil {
		return w, err
	}
	like := &d.arenas[0].geo
	base := w.base
	for i, size := range sizes {
		geo, err := layout.NewGeometry(size, w.like())
		if err != nil {
			return w, fmt.Errorf("%w: arena %d: %w", ErrNoRoom, len(d.arenas)+i, err)
		}
		if size == like.Size {
			geo = *like // whoever made it, and however
		}
		next := uint64(0)
		if i+1 < len(sizes) {
			next = size
		}
		w.plan = append(w.plan, plannedArena{base, geo, geo.Info(d.flavour, d.id, d.parent, next)})
		base += size
	}
	return w, nil
}

// like is what the new arenas have of the first one.
func (w *grower) like() layout.Params {
	g := &w.d.arenas[0].geo
	return layout.Params{ExternalLBASize: g.ExternalLBASize, Nfree: g.Nfree, Align: 8, MinBlock: g.InternalLBASize}
}

// leastArena is the size in bytes of the smallest arena that has a block for users.
func (w *grower) leastArena() uint64 {
	first := w.p.MinArena / page
	n := sort.Search(int(w.p.MaxArena/page-first), func(i int) bool {
		_, err := layout.NewGeometry((first+uint64(i))*page, w.like())
		return err == nil
	})
	return (first + uint64(n)) * page
}

// sizes are those of the new arenas, in a container of size bytes, to whose last page
// they reach. Where that leaves too little for the last one, it gets some of the one before.
func (w *grower) sizes(size uint64) ([]uint64, error) {
	room := max(size/page*page, w.base) - w.base
	if n := uint64(len(w.d.arenas)) + room/w.p.MaxArena; n > maxArenas {
		return nil, fmt.Errorf("%w: it would have %d, more than %d", ErrTooLarge, n, maxArenas)
	}
	sizes := layout.Split(room, w.least, w.p.MaxArena)
	if len(sizes) == 0 {
		return nil, fmt.Errorf("%w: the last one ends at %d, and the next takes %d bytes, but there are %d in all", ErrNoRoom, w.base, w.least, size)
	}
	for _, n := range sizes {
		room -= n
	}
	if last := len(sizes) - 1; room > 0 {
		if sizes[last] < 2*w.least-room {
			return nil, fmt.Errorf("%w: of the %d bytes behind the last one, %d would be left over", ErrNoRoom, size-w.base, room)
		}
		sizes[last] -= w.least - room
		sizes = append(sizes, w.least)
	}
	lanes := uint64(len(sizes)) * uint64(w.d.arenas[0].geo.Nfree)
	for _, a := range w.d.arenas {
		lanes += uint64(a.geo.Nfree)
	}
	if n := len(w.d.arenas) + len(sizes); n > maxArenas || lanes > maxLanes {
		return nil, fmt.Errorf("%w: it would have %d with %d lanes, more than %d with %d", ErrTooLarge, n, lanes, maxArenas, maxLanes)
	}
	return sizes, nil
}

// sound refuses to grow what has to be repaired first: arenas in error, and a bad or
// different copy of an info block, since the link changes one copy after the other.
// What an interrupted link has left is another matter, see settle. It also refuses gaps
// between arenas, and an end within a page, over which no chain of backups leads.
func (w *grower) sound() error {
	end := w.d.flavour.Start
	for _, a := range w.d.arenas {
		if a.base != end || a.geo.Size%page != 0 {
			return &CorruptError{Arena: a.index, Offset: a.base, What: "info block", Err: errors.New("not right behind the arena before, or not of whole pages: such an image cannot grow")}
		}
		end += a.geo.Size
		other, which := w.other(a)
		switch {
		case a.failed():
			return &CorruptError{Arena: a.index, Offset: a.base, What: "info block", Err: errors.New("the error flag of the arena is set: repair it first")}
		case !sameButLink(other.raw[:], a.info.raw[:]):
			return &CorruptError{Arena: a.index, Offset: other.off, What: which + " info block", Err: errors.New("not a copy of the other one: repair it first")}
		}
	}
	return nil
}

// infoCopy is an info block as it stands.
type infoCopy struct {
	off uint64
	raw [layout.InfoSize]byte
}

// other is the copy of the arena's info block that open has not relied on.
func (w *grower) other(a *arena) (c infoCopy, which string) {
	c.off, which = a.base+a.geo.InfoOff, "backup"
	if a.info.fromBackup {
		c.off, which = a.base, "primary"
	}
	w.r.Read(c.raw[:], c.off)
	return c, which
}

// sameButLink reports whether two info blocks differ at most in the two words that a
// link changes. One of them may be torn: then it has one word of each.
func sameButLink(a, b []byte) bool {
	x, y := bytes.Clone(a), bytes.Clone(b)
	layout.PatchNext(x, 0)
	layout.PatchNext(y, 0)
	return bytes.Equal(x, y)
}

// settle is step 1: each info block that is not as the one that open has relied on,
// which a link leaves that is interrupted, is made so.
func (w *grower) settle() error {
	for _, a := range w.d.arenas {
		c, _ := w.other(a)
		if c.raw == a.info.raw {
			continue // and durable, since open has flushed it
		}
		w.r.Write(c.off, a.info.raw[:])
		if err := w.r.Drain(); err != nil {
			return err
		}
		a.info.fromBackup = false // both are good now
	}
	return nil
}

// layOut is steps 2 to 4.
func (w *grower) layOut() error {
	old, _ := w.leftover()
	last := &w.plan[len(w.plan)-1]
	words := [2]uint64{growMark, w.planned(max(old, last.base+last.geo.Size))}
	for i, word := range words {
		if err := w.storeWord(i, word); err != nil {
			return err
		}
	}
	like := FormatParams{Flavour: w.d.flavour, SectorSize: w.plan[0].geo.ExternalLBASize, Zeroed: w.p.Zeroed, Progress: w.p.Progress}
	like.total = like.toZero(w.plan)
	for _, a := range w.plan {
		layOut(w.r, a, &like)
	}
	if like.failed != nil {
		return like.failed
	}
	var raw [layout.InfoSize]byte
	for i := len(w.plan) - 1; i >= 0; i-- {
		a := &w.plan[i]
		a.info.Encode(raw[:])
		w.r.Write(a.base+a.geo.InfoOff, raw[:])
		if err := w.r.Drain(); err != nil {
			return err
		}
		from := 0
		if a.base == w.base {
			from = 8 * len(words) // they stay till there is nothing else to do
		}
		w.r.Write(a.base+uint64(from), raw[from:])
		if err := w.r.Drain(); err != nil {
			return err
		}
	}
	if err := w.storeWord(1, binary.LittleEndian.Uint64(raw[8:])); err != nil {
		return err
	}
	return w.storeWord(0, layout.SignatureWord)
}

// storeWord stores the word i of the new space, durably.
func (w *grower) storeWord(i int, word uint64) error {
	off := w.base + 8*uint64(i)
	w.r.Store64(off, word)
	return w.r.Persist(off, 8)
}
