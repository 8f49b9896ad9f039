package cli

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/google/uuid"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/bttnbd/bttnbd/btt"
	"github.com/bttnbd/bttnbd/internal/convert"
	"github.com/bttnbd/bttnbd/internal/units"
	"github.com/bttnbd/bttnbd/layout"
	"github.com/bttnbd/bttnbd/pmem"
)

type convertOptions struct {
	path        string
	output      string
	format      choiceFlag
	uuid        ownUUIDFlag
	parentUUID  uuidFlag
	parentGiven bool // which may be the uuid of zeros
	flog        bool
	json        bool
	progress    choiceFlag
	stderr      io.Writer
}

// sameFormat is the choice that keeps the format of the image.
const sameFormat = "same"

func (o *convertOptions) addFlags(f *pflag.FlagSet) {
	o.format = newChoice(sameFormat, layout.Kernel.Name, layout.UEFI.Name, layout.PMEMBLK.Name)
	f.StringVarP(&o.output, "output", "o", "", "copy every block into the new image `FILE`; PATH stays as it is")
	f.Var(&o.format, "format", "format of the new image")
	f.Var(&o.uuid, "uuid", "uuid of the new image's BTT (default random)")
	f.Var(&o.parentUUID, "parent-uuid", "uuid of the namespace that the image is for; zeros: any namespace")
	f.BoolVar(&o.flog, "flog", false, "rewrite the flog: padding {0,1}, and the flags of the format")
	f.BoolVar(&o.json, "json", false, "print one JSON object")
	addProgress(f, &o.progress)
}

func newConvert() *cobra.Command {
	var o convertOptions
	cmd := &cobra.Command{
		Use:   "convert [flags] PATH",
		Short: "Change what kind of BTT an image is",
		Long: `Change an image in place, or make another one of its blocks.

In place go the uuid of the namespace (--parent-uuid) and the flog (--flog), which
is what kernels before 4.15, PMDK and ndctl check-namespace misread. A crash
meanwhile leaves an image that works, and the command can be run again.

Between formats every block has to move, so that takes a new file (--output). It
has the sector size of the image, and between kernel and uefi the same room for
integrity data, with zeros in it; what is bad in the image is bad in it, too. It has
its name when it is complete and durable; interrupted, there is none.`,
		Example: `  bttnbd convert --flog disk.img
  bttnbd convert --parent-uuid 00000000-0000-0000-0000-000000000000 /dev/pmem0
  bttnbd convert --format kernel --output disk.img old.pool`,
		Annotations: map[string]string{exitStatus: commonStatus},
		Args:        onePath,
		RunE: func(cmd *cobra.Command, args []string) error {
			o.path, o.parentGiven = args[0], cmd.Flags().Changed("parent-uuid")
			if err := o.validate(); err != nil {
				return err
			}
			return runConvert(cmd.Context(), cmd.OutOrStdout(), cmd.ErrOrStderr(), o)
		},
	}
	o.addFlags(cmd.Flags())
	return cmd
}

func (o *convertOptions) validate() error {
	inPlace := o.output == ""
	switch {
	case inPlace && o.format.value != sameFormat:
		return usagef("--format %s: every block would have to move: give a new file with --output", o.format.value)
	case inPlace && o.uuid != ownUUIDFlag{}:
		return usagef("--uuid is for a new image: give --output as well, or leave it out")
	case inPlace && !o.flog && !o.parentGiven:
		return usagef("nothing to do: give --flog, --parent-uuid or --output")
	case !inPlace && o.flog:
		return usagef("--flog is for changes in place: a new image has a new flog anyway")
	}
	return nil
}

// converted is what convert --json prints.
type converted struct {
	Schema        int       `json:"schema"`
	Path          string    `json:"path"` // of the image that was changed or made
	Format        string    `json:"format"`
	UsableSize    uint64    `json:"usable_size"`
	SectorSize    uint32    `json:"sector_size"`
	UUID          uuid.UUID `json:"uuid"`
	ParentUUID    uuid.UUID `json:"parent_uuid"`
	LanesChanged  int       `json:"lanes_changed"`
	ParentChanged bool      `json:"parent_changed"`

	notes []string // what the user may not expect of the new image
}

