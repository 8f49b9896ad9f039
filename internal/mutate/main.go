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
// nothing but the test's timeout, which proves only that it is slow. A wrong verdict
// is tried once more, and both are reported: drivers of real threads depend on chance.
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"regexp"
	"slices"
)

// options are the flags of the command.
type options struct {
	dir, only             string
	jobs                  int
	models                bool
	doc, counts, failures string // files to write, or to append to; "" for none
}

func main() {
	var o options
	flag.StringVar(&o.dir, "list", "fuzz/mutants", "`directory` of the patches")
	flag.StringVar(&o.only, "only", "", "run the mutants whose ID matches the `regexp` whole")
	flag.IntVar(&o.jobs, "j", 2, "mutants at a `time`")
	flag.BoolVar(&o.models, "models", false, "count what dies in the simulator under weaker crash models, too")
	flag.StringVar(&o.doc, "doc", "", "write the table to `file` as well, as Markdown")
	flag.StringVar(&o.counts, "counts", "", "append \"passed failed skipped\" to `file`, as testreport does")
	flag.StringVar(&o.failures, "failures", "", "append what is wrong to `file`, as testreport does")
	flag.Parse()
	ok, err := mutate(o)
	if err != nil {
		fmt.Fprintln(os.Stderr, "mutate:", err)
		os.Exit(2)
	}
	if !ok {
		os.Exit(1)
	}
}

func mutate(o options) (ok bool, err error) {
	chosen, err := choose(o.dir, o.only)
	if err != nil {
		return false, err
	}
	if o.doc != "" && o.only != "" {
		return false, fmt.Errorf("-doc describes all mutants, -only runs some: give one of them")
	}
	b, err := newBench(".")
	if err != nil {
		return false, err
	}
	defer b.close()
	r := b.runAll(chosen, o.jobs, o.models)
	r.print(os.Stdout)
	if o.doc != "" {
		if err := r.write(o.doc); err != nil {
			return false, err
		}
	}
	return r.ok(), errors.Join(r.appendCounts(o.counts), r.appendFailures(o.failures))
}

// choose loads the lists and keeps the mutants whose ID matches only; all, if it is "".
func choose(dir, only string) (chosen []mutant, err error) {
	which, err := regexp.Compile("^(?:" + only + ")$")
	if err != nil {
		return nil, err
	}
	all, err := load(dir)
	if err != nil || only == "" {
		return all, err
	}
	return slices.DeleteFunc(all, func(m mutant) bool { return !which.MatchString(m.ID) }), nil
}
