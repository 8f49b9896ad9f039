package main

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/bttnbd/bttnbd/internal/tally"
)

// simulator is the package whose tests the crash models concern.
const simulator = "./fuzz"

// weakModels are what BTTNBD_MODEL can be, see fuzz/model_test.go, and what each
// stands for.
var weakModels = []string{"none", "kill", "all-or-none"}

// images is the full model without lints.
const images = "images"

var modelNames = map[string]string{
	"none":        "no crash: functions and schedules only",
	"kill":        "a crash before every access that keeps all stores (SIGKILL)",
	"all-or-none": "the same, and one that loses every store not drained (dm-log-writes)",
	images:        "full model, what survives is decided line by line; no lints",
}

// report is the result of a run.
type report struct {
	outcomes []outcome
	models   bool
	took     time.Duration
}

func (r *report) ok() bool {
	for _, o := range r.outcomes {
		if !o.Verdict.ok() {
			return false
		}
	}
	return true
}

func (r *report) count(is func(*outcome) bool) (n int) {
	for i := range r.outcomes {
		if is(&r.outcomes[i]) {
			n++
		}
	}
	return n
}

func (r *report) is(v verdict) int { return r.count(func(o *outcome) bool { return o.Verdict == v }) }

// print is the table for a terminal.
func (r *report) print(w io.Writer) {
	for i := range r.outcomes {
		o := &r.outcomes[i]
		fmt.Fprintf(w, "%-5s %5.1f s  %-58.58s %-10s %-32.32s %s\n", o.ID, o.Took.Seconds(), o.What, o.Verdict, o.by(), o.why())
	}
	for _, o := range r.outcomes {
		if o.detail != "" || o.First != "" {
			fmt.Fprintf(w, "\n%s: %s\n%s\n", o.ID, o.verdicts(), clip(o.detail, 2000))
		}
	}
	fmt.Fprintf(w, "\n%s, in %.0f s\n", r.totals(), r.took.Seconds())
	if r.models {
		fmt.Fprintln(w)
		for _, row := range r.modelRows() {
			fmt.Fprintf(w, "%-72s %4d\n", row.name, row.killed)
		}
	}
}

func (r *report) totals() string {
	bad := r.count(func(o *outcome) bool { return !o.Verdict.ok() })
	totals := fmt.Sprintf("%d mutants: %d killed, %d equivalent, %d wrong", len(r.outcomes), r.is(killed), r.is(equivalent), bad)
	if n := r.count(func(o *outcome) bool { return o.First != "" }); n > 0 {
		totals += fmt.Sprintf(" (%d only at the second try)", n)
	}
	return totals
}

func (o *outcome) by() string {
	if o.Test != "" {
		return o.Test
	}
	return o.Driver.Tests
}

func (o *outcome) why() string {
	if o.Verdict == equivalent {
		return o.Equivalent
	}
	return clip(o.Line, 160)
}

func clip(s string, n int) string {
	if len(s) > n {
		return strings.ToValidUTF8(s[:n], "") + "…"
	}
	return s
}

type modelRow struct {
	name   string
	killed int
}

// modelRows count the mutants that die in the simulator and that each model notices.
func (r *report) modelRows() (rows []modelRow) {
	reached := func(o *outcome) bool { return o.Models != nil }
	for _, m := range append(weakModels, images) {
		rows = append(rows, modelRow{modelNames[m], r.count(func(o *outcome) bool { return reached(o) && o.Models[m] })})
	}
	return append(rows, modelRow{"full model and lints", r.count(reached)})
}

// appendCounts adds the line that scripts/test sums up, each mutant as one test.
func (r *report) appendCounts(path string) error {
	good := r.count(func(o *outcome) bool { return o.Verdict.ok() })
	return tally.Append(path, fmt.Sprintf("%d %d 0\n", good, len(r.outcomes)-good))
}

// verdicts is the verdict, and the first one where it took two tries.
func (o *outcome) verdicts() string {
	if o.First != "" {
		return fmt.Sprintf("%s at the second try, at the first: %s", o.Verdict, o.First)
	}
	return string(o.Verdict)
}

// appendFailures adds what scripts/test shows again at its end: what is wrong, and
// what was wrong once.
func (r *report) appendFailures(path string) error {
	var b strings.Builder
	for i := range r.outcomes {
		if o := &r.outcomes[i]; !o.Verdict.ok() || o.First != "" {
			fmt.Fprintf(&b, "mutant %s, %s: %s; its driver: %s\n%s\n", o.ID, o.What, o.verdicts(), o.Driver, clip(o.detail, 1000))
		}
	}
	return tally.Append(path, b.String())
}

// write is the table as Markdown.
func (r *report) write(path string) error {
	var b bytes.Buffer
	fmt.Fprintf(&b, "# Mutants\n\n%s\n\n%s.\n\n", intro, r.totals())
	r.writeModels(&b)
	b.WriteString("## Killed\n\n| mutant | what is broken | killed by | symptom |\n|---|---|---|---|\n")
	for i := range r.outcomes {
		if o := &r.outcomes[i]; o.Verdict != equivalent {
			fmt.Fprintf(&b, "| %s | %s | %s %s | %s |\n", o.ID, cell(o.What), strings.TrimPrefix(o.Driver.Package, "./"), cell(o.by()), cell(clip(sourceLine.ReplaceAllString(o.Line, ""), 140)))
		}
	}
	b.WriteString("\n## Equivalent\n\nNo test can notice these, for the reason given. One that dies all the same fails the run.\n\n| mutant | what is different | why nobody can tell |\n|---|---|---|\n")
	for i := range r.outcomes {
		if o := &r.outcomes[i]; o.Verdict == equivalent {
			fmt.Fprintf(&b, "| %s | %s | %s |\n", o.ID, cell(o.What), cell(o.Equivalent))
		}
	}
	return os.WriteFile(path, b.Bytes(), 0o666)
}

func (r *report) writeModels(b *bytes.Buffer) {
	if !r.models {
		return
	}
	fmt.Fprintf(b, "## What weaker tests would see\n\n%s\n\n| what a test can see | mutants killed |\n|---|---|\n", modelsIntro)
	for _, row := range r.modelRows() {
		fmt.Fprintf(b, "| %s | %d |\n", row.name, row.killed)
	}
	others := r.count(func(o *outcome) bool { return o.Models == nil && o.Verdict == killed })
	fmt.Fprintf(b, "\nThe other %d die of tests without crashes, in the packages themselves.\n\n", others)
}
