package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/bttnbd/bttnbd/check"
	"github.com/bttnbd/bttnbd/internal/draw"
	"github.com/bttnbd/bttnbd/internal/units"
	"github.com/bttnbd/bttnbd/pmem"
)

type infoOptions struct {
	path     string
	json     bool
	fast     bool
	chart    bool
	order    choiceFlag
	cells    uint16
	progress choiceFlag
}

func newInfo() *cobra.Command {
	o := infoOptions{order: newChoice("both", "lba", "media")}
	cmd := &cobra.Command{
		Use:   "info [flags] PATH",
		Short: "Show what an image is",
		Long: `Show the format, the sizes and the arenas of an image: both copies of the info
blocks, the style of the flog and the writes that were interrupted in it, and how
many map entries there are of each kind. For those every map is read, which is a
GiB for each TiB of 4096-byte sectors; --fast leaves them out.

--map draws each arena: where there are data, zeros, errors and blocks that were
never written, by LBA and by place on media, and there also the free blocks of the
lanes. A cell stands for many blocks: an error in it is shown however small it is.

The image may be in use, or damaged; what can be read of it is shown. Nothing is
changed. Whether all of it is in order, bttcheck says.`,
		Example: `  bttnbd info disk.img
  bttnbd info --map disk.img
  bttnbd info --fast --json /dev/pmem0`,
		Annotations: map[string]string{exitStatus: commonStatus},
		Args:        onePath,
		RunE: func(cmd *cobra.Command, args []string) error {
			o.path = args[0]
			if err := o.validate(); err != nil {
				return err
			}
			return runInfo(cmd.Context(), cmd.OutOrStdout(), cmd.ErrOrStderr(), o)
		},
	}
	cmd.Flags().BoolVar(&o.json, "json", false, "print one JSON object")
	cmd.Flags().BoolVar(&o.fast, "fast", false, "do not count the map entries")
	cmd.Flags().BoolVar(&o.chart, "map", false, "draw where in each arena what is; with --json: the numbers of each cell")
	cmd.Flags().Var(&o.order, "order", "with --map: by LBA, by place on media, or both")
	cmd.Flags().Uint16Var(&o.cells, "cells", 0, "with --map: cut each arena into `N` cells (default as many as fit the terminal; 512 with --json)")
	addProgress(cmd.Flags(), &o.progress)
	return cmd
}

// maxCells keeps the numbers of --map --json to what a program wants to see.
const maxCells = 32768

func (o *infoOptions) validate() error {
	switch {
	case o.chart && o.fast:
		return usagef("--map reads every map, which --fast leaves out: give one of them")
	case !o.chart && (o.order.given || o.cells != 0):
		return usagef("--order and --cells say how --map is drawn: add --map")
	case o.cells > maxCells:
		return usagef("--cells %d: choose from 1 to %d", o.cells, maxCells)
	}
	return nil
}

func runInfo(ctx context.Context, stdout, stderr io.Writer, o infoOptions) (err error) {
	r, im, err := openInspected(o.path, pmem.Options{ReadOnly: true, NoLock: true})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	pid, inUse, err := pmem.Owner(o.path)
	if err != nil {
		return err
	}
	style := styleOf(stdout)
	f, err := o.look(ctx, r, im, newProgress(stderr, o.progress.value, o.path, sectorRate), style)
	if err != nil {
		return withPath(o.path, err)
	}
	f.InUse, f.PID = inUse, pid
	if o.json {
		err = writeJSON(stdout, f)
	} else {
		err = f.write(stdout, style, o.orders())
	}
	empty := slices.ContainsFunc(im.Findings, func(f check.Finding) bool { return f.Kind == check.PoolEmpty })
	if err == nil && len(im.Arenas) == 0 && !empty {
		err = fmt.Errorf("%s: no info block can be believed: see bttcheck %s", o.path, o.path)
	}
	return err
}

// look reads what is to be shown.
func (o *infoOptions) look(ctx context.Context, r *pmem.Region, im *check.Image, bar *progress, style draw.Style) (*facts, error) {
	defer bar.end()
	co := check.Options{Progress: bar.update}
	survey, err := check.Survey(ctx, r, im, !o.fast && !o.chart, co)
	if err != nil {
		return nil, err
	}
	if !o.chart {
		return newFacts(im, survey), nil
	}
	cells := int(o.cells)
	switch {
	case cells == 0 && o.json:
		cells = 512
	case cells == 0:
		cells = style.Cells(len(im.Arenas))
	}
	charts, err := check.Chart(ctx, r, im, cells, co)
	if err != nil {
		return nil, err
	}
	for i := range charts { // which has counted, too
		s, sum := &survey[i], &charts[i].Sum
		s.Counted = charts[i].Charted
		s.Initial, s.Zero, s.Error, s.Normal = sum.Initial, sum.Zero, sum.Error, sum.Data
	}
	f := newFacts(im, survey)
	f.Map = charts
	return f, nil
}

// orders are those in which --map draws.
func (o *infoOptions) orders() draw.Order {
	return draw.Order{Premap: o.order.value != "media", Postmap: o.order.value != "lba"}
}

