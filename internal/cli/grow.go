package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/bttnbd/bttnbd/btt"
	"github.com/bttnbd/bttnbd/internal/attach"
	"github.com/bttnbd/bttnbd/internal/kernel"
	"github.com/bttnbd/bttnbd/internal/units"
	"github.com/bttnbd/bttnbd/layout"
	"github.com/bttnbd/bttnbd/pmem"
)

type growOptions struct {
	path     string
	size     sizeFlag
	force    bool
	allocate bool
	json     bool
	progress choiceFlag

	attached os.FileInfo // nil: what the path names
	regular  bool        // what is open is a file, and no device
}

func (o *growOptions) addFlags(f *pflag.FlagSet) {
	f.Var(&o.size, "size", "size that the image file is to have (default: what it has already)")
	f.BoolVar(&o.force, "force", false, "use the space behind the BTT, whatever is there")
	f.BoolVar(&o.allocate, "allocate", false, "reserve all the new space now; it is sparse otherwise")
	f.BoolVar(&o.json, "json", false, "print one JSON object")
	addProgress(f, &o.progress)
}

func newGrow() *cobra.Command {
	var o growOptions
	cmd := &cobra.Command{
		Use:   "grow [flags] PATH",
		Short: "Make an image larger",
		Long: `Make an image of format kernel or uefi larger: the file gets --size bytes, or has
become larger already, as a device can; the BTT gets more arenas, behind those that
it has. What is in it stays, what is new reads as zeros. A crash meanwhile leaves the
image as it was, or grown; in doubt run the same command again.

At least 16 MiB must be added. Without --force, space behind the BTT that holds
anything but zeros is left alone; to be sure of that, all of it is read.

A file that is attached (bttnbd attach, without --ublk) grows under its device, which
has the new size then; PATH is that of the file, or the device. Requests wait
meanwhile. Else the image must not be in use, and no ublk device may wait for it. A
filesystem is made larger with its own tool afterwards (resize2fs, xfs_growfs). A pool
cannot grow.`,
		Example: `  bttnbd grow --size 2G disk.img
  bttnbd grow --size 2G /dev/nbd0
  bttnbd grow /dev/pmem0`,
		Annotations: map[string]string{exitStatus: commonStatus},
		Args:        onePath,
		RunE: func(cmd *cobra.Command, args []string) error {
			o.path = args[0]
			return runGrow(cmd.Context(), cmd.OutOrStdout(), cmd.ErrOrStderr(), o)
		},
	}
	o.addFlags(cmd.Flags())
	return cmd
}

// grown is what grow --json prints. Sizes are in bytes.
type grown struct {
	Schema     int    `json:"schema"`
	Path       string `json:"path"`
	Size       uint64 `json:"size"` // of the file or device
	UsableSize uint64 `json:"usable_size"`
	WasUsable  uint64 `json:"was_usable_size"`
	Arenas     int    `json:"arenas"`
	NewArenas  int    `json:"new_arenas"`
	UnusedSize uint64 `json:"unused_size"`
	Device     string `json:"device,omitempty"`    // that it is attached as
	PausedMS   int64  `json:"paused_ms,omitempty"` // for which nobody served that
}

func runGrow(ctx context.Context, stdout, stderr io.Writer, o growOptions) error {
	g, err := o.run(ctx, stderr)
	if err != nil {
		return err
	}
	if g.UnusedSize > 0 {
		fmt.Fprintf(stderr, "bttnbd: %s: the last %s unused: an arena is a multiple of 4096 bytes and at least 16 MiB\n", visible(g.Path), stay(g.UnusedSize))
	}
	if o.json {
		return writeJSON(stdout, g)
	}
	if g.NewArenas == 0 {
		_, err = fmt.Fprintf(stdout, "%s: is as large already: %s usable, in %s\n", visible(g.Path), units.Human(g.UsableSize), plural(uint64(g.Arenas), "arena"))
		return err
	}
	if g.Device != "" {
		fmt.Fprintf(stderr, "bttnbd: %s has grown; nobody served it for %d ms; a filesystem on it grows with its own tool\n", g.Device, g.PausedMS)
	}
	_, err = fmt.Fprintf(stdout, "%s: %s usable, %s more than before, in %s\n",
		visible(g.Path), units.Human(g.UsableSize), units.Human(g.UsableSize-g.WasUsable), plural(uint64(g.Arenas), "arena"))
	return err
}

// run grows the image, under the device that it is attached as if it is.
func (o *growOptions) run(ctx context.Context, stderr io.Writer) (grown, error) {
	if d, err := kernel.ParseDevice(o.path); err == nil {
		if d.IsUblk() {
			return grown{}, usagef("%s: a ublk device does not grow: bttnbd detach it, and grow its image", o.path)
		}
		if source, dead := attach.Abandoned(d); dead { // who opened it would wait
			return grown{}, fmt.Errorf("%s: nobody serves %s: attach it again first: %s", o.path, d.Path(), attachAgain(d, source))
		}
	}
	if d, found := attachedAs(o.path); found {
		return o.online(ctx, d)
	}
	return o.offline(ctx, stderr)
}

