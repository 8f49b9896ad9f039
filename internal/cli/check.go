package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/bttnbd/bttnbd/check"
	"github.com/bttnbd/bttnbd/internal/draw"
	"github.com/bttnbd/bttnbd/internal/units"
	"github.com/bttnbd/bttnbd/pmem"
)

type checkOptions struct {
	path        string
	json        bool
	progress    choiceFlag
	parent      uuidFlag
	parentGiven bool // also as zeros
	repairOptions
	pictures
}

func (o *checkOptions) addFlags(f *pflag.FlagSet) {
	f.BoolVar(&o.json, "json", false, "print one JSON object")
	addProgress(f, &o.progress)
	f.Var(&o.parent, "parent-uuid", "uuid that the namespace has, to compare with the image's, or to repair that; zeros: none")
	o.repairOptions.addFlags(f)
	o.pictures.addFlags(f)
}

// NewCheck is the command check; name is what the user calls it.
func NewCheck(name string) *cobra.Command {
	var o checkOptions
	cmd := &cobra.Command{
		Use:   name + " [flags] PATH",
		Short: "Check an image that is not in use",
		Long: `Check the info blocks, the flog and the map of a BTT, and that every internal
block has exactly one owner. Nothing is changed unless --repair is given. Each
finding is one line.

A repair never guesses whose data is in a block: an LBA of which that is not known
fails to read until it is written. It can be interrupted and run again.

--html and --svg draw what was found, with what a repair would do.`,
		Example: `  bttcheck disk.img
  bttnbd check --json /dev/pmem0
  bttcheck --html report.html disk.img
  bttcheck --dry-run disk.img
  bttcheck --repair --backup undo disk.img
  bttcheck --restore undo disk.img`,
		Annotations: map[string]string{exitStatus: fsckStatus},
		Args:        onePath,
		RunE: func(cmd *cobra.Command, args []string) error {
			o.path, o.parentGiven = args[0], cmd.Flags().Changed("parent-uuid")
			if err := o.validate(); err != nil {
				return err
			}
			if o.restore != "" && o.pictures.wanted() {
				return usagef("--restore checks nothing that could be drawn: leave --html and --svg out")
			}
			if err := o.pictures.mayWrite(); err != nil {
				return err
			}
			switch {
			case o.restore != "":
				return runRestore(cmd.Context(), cmd.OutOrStdout(), cmd.ErrOrStderr(), o)
			case o.repair || o.dryRun:
				return runRepair(cmd.Context(), cmd.OutOrStdout(), cmd.ErrOrStderr(), o)
			}
			return runCheck(cmd.Context(), cmd.OutOrStdout(), cmd.ErrOrStderr(), o)
		},
	}
	o.addFlags(cmd.Flags())
	return cmd
}

func runCheck(ctx context.Context, stdout, stderr io.Writer, o checkOptions) (err error) {
	r, _, err := openInspected(o.path, pmem.Options{ReadOnly: true})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.Close()) }()

	bar := newProgress(stderr, o.progress.value, o.path, sectorRate)
	report, err := check.Run(ctx, r, o.options(bar))
	if err == nil && o.pictures.wanted() && !report.Clean() {
		err = check.Preview(ctx, r, report, check.RepairOptions{Options: o.options(bar)})
	}
	bar.end()
	if err != nil {
		return withPath(o.path, err)
	}
	if o.json {
		err = writeJSON(stdout, report)
	} else {
		err = writeReport(stdout, report)
	}
	return cmp.Or(err, o.pictures.write(ctx, r, report), outcome(report))
}

// writeReport prints a line for each finding and one that sums them up.
func writeReport(w io.Writer, r *check.Report) error {
	var b strings.Builder
	style := styleOf(w)
	for i := range r.Findings {
		writeFinding(&b, &r.Findings[i], style)
	}
	fmt.Fprintf(&b, "%s: %s\n", r.Path, summary(r))
	_, err := io.WriteString(w, b.String())
	return err
}

func writeFinding(b *strings.Builder, f *check.Finding, style draw.Style) {
	severity := f.Severity.String()
	switch f.Severity {
	case check.Error:
		severity = style.Bad(severity)
	case check.Warning:
		severity = style.Doubtful(severity)
	}
	fmt.Fprintf(b, "%s: %v: ", severity, f.Kind)
	if f.Arena != check.WholeImage {
		fmt.Fprintf(b, "arena %d, ", f.Arena)
	}
	fmt.Fprintf(b, "offset %d: %s", f.Offset, f.Message)
	if f.Repair != "" {
		fmt.Fprintf(b, " (repair: %s)", f.Repair)
	}
	b.WriteByte('\n')
}

func summary(r *check.Report) string {
	var count [check.Error + 1]uint64
	for i := range r.Findings {
		count[r.Findings[i].Severity] += max(1, r.Findings[i].More)
	}
	found := fmt.Sprintf("%s, %s", plural(count[check.Error], "error"), plural(count[check.Warning], "warning"))
	if r.Clean() {
		found = "clean"
	}
	return fmt.Sprintf("%s; format %s, %s, %s of %d bytes", found, r.Format,
		plural(uint64(len(r.Arenas)), "arena"), plural(r.Sectors, "sector"), r.SectorSize)
}

func plural(n uint64, what string) string { return units.Plural(n, what) }
