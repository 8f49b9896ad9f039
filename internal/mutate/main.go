// Command mutate shows that the tests can fail. It breaks the code that ships in
// one small place at a time and runs the test that must notice:
//
//	go run ./internal/mutate                 # every mutant against its driver
//	go run ./internal/mutate -only 'M3|N1'   # some of them
//	go run ./internal/mutate -models         # what weaker crash models would see
//	go run ./internal/mutate -doc docs/mutants.md [-models]
//
// The mutants are patches in fuzz/mutants, see [parse] for their form. They are
// applied with go's -overlay, so that nothing in the tree changes and nothing of
// them is in what ships. The exit status is 1 when a mutant survives without a
// reason, dies with a reason, dies of something else than its symptom, or of
// nothing but the test's timeout, which proves only that it is slow.
package main

import (
	"flag"
	"fmt"
	"os"
	"regexp"
)

func main() {
	dir := flag.String("list", "fuzz/mutants", "`directory` of the patches")
	only := flag.String("only", "", "run the mutants whose ID matches the `regexp` whole")
	jobs := flag.Int("j", 2, "mutants at a `time`")
	models := flag.Bool("models", false, "count what dies in the simulator under weaker crash models, too")
	doc := flag.String("doc", "", "write the table to `file` as well, as Markdown")
	counts := flag.String("counts", "", "append \"passed failed skipped\" to `file`, as testreport does")
	flag.Parse()
	ok, err := mutate(*dir, *only, *jobs, *models, *doc, *counts)
	if err != nil {
		fmt.Fprintln(os.Stderr, "mutate:", err)
		os.Exit(2)
	}
	if !ok {
		os.Exit(1)
	}
}

func mutate(dir, only string, jobs int, models bool, doc, counts string) (ok bool, err error) {
	which, err := regexp.Compile("^(?:" + only + ")$")
	if err != nil {
		return false, err
	}
	all, err := load(dir)
	if err != nil {
		return false, err
	}
	chosen := all
	if only != "" {
		chosen = nil
		for _, m := range all {
			if which.MatchString(m.ID) {
				chosen = append(chosen, m)
			}
		}
	}
	if doc != "" && only != "" {
		return false, fmt.Errorf("-doc describes all mutants, -only runs some: give one of them")
	}
	b, err := newBench(".")
	if err != nil {
		return false, err
	}
	defer b.close()
	r := b.runAll(chosen, jobs, models)
	r.print(os.Stdout)
	if doc != "" {
		if err := r.write(doc); err != nil {
			return false, err
		}
	}
	if counts != "" {
		if err := r.appendCounts(counts); err != nil {
			return false, err
		}
	}
	return r.ok(), nil
}