func runConvert(ctx context.Context, stdout, stderr io.Writer, o convertOptions) error {
	o.stderr = stderr
	run := o.inPlace
	if o.output != "" {
		run = o.toFile
	}
	c, err := run(ctx)
	if err != nil {
		return err
	}
	for _, line := range c.notes {
		fmt.Fprintf(stderr, "bttnbd: %s: %s\n", visible(c.Path), line)
	}
	if o.json {
		return writeJSON(stdout, c)
	}
	if o.output != "" {
		_, err = fmt.Fprintf(stdout, "%s: %s usable, sector size %d, format %s, uuid %v\n", visible(c.Path), units.Human(c.UsableSize), c.SectorSize, c.Format, c.UUID)
		return err
	}
	if o.flog {
		if _, err := fmt.Fprintf(stdout, "%s: flog rewritten, %s changed\n", visible(c.Path), plural(uint64(c.LanesChanged), "lane")); err != nil {
			return err
		}
	}
	if o.parentGiven {
		what := "was"
		if c.ParentChanged {
			what = "is now"
		}
		_, err = fmt.Fprintf(stdout, "%s: parent uuid %s %v\n", visible(c.Path), what, c.ParentUUID)
	}
	return err
}

func (o *convertOptions) inPlace(context.Context) (c converted, err error) {
	r, err := openRegion(o.path, pmem.Options{})
	if err != nil {
		return c, err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	before, err := btt.Open(r, btt.Options{})
	if err != nil {
		return c, adviseBTT(o.path, err)
	}
	c = newConverted(o.path, before)
	if o.flog {
		if c.LanesChanged, err = convert.Flog(r, btt.Options{}); err != nil {
			return c, withPath(o.path, err)
		}
	}
	if o.parentGiven {
		if err := convert.Parent(r, uuid.UUID(o.parentUUID), btt.Options{}); err != nil {
			return c, withPath(o.path, err)
		}
		c.ParentChanged = c.ParentUUID != uuid.UUID(o.parentUUID)
		c.ParentUUID = uuid.UUID(o.parentUUID)
	}
	return c, nil
}

func (o *convertOptions) toFile(ctx context.Context) (c converted, err error) {
	r, err := openRegion(o.path, pmem.Options{ReadOnly: true})
	if err != nil {
		return c, err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	d, err := btt.Open(r, btt.Options{})
	if err != nil {
		return c, adviseBTT(o.path, err)
	}
	p, err := o.params(d)
	if err != nil {
		return c, err
	}
	bar := newProgress(o.stderr, o.progress.value, o.output, bytesRate)
	err = convert.File(ctx, d, o.output, p, bar.update)
	bar.end()
	if err != nil {
		return c, withPath(o.path, err)
	}
	made, err := openImage(o.output, pmem.Options{ReadOnly: true})
	if err != nil {
		return c, err
	}
	c = newConverted(o.output, made.dev)
	c.notes = notes(d, made.dev)
	return c, made.dev.Close()
}

// notes are what the user of an image may not expect of one made of its blocks.
func notes(from, to *btt.Device) (list []string) {
	had := from.Arenas()[0].Geometry.ExternalLBASize - from.SectorSize()
	has := to.Arenas()[0].Geometry.ExternalLBASize - to.SectorSize()
	switch {
	case had > 0 && has == had:
		list = append(list, fmt.Sprintf("the %d bytes of integrity data behind each sector are zeros now, as after any write over NBD", has))
	case had > 0:
		list = append(list, fmt.Sprintf("the %d bytes for integrity data behind each sector are left out: format %s has no room for them", had, to.Flavour().Name))
	}
	if note := sectorNote(to.Flavour(), to.SectorSize()); note != "" {
		list = append(list, note)
	}
	return list
}

// params are those of the new image. A namespace's parent is kept; a pool has a
// pool set of its own.
func (o *convertOptions) params(d *btt.Device) (p btt.FormatParams, err error) {
	p.Flavour = d.Flavour()
	if o.format.value != sameFormat {
		if p.Flavour, err = layout.FlavourByName(o.format.value); err != nil {
			return p, err
		}
	}
	if p.UUID = uuid.UUID(o.uuid.uuidFlag); p.UUID == uuid.Nil {
		if p.UUID, err = uuid.NewRandom(); err != nil {
			return p, fmt.Errorf("making a random uuid: %w: give one with --uuid", err)
		}
	}
	switch {
	case o.parentGiven:
		p.ParentUUID = uuid.UUID(o.parentUUID)
	case p.Flavour.Pool:
		if p.ParentUUID, err = uuid.NewRandom(); err != nil {
			return p, fmt.Errorf("making a random uuid: %w: give one with --parent-uuid", err)
		}
	case !d.Flavour().Pool:
		p.ParentUUID = d.ParentUUID()
	}
	return p, nil
}

func newConverted(path string, d *btt.Device) converted {
	return converted{
		Schema: schema, Path: path, Format: d.Flavour().Name, UsableSize: d.Size(), SectorSize: d.SectorSize(),
		UUID: d.UUID(), ParentUUID: d.ParentUUID(),
	}
}
