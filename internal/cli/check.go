package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/bttnbd/bttnbd/check"
	"github.com/bttnbd/bttnbd/pmem"
)

type checkOptions struct {
	path        string
	json        bool
	progress    choiceFlag
	parent      uuidFlag
	parentGiven bool // also as zeros
	repairOptions
}

func (o *checkOptions) addFlags(f *pflag.FlagSet) {
	o.progress = newProgressFlag()
	f.BoolVar(&o.json, "json", false, "print one JSON object")
	f.Var(&o.progress, "progress", "show on stderr how far the check is; auto: on a terminal")
	f.Var(&o.parent, "parent-uuid", "uuid that the namespace has, to compare with the image's, or to repair that; zeros: none")
	o.repairOptions.addFlags(f)
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
fails to read until it is written. It can be interrupted and run again.`,
		Example:     "  bttcheck disk.img\n  bttnbd check --json /dev/pmem0\n  bttcheck --dry-run disk.img\n  bttcheck --repair --backup undo disk.img\n  bttcheck --restore undo disk.img",
		Annotations: map[string]string{exitStatus: fsckStatus},
		Args:        onePath,
		RunE: func(cmd *cobra.Command, args []string) error {
			o.path, o.parentGiven = args[0], cmd.Flags().Changed("parent-uuid")
			if err := o.validate(); err != nil {
				return err
			}
			switch {
			case o.restore != "":
				return runRestore(cmd.OutOrStdout(), o)
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

	bar := newProgress(stderr, o.progress.value, o.path)
	report, err := check.Run(ctx, r, o.options(bar))
	bar.end()
	if err != nil {
		return withPath(o.path, err)
	}
	if o.json {
		err = writeJSON(stdout, report)
	} else {
		err = writeReport(stdout, report)
	}
	if err == nil && report.Damaged() {
		return errDamage
	}
	return err
}

// writeReport prints a line for each finding and one that sums them up.
func writeReport(w io.Writer, r *check.Report) error {
	var b strings.Builder
	for i := range r.Findings {
		writeFinding(&b, &r.Findings[i])
	}
	fmt.Fprintf(&b, "%s: %s\n", r.Path, summary(r))
	_, err := io.WriteString(w, b.String())
	return err
}

func writeFinding(b *strings.Builder, f *check.Finding) {
	fmt.Fprintf(b, "%v: %v: ", f.Severity, f.Kind)
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

func plural(n uint64, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}
