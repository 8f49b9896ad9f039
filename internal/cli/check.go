package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/google/uuid"
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
			if err := o.pictures.mayWrite(o.backup); err != nil {
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
		err = writeReport(stdout, report, o)
	}
	return cmp.Or(err, o.pictures.write(ctx, r, report), outcome(report))
}

// writeReport prints the findings, one line that sums them up, and what to do next.
func writeReport(w io.Writer, r *check.Report, o checkOptions) error {
	var b strings.Builder
	writeFindings(&b, r.Findings, styleOf(w))
	fmt.Fprintf(&b, "%s: %s\n", visible(r.Path), summary(r))
	b.WriteString(o.nextStep(r))
	_, err := io.WriteString(w, b.String())
	return err
}

// nextStep is a line with the command to give after a check, "" if there is none.
func (o *checkOptions) nextStep(r *check.Report) string {
	repairable, perhaps := false, false
	for i := range r.Findings {
		f := &r.Findings[i]
		repaired := f.Severity > check.Info && f.Repair != ""
		repairable = repairable || repaired && f.Kind != check.ArenaLost
		perhaps = perhaps || repaired
	}
	switch {
	case repairable:
		return o.repairWith()
	case perhaps:
		return fmt.Sprintf("see what can be repaired with: bttcheck --dry-run %s\n", o.words())
	case r.Damaged():
		return fmt.Sprintf("nothing of this can be repaired: bttcheck --dry-run %s says why\n", o.words())
	}
	return ""
}

// repairWith is a line with the command that repairs.
func (o *checkOptions) repairWith() string {
	return fmt.Sprintf("repair it with: bttcheck --repair --backup undo %s\n", o.words())
}

// words are the image, and what was said about it, as another command is to be told.
func (o *checkOptions) words() string {
	words := shellWord(o.path)
	if o.parentGiven {
		words = "--parent-uuid " + uuid.UUID(o.parent).String() + " " + words
	}
	if o.adopt {
		words = "--adopt " + words
	}
	return words
}

// maxInfos is how many findings of one kind are listed that are worth knowing and
// nothing else: an image in good order may have thousands.
const maxInfos = 3

// writeFindings prints a line for each finding, and where there are too many of a kind
// one with their number.
func writeFindings(b *strings.Builder, findings []check.Finding, style draw.Style) {
	type kind struct {
		check.Severity
		check.Kind
	}
	type count struct{ all, listed uint64 }
	counts, order := map[kind]*count{}, []kind(nil)
	for i := range findings {
		f := &findings[i]
		k := kind{f.Severity, f.Kind}
		n := counts[k]
		if n == nil {
			n = new(count)
			counts[k], order = n, append(order, k)
		}
		n.all += max(1, f.More)
		if f.More > 0 || f.Severity == check.Info && n.listed == maxInfos {
			continue
		}
		n.listed++
		writeFinding(b, f, style)
	}
	for _, k := range order {
		if n := counts[k]; n.all > n.listed {
			fmt.Fprintf(b, "%s: %v: %d in all, %d listed above\n", severityText(k.Severity, style), k.Kind, n.all, n.listed)
		}
	}
}

func severityText(s check.Severity, style draw.Style) string {
	switch s {
	case check.Error:
		return style.Bad(s.String())
	case check.Warning:
		return style.Doubtful(s.String())
	}
	return s.String()
}

func writeFinding(b *strings.Builder, f *check.Finding, style draw.Style) {
	fmt.Fprintf(b, "%s: %v: ", severityText(f.Severity, style), f.Kind)
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
