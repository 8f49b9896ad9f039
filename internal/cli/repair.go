package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"

	"github.com/google/uuid"
	"github.com/spf13/pflag"

	"github.com/bttnbd/bttnbd/check"
	"github.com/bttnbd/bttnbd/internal/units"
	"github.com/bttnbd/bttnbd/pmem"
)

// repairOptions are the flags of check that change an image.
type repairOptions struct {
	repair  bool
	dryRun  bool
	adopt   bool
	backup  string
	restore string
	force   bool
}

func (o *repairOptions) addFlags(f *pflag.FlagSet) {
	f.BoolVar(&o.repair, "repair", false, "mend what can be mended without guessing, then check again")
	f.BoolVar(&o.dryRun, "dry-run", false, "print what a repair would do, and change nothing")
	f.StringVar(&o.backup, "backup", "", "before a repair, save what it overwrites in this new `FILE`")
	f.StringVar(&o.restore, "restore", "", "put back what --backup has saved in `FILE`, if the image is as the repair left it")
	f.BoolVar(&o.force, "force", false, "with --restore: also into an image at another path than the one repaired")
	f.BoolVar(&o.adopt, "adopt", false, "take arenas with another uuid for part of this BTT")
}

// validate refuses flags that contradict each other.
func (o *repairOptions) validate() error {
	switch {
	case o.restore != "" && (o.repair || o.dryRun || o.adopt || o.backup != ""):
		return usagef("--restore stands alone: first restore, then repair")
	case o.backup != "" && (!o.repair || o.dryRun):
		return usagef("--backup saves what --repair overwrites: give both, without --dry-run")
	case o.force && o.restore == "":
		return usagef("--force is for --restore: leave it out")
	case o.adopt && !o.repair && !o.dryRun:
		return usagef("--adopt needs --repair or --dry-run")
	}
	return nil
}

// runRepair checks the image and repairs it, or says what a repair would do.
func runRepair(ctx context.Context, stdout, stderr io.Writer, o checkOptions) (err error) {
	r, _, err := openInspected(o.path, pmem.Options{ReadOnly: o.dryRun})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.Close()) }()

	bar := newProgress(stderr, o.progress.value, o.path, sectorRate)
	ro := check.RepairOptions{Options: o.options(bar), Adopt: o.adopt, DryRun: o.dryRun}
	if o.backup != "" {
		ro.Backup = func(p *check.Plan) error { return saveBackup(o.backup, r, p) }
	}
	report, err := check.Repair(ctx, r, ro)
	bar.end()
	switch {
	case err != nil && report != nil && report.Repaired > 0:
		err = withPath(o.path, err)
		return interruptLeaves(err, "%s: %s done, but not checked afterwards: run bttcheck %s", o.path, plural(uint64(report.Repaired), "change"), o.path)
	case err != nil:
		return withPath(o.path, err)
	}
	if o.json {
		err = writeJSON(stdout, report)
	} else {
		err = writeRepair(stdout, report, o)
	}
	return cmp.Or(err, o.pictures.write(ctx, r, report), outcome(report))
}

// saveBackup is [check.SaveBackup] with an error that says what to do.
func saveBackup(path string, r *pmem.Region, p *check.Plan) error {
	err := check.SaveBackup(path, r, p)
	if errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("--backup: %w: it may be the way back from an earlier repair: choose a new file", err)
	}
	return err
}

// outcome is what fsck(8) tells in its exit code.
func outcome(r *check.Report) error {
	last := r
	if r.After != nil {
		last = r.After
	}
	switch {
	case r.Repaired > 0 && last.Damaged():
		return errPartly
	case r.Repaired > 0:
		return errRepaired
	case last.Damaged():
		return errDamage
	}
	return nil
}

// writeRepair prints the findings, a line for each step and each refusal, and one
// that sums them up.
func writeRepair(w io.Writer, r *check.Report, o checkOptions) error {
	var b strings.Builder
	style := styleOf(w)
	writeFindings(&b, r.Findings, style)
	verb := "repair"
	if o.dryRun {
		verb = "would repair"
	}
	for i := range r.Plan.Steps {
		s := &r.Plan.Steps[i]
		fmt.Fprintf(&b, "%s: %v: %soffset %d: %s\n", verb, s.Kind, place(s.Arena), s.Offset, s.Why)
	}
	for _, f := range r.Plan.Refused {
		fmt.Fprintf(&b, "left: %v: %soffset %d: %s\n", f.Kind, place(f.Arena), f.Offset, f.Why)
	}
	if lost := r.Plan.Lost(); len(lost) > 0 {
		fmt.Fprintf(&b, "%s: reads of %s fail until written: %s\n", visible(r.Path), plural(uint64(len(lost)), "lba"), units.Ranges(lost, maxRanges))
	}
	if r.After != nil {
		fmt.Fprintf(&b, "%s: %s done, now %s\n", visible(r.Path), plural(uint64(r.Repaired), "change"), summary(r.After))
	} else {
		fmt.Fprintf(&b, "%s: nothing changed, %s\n", visible(r.Path), summary(r))
	}
	if o.dryRun && len(r.Plan.Steps) > 0 {
		b.WriteString(o.repairWith())
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func place(arena int) string {
	if arena == check.WholeImage {
		return ""
	}
	return fmt.Sprintf("arena %d, ", arena)
}

// maxRanges is how many runs of LBAs a line names.
const maxRanges = 20

// runRestore undoes a repair.
func runRestore(ctx context.Context, stdout, stderr io.Writer, o checkOptions) (err error) {
	r, err := openRegion(o.path, pmem.Options{})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	was, err := o.restoresTo()
	if err != nil {
		return err
	}
	bar := newProgress(stderr, o.progress.value, o.path, bytesRate)
	n, err := check.Restore(ctx, o.restore, r, bar.update)
	bar.end()
	switch {
	case errors.Is(err, check.ErrNotAsRepaired):
		return withPath(o.path, err)
	case isInterrupt(err):
		return interruptLeaves(err, "%s: nothing is put back yet", o.path)
	}
	if err != nil {
		return err
	}
	if o.json {
		return writeJSON(stdout, struct {
			Schema   int    `json:"schema"`
			Path     string `json:"path"`
			Restored uint64 `json:"restored_bytes"`
		}{check.Schema, o.path, n})
	}
	if n == 0 {
		_, err = fmt.Fprintf(stdout, "%s: is already as before the repair: nothing to put back\n", visible(o.path))
		return err
	}
	_, err = fmt.Fprintf(stdout, "%s: %s put back, as before the repair of %s: the damage is in the image again\n",
		visible(o.path), units.Bytes(n), visible(cmp.Or(was, o.path)))
	return err
}

// restoresTo is the path of the image that was repaired, "" if that is not known. It
// refuses another one: a copy of the image may be in order, and would get the damage.
func (o *checkOptions) restoresTo() (was string, err error) {
	was, err = check.BackupOf(o.restore)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "", fmt.Errorf("--restore: %w: name the file that bttcheck --repair --backup FILE has written", err)
	case err != nil:
		return "", fmt.Errorf("--restore: %w", err)
	case was != "" && !o.force && !sameFile(was, o.path):
		return "", fmt.Errorf("%s: %s is of the repair of %s, and would put the damage of that into this image: name that one, or if it is this one under another path, add --force",
			o.path, o.restore, was)
	}
	return was, nil
}

// options are those of a check.
func (o *checkOptions) options(bar *progress) check.Options {
	c := check.Options{Progress: bar.update}
	if o.parentGiven {
		id := uuid.UUID(o.parent)
		c.ParentUUID = &id
	}
	return c
}