// write prints the facts for people: the image, tables of arenas, charts, findings.
func (f *facts) write(w io.Writer, style draw.Style, order draw.Order) error {
	t := newTable()
	t.line("path", "%s", visible(f.Path))
	t.line("size", "%s", units.Human(f.Size))
	t.line("in use", "%s", f.use())
	if len(f.Arenas) > 0 {
		t.line("format", "%s, version %s", f.Format, f.Version)
		t.line("uuid", "%v", f.UUID)
		t.line("parent uuid", "%v", f.ParentUUID)
		t.line("sector size", "%s", f.sector())
		t.line("usable size", "%s", units.Human(f.UsableSize))
	} else {
		t.line("format", "%s", f.Format)
	}
	if f.Pool != nil {
		f.Pool.write(t)
	}
	f.writeArenas(t)
	f.writeFlogs(t)
	f.writeCounts(t)
	t.gap()
	for i := range f.Arenas {
		t.text("%s", f.Arenas[i].copies(i, f.Path))
	}
	if f.Lost != nil {
		f.Lost.write(t)
	}
	if len(f.Map) > 0 {
		t.text("%s", draw.Charts(f.Map, order, style))
	}
	for i := range f.Findings {
		writeFinding(&t.b, &f.Findings[i], style)
	}
	_, err := io.WriteString(w, t.b.String())
	return err
}

// copies is a line about the two copies of the info block of arena i, "" if they agree.
func (a *arenaFacts) copies(i int, path string) string {
	for _, c := range []struct {
		name string
		copyFacts
	}{{"primary", a.Primary}, {"backup", a.Backup}} {
		if c.Error == "" {
			continue
		}
		differs := ""
		if !slices.Contains(a.CopiesDiffer, "signature") { // else it is something else
			differs = ", and differs in " + strings.Join(a.CopiesDiffer, ", ")
		}
		return fmt.Sprintf("arena %d: its %s info block is bad (%s)%s: run bttcheck %s\n", i, c.name, c.Error, differs, shellWord(path))
	}
	if len(a.CopiesDiffer) == 0 {
		return ""
	}
	return fmt.Sprintf("arena %d: its info blocks differ in %s\n", i, strings.Join(a.CopiesDiffer, ", "))
}

func (f *facts) use() string {
	switch {
	case !f.InUse:
		return "no"
	case f.PID == 0:
		return "yes"
	}
	return fmt.Sprintf("by pid %d", f.PID)
}

// sector says what a user sees of a block, and what it takes on media.
func (f *facts) sector() string {
	if f.IntegrityBytes == 0 {
		return fmt.Sprintf("%d bytes", f.DiskSectorSize)
	}
	return fmt.Sprintf("%d bytes, in blocks of %d: %d for integrity data", f.DiskSectorSize, f.SectorSize, f.IntegrityBytes)
}

func (f *facts) writeArenas(t *table) {
	if len(f.Arenas) == 0 {
		return
	}
	t.head("arena\toffset\tsize\tsectors\tlanes\tflog\tinfo block\tbackup")
	for i := range f.Arenas {
		a := &f.Arenas[i]
		t.row(a.Arena, a.Offset, a.Size, a.ExternalNLBA, a.Nfree, a.Padding, a.Primary.state(), a.Backup.state())
	}
}

func (f *facts) writeFlogs(t *table) {
	if len(f.Arenas) == 0 {
		return
	}
	t.head("arena\tinternal blocks\tgeometry of\tflags in flog\tin flight\tbad lanes")
	for i := range f.Arenas {
		a := &f.Arenas[i]
		blocks := fmt.Sprintf("%d of %d bytes", a.InternalNLBA, a.InternalLBASize)
		if a.FlogFlags == "" {
			t.row(a.Arena, blocks, a.makers(), "?", "?", "?")
			continue
		}
		t.row(a.Arena, blocks, a.makers(), a.FlogFlags, a.InFlight, a.BadLanes)
	}
}

// makers are those who would lay out an arena of this geometry.
func (a *arenaFacts) makers() string {
	var names []string
	for _, align := range a.Alignments {
		names = append(names, map[uint32]string{64: "Linux", 256: "PMDK"}[align])
	}
	if len(names) == 0 {
		return "nobody known"
	}
	return strings.Join(names, ", ")
}

func (f *facts) writeCounts(t *table) {
	if !slices.ContainsFunc(f.Arenas, func(a arenaFacts) bool { return a.Counted }) {
		return
	}
	t.head("arena\tinitial\tzero\terror\tnormal")
	for i := range f.Arenas {
		if a := &f.Arenas[i]; a.Counted {
			t.row(a.Arena, *a.Initial, *a.Zero, *a.Error, *a.Normal)
		} else {
			t.row(a.Arena, "?", "?", "?", "?")
		}
	}
}

func (c *copyFacts) state() string {
	if c.Error != "" {
		return "bad"
	}
	return "good"
}

func (p *poolFacts) write(t *table) {
	if p.Error != "" {
		t.line("pool header", "%s", p.Error)
		return
	}
	t.line("pool set", "%s (as PMDK prints uuids), part %s", p.PoolsetGUID, p.PartGUID)
	t.line("pool made", "%s", time.Unix(int64(p.Created), 0).UTC().Format("2006-01-02 15:04:05 UTC"))
	state := "closed in order, or not known"
	if p.Dirty {
		state = "dirty: PMDK had it open and did not close it"
	}
	t.line("pool features", "compat %#x, incompat %#x, ro_compat %#x; checksum of %s; %s", p.Compat, p.Incompat, p.ROCompat, p.Checksum, state)
}

// write says where an arena should be of which neither info block can be believed,
// and what those say all the same.
func (l *lostFacts) write(t *table) {
	t.text("no info block of the arena at offset %d can be believed:\n", l.Offset)
	for _, c := range []struct {
		name string
		says *lostCopy
	}{{"primary", &l.Primary}, {"backup", &l.Backup}} {
		t.text("  %s at offset %d: %s\n", c.name, c.says.Offset, c.says.Error)
		if s := c.says; s.Signature {
			t.text("    it says: version %s, uuid %v, %d sectors of %d bytes, %d lanes, map at %d, flog at %d, backup at %d\n",
				s.Version, s.UUID, s.ExternalNLBA, s.ExternalLBASize, s.Nfree, s.MapOff, s.FlogOff, s.InfoOff)
		}
	}
}