// offline grows the image. r, which it holds till the end, keeps others off. All else
// goes by what r has open, and not by the path, which may name another file by now.
func (o *growOptions) offline(ctx context.Context, stderr io.Writer) (done grown, err error) {
	r, err := openRegion(o.path, pmem.Options{})
	if err != nil {
		return done, o.adviseInUse(err)
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	if err := o.identify(r); err != nil {
		return done, err
	}
	if o.attached == nil {
		if err := refuseGrowth(r); err != nil {
			return done, err
		}
	}
	size, err := o.target(r)
	if err != nil {
		return done, err
	}
	plan, err := btt.PlanGrow(r, size, btt.GrowParams{})
	if errors.Is(err, btt.ErrNoRoom) && uint64(o.size) == r.Size() {
		if err := btt.SettleGrow(r, btt.GrowParams{}); err != nil {
			return done, withPath(o.path, err)
		}
		return o.report(r, nil) // has grown already
	}
	if err != nil {
		return done, o.adviseGrow(err, &plan)
	}
	if err := o.mayUse(ctx, stderr, r, &plan); err != nil {
		return done, err
	}
	if o.regular {
		if err := o.enlarge(r, &plan, size); err != nil {
			return done, err
		}
	}
	return o.grow(ctx, stderr, r, btt.GrowParams{Zeroed: o.zeroed(&plan)})
}

// identify finds out what r has open, and refuses another file than is to grow.
func (o *growOptions) identify(r *pmem.Region) error {
	is, err := r.Stat()
	if err != nil {
		return withPath(o.path, err)
	}
	o.regular = is.Mode().IsRegular()
	switch {
	case o.attached == nil:
		return nil
	case !os.SameFile(is, o.attached):
		return fmt.Errorf("%s: another file than the one that is attached has this name now: nothing was changed", o.path)
	case !o.regular:
		return fmt.Errorf("%s: only a file grows while it is attached: bttnbd detach the device, grow this one, and attach it again", o.path)
	}
	return nil
}

// zeroed reports whether the space behind the BTT reads as zeros once it is there: a
// file was given zeros, and a device was searched, but for what is to be overwritten.
func (o *growOptions) zeroed(plan *btt.Growth) bool {
	return o.regular || !o.force && !plan.Interrupted
}

// grow is [btt.Grow] of a container that has its size. It maps it anew, under the lock
// of was.
func (o *growOptions) grow(ctx context.Context, stderr io.Writer, was *pmem.Region, p btt.GrowParams) (done grown, err error) {
	r, err := was.Reopen()
	if err != nil {
		return done, err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	plan, err := btt.PlanGrow(r, r.Size(), p)
	if err != nil {
		return done, o.adviseGrow(err, &plan)
	}
	bar := newProgress(stderr, o.progress.value, o.path+": zeroing", bytesRate)
	p.Progress = func(done, total uint64) error {
		bar.update(done, total)
		return context.Cause(ctx)
	}
	err = btt.Grow(r, p)
	bar.end()
	if err != nil {
		return done, o.adviseGrow(err, &plan)
	}
	return o.report(r, &plan)
}

// report opens the image and says what it is now; plan is nil if nothing was done.
func (o *growOptions) report(r *pmem.Region, plan *btt.Growth) (grown, error) {
	d, err := btt.Open(r, btt.Options{})
	if err != nil {
		return grown{}, adviseBTT(o.path, err)
	}
	g := grown{
		Schema: schema, Path: o.path, Size: r.Size(), UsableSize: d.Size(), WasUsable: d.Size(), Arenas: len(d.Arenas()),
	}
	if plan != nil {
		g.WasUsable, g.NewArenas, g.UnusedSize = plan.Before, len(plan.Arenas), plan.Unused
	}
	return g, nil
}

// target is the size that the container is to have, in bytes.
func (o *growOptions) target(r *pmem.Region) (uint64, error) {
	size, now := uint64(o.size), r.Size()
	switch {
	case size == 0 || size == now:
		return now, nil
	case !o.regular:
		return 0, usagef("%s: the device has %s, not %s: leave --size out", o.path, units.Human(now), units.Human(size))
	case size < now:
		return 0, usagef("%s: the file has %s, and an image does not shrink: give --size more than that, or leave it out", o.path, units.Human(now))
	case size > math.MaxInt64:
		return 0, usagef("%s: %s is too large: a file has less than 8 EiB", o.path, units.Human(size))
	}
	return size, nil
}

// mayUse refuses space that holds what must not be lost.
func (o *growOptions) mayUse(ctx context.Context, stderr io.Writer, r *pmem.Region, plan *btt.Growth) error {
	if o.allocate && !o.regular {
		return usagef("%s: a device has all its space: leave --allocate out", o.path)
	}
	if o.force {
		return context.Cause(ctx)
	}
	bar := newProgress(stderr, o.progress.value, o.path+": looking for data", bytesRate)
	at, found, err := firstByteFrom(ctx, r, plan.Leftover, bar)
	bar.end()
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case err != nil:
		return withPath(o.path, err)
	case found:
		return fmt.Errorf("%s: behind the BTT, which ends at offset %d, there is data (the first byte that is not zero is at offset %d): if nobody needs it, overwrite it with --force", o.path, plan.Offset, at)
	}
	return nil
}

// enlarge gives a regular file its size, durably, with zeros behind the BTT, and the
// space that is written to now. When it fails for want of space, the size is as before.
func (o *growOptions) enlarge(r *pmem.Region, plan *btt.Growth, size uint64) error {
	return r.WithFile(func(f *os.File) error { return o.enlargeFile(r, f, plan, size) })
}

func (o *growOptions) enlargeFile(r *pmem.Region, f *os.File, plan *btt.Growth, size uint64) error {
	was := r.Size()
	if (o.force || plan.Interrupted) && was > plan.Offset {
		if err := btt.SettleGrow(r, btt.GrowParams{}); err != nil {
			return withPath(o.path, err)
		}
		// A file that ends where its last arena does is an image as well.
		if err := errors.Join(f.Truncate(int64(plan.Offset)), f.Sync()); err != nil {
			return adviseCreate(err)
		}
	}
	if err := errors.Join(f.Truncate(int64(size)), f.Sync()); err != nil {
		return adviseCreate(err)
	}
	if err := o.reserve(f, plan, size); err != nil {
		return errors.Join(err, f.Truncate(int64(was)))
	}
	return nil
}

// reserve gives what [btt.Grow] writes to a file of zeros its space on disk.
func (o *growOptions) reserve(f *os.File, plan *btt.Growth, size uint64) error {
	extents := []extent{{plan.Offset, size - plan.Offset}}
	if !o.allocate {
		extents = extents[:0]
		for _, a := range plan.Arenas {
			g := &a.Geometry
			extents = append(extents, extent{a.Offset, layout.InfoSize}, extent{a.Offset + g.FlogOff, g.Size - g.FlogOff})
		}
	}
	return (&imageSpec{path: o.path, allocate: o.allocate}).reserve(f, extents)
}

// adviseGrow says what to do about an image that cannot grow.
func (o *growOptions) adviseGrow(err error, plan *btt.Growth) error {
	switch {
	case errors.Is(err, btt.ErrPoolGrows):
		return fmt.Errorf("%s: %w: make a larger one, or an image with bttnbd convert, and copy", o.path, err)
	case errors.Is(err, btt.ErrNoRoom):
		advise := "make the device larger first"
		if o.regular {
			advise = fmt.Sprintf("give it --size %s or more", units.Compact(plan.Offset+plan.Least))
		}
		return usagef("%s: no room for another arena, of %s or more, behind the %s that the BTT takes: %s", o.path, units.Compact(plan.Least), units.Human(plan.Offset), advise)
	case errors.Is(err, btt.ErrTooLarge):
		return usagef("%s: %v: give it less", o.path, err)
	}
	return adviseBTT(o.path, err)
}

// attachedAs is the device that the image is attached as, or that path names, and its
// server; found is false if nobody serves it.
func attachedAs(path string) (d kernel.Device, found bool) {
	d, err := kernel.ParseDevice(path)
	if err != nil {
		d, _, found = attach.FindImage(path)
		if !found {
			return d, false
		}
	}
	return d, attach.IsAlive(d)
}

// online has the process that serves the device grow its image.
func (o *growOptions) online(ctx context.Context, d kernel.Device) (done grown, err error) {
	g, err := attach.Grow(ctx, d, attach.Growth{Size: uint64(o.size), Force: o.force, Allocate: o.allocate})
	if err != nil {
		return done, withPath(o.path, err)
	}
	return grown{
		Schema: schema, Path: o.path, Size: g.Size, UsableSize: g.Usable, WasUsable: g.WasUsable,
		Arenas: g.Arenas, NewArenas: g.NewArenas, UnusedSize: g.Unused, Device: d.Path(), PausedMS: g.Paused.Milliseconds(),
	}, nil
}

// growUnder is the other half: it grows the image, which has been closed for it. To
// look through a device for data would take too long, while the kernel waits.
func growUnder(ctx context.Context, path string, want attach.Growth, is os.FileInfo) (attach.Growth, error) {
	o := growOptions{attached: is, path: path, size: sizeFlag(want.Size), force: want.Force, allocate: want.Allocate, progress: newProgressFlag()}
	g, err := o.offline(ctx, io.Discard)
	if err != nil {
		return want, err
	}
	return attach.Growth{
		Size: g.Size, Usable: g.UsableSize, WasUsable: g.WasUsable, Arenas: g.Arenas, NewArenas: g.NewArenas, Unused: g.UnusedSize,
	}, nil
}

// adviseInUse says what to do about an image or device that is in use.
func (o *growOptions) adviseInUse(err error) error {
	var inUse *pmem.InUseError
	if !errors.As(err, &inUse) {
		return err
	}
	return fmt.Errorf("%w; an image grows while it is attached (bttnbd attach), or while nobody uses it", err)
}
