package cli

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/google/uuid"
	"github.com/spf13/cobra"

	"github.com/bttnbd/bttnbd/check"
	"github.com/bttnbd/bttnbd/internal/units"
	"github.com/bttnbd/bttnbd/pmem"
)

type infoOptions struct {
	path string
	json bool
}

func newInfo() *cobra.Command {
	var o infoOptions
	cmd := &cobra.Command{
		Use:   "info [flags] PATH",
		Short: "Show what an image is",
		Long: `Show the format, the sizes and the arenas of an image, from its info blocks. The
image may be in use. Nothing is changed; bttcheck looks at everything else.`,
		Example:     "  bttnbd info disk.img\n  bttnbd info --json /dev/pmem0",
		Annotations: map[string]string{exitStatus: commonStatus},
		Args:        onePath,
		RunE: func(cmd *cobra.Command, args []string) error {
			o.path = args[0]
			return runInfo(cmd.OutOrStdout(), o)
		},
	}
	cmd.Flags().BoolVar(&o.json, "json", false, "print one JSON object")
	return cmd
}

func runInfo(stdout io.Writer, o infoOptions) (err error) {
	r, im, err := openInspected(o.path, pmem.Options{ReadOnly: true, NoLock: true})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	pid, inUse, err := pmem.Owner(o.path)
	if err != nil {
		return err
	}
	f := newFacts(im)
	f.InUse, f.PID = inUse, pid
	if o.json {
		err = writeJSON(stdout, f)
	} else {
		err = f.write(stdout)
	}
	if err == nil && len(im.Arenas) == 0 {
		err = fmt.Errorf("%s: no info block can be believed: see bttcheck %s", o.path, o.path)
	}
	return err
}

// facts is what info --json prints. Sizes and offsets are in bytes; the offset of
// an arena counts from the start of the image, those inside it from its own.
type facts struct {
	Schema     int             `json:"schema"`
	Path       string          `json:"path"`
	Size       uint64          `json:"size"`
	InUse      bool            `json:"in_use"`
	PID        int             `json:"pid"` // 0: not in use, or not known
	Format     string          `json:"format"`
	Version    string          `json:"version"`
	UUID       uuid.UUID       `json:"uuid"`
	ParentUUID uuid.UUID       `json:"parent_uuid"`
	SectorSize uint32          `json:"sector_size"`
	UsableSize uint64          `json:"usable_size"`
	Arenas     []arenaFacts    `json:"arenas"`
	Findings   []check.Finding `json:"findings"`
}

type arenaFacts struct {
	Arena           int       `json:"arena"`
	Offset          uint64    `json:"offset"`
	Size            uint64    `json:"size"`
	Flags           uint32    `json:"flags"`
	ExternalLBASize uint32    `json:"external_lbasize"`
	ExternalNLBA    uint32    `json:"external_nlba"`
	InternalLBASize uint32    `json:"internal_lbasize"`
	InternalNLBA    uint32    `json:"internal_nlba"`
	Nfree           uint32    `json:"nfree"`
	NextOff         uint64    `json:"nextoff"`
	DataOff         uint64    `json:"dataoff"`
	MapOff          uint64    `json:"mapoff"`
	FlogOff         uint64    `json:"flogoff"`
	InfoOff         uint64    `json:"infooff"`
	Padding         string    `json:"padding"` // of the flog; "" if the arena is cut off
	Primary         copyFacts `json:"primary"`
	Backup          copyFacts `json:"backup"`
}

// copyFacts is one of the two copies of an info block.
type copyFacts struct {
	Offset uint64 `json:"offset"`
	Error  string `json:"error"` // why it is not believed; "" if it is
}

func newFacts(im *check.Image) *facts {
	f := &facts{
		Schema: schema, Path: im.Path, Size: im.Size, Format: im.Flavour.Name,
		Arenas: []arenaFacts{}, Findings: append([]check.Finding{}, im.Findings...),
	}
	for i := range im.Arenas {
		a := &im.Arenas[i]
		in := &a.Info
		if i == 0 {
			f.Version = fmt.Sprintf("%d.%d", in.Major, in.Minor)
			f.UUID, f.ParentUUID, f.SectorSize = in.UUID, in.ParentUUID, in.ExternalLBASize
		}
		f.UsableSize += uint64(in.ExternalNLBA) * uint64(in.ExternalLBASize)
		af := arenaFacts{
			Arena: i, Offset: a.Offset, Size: in.Geometry().Size, Flags: in.Flags,
			ExternalLBASize: in.ExternalLBASize, ExternalNLBA: in.ExternalNLBA,
			InternalLBASize: in.InternalLBASize, InternalNLBA: in.InternalNLBA, Nfree: in.Nfree,
			NextOff: in.NextOff, DataOff: in.DataOff, MapOff: in.MapOff, FlogOff: in.FlogOff, InfoOff: in.InfoOff,
			Primary: newCopyFacts(&a.Primary), Backup: newCopyFacts(&a.Backup),
		}
		if a.Padding != 0 {
			af.Padding = a.Padding.String()
		}
		f.Arenas = append(f.Arenas, af)
	}
	return f
}

func newCopyFacts(c *check.InfoCopy) copyFacts {
	cf := copyFacts{Offset: c.Offset}
	if c.Err != nil {
		cf.Error = c.Err.Error()
	}
	return cf
}

// write prints the facts for people: the image, a table of arenas, findings.
func (f *facts) write(w io.Writer) error {
	var b strings.Builder
	t := tabwriter.NewWriter(&b, 0, 8, 2, ' ', 0)
	line := func(name, format string, args ...any) {
		fmt.Fprintf(t, "%s\t%s\n", name, fmt.Sprintf(format, args...))
	}
	line("path", "%s", f.Path)
	line("size", "%s", units.Human(f.Size))
	line("in use", "%s", f.use())
	if len(f.Arenas) > 0 {
		line("format", "%s, version %s", f.Format, f.Version)
		line("uuid", "%v", f.UUID)
		line("parent uuid", "%v", f.ParentUUID)
		line("sector size", "%d bytes", f.SectorSize)
		line("usable size", "%s", units.Human(f.UsableSize))
		t.Flush()
		fmt.Fprint(t, "\narena\toffset\tsize\tsectors\tlanes\tflog\tinfo block\tbackup\n")
	}
	for i := range f.Arenas {
		a := &f.Arenas[i]
		fmt.Fprintf(t, "%d\t%d\t%d\t%d\t%d\t%s\t%s\t%s\n", a.Arena, a.Offset, a.Size,
			a.ExternalNLBA, a.Nfree, a.Padding, a.Primary.state(), a.Backup.state())
	}
	t.Flush()
	for i := range f.Findings {
		writeFinding(&b, &f.Findings[i])
	}
	_, err := io.WriteString(w, b.String())
	return err
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

func (c *copyFacts) state() string {
	if c.Error != "" {
		return "bad"
	}
	return "good"
}
