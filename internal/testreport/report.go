package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"
)

// event is one line of `go test -json`; see `go doc test2json`. Build output comes
// with an ImportPath in place of Package and Test.
type event struct {
	Action     string
	Package    string
	Test       string
	ImportPath string
	Output     string
}

// result counts tests and subtests. A package that fails without a failing test
// (it does not compile, it panics, TestMain fails) counts as one failure.
type result struct {
	passed, failed, skipped int

	tests  []string // "package test\n" of each failed test that is no subtest
	beyond bool     // there is a failure outside the tests
}

// maxAgain failures are misfortune; more are a defect.
const maxAgain = 2

// proof are the tests of real programs that look for lost data.
var proof = regexp.MustCompile("Kill|PowerCut|LogWrites")

// again is what may be tried a second time, a line "package test" each: failures of
// few tests that run real programs beside a clock, and none of any other. A failure
// of the engine, the protocol or a proof of crash safety is one, seen once.
func (r result) again() []string {
	if r.beyond || len(r.tests) > maxAgain {
		return nil
	}
	for _, test := range r.tests {
		pkg, name, _ := strings.Cut(test, " ")
		if !strings.HasSuffix(pkg, "/test") && !strings.HasSuffix(pkg, "/test/vm") || proof.MatchString(name) {
			return nil
		}
	}
	return r.tests
}

func (r result) String() string { return fmt.Sprintf("%d %d %d", r.passed, r.failed, r.skipped) }

type reporter struct {
	w      io.Writer
	bad    io.Writer // w, and what keeps only the failures
	result result
	output map[string][]string // of the tests under way, by "package test"
	broken map[string]bool     // packages with a failing test
	begun  map[string]bool     // tests without a result, by "package test"
}

// summarize reads `go test -json` to its end, writes the report to w as it goes,
// and returns the counts. What tells of a failure goes to failures as well. Lines
// that are not JSON are passed through.
func summarize(in io.Reader, w, failures io.Writer) (result, error) {
	r := reporter{w: w, bad: io.MultiWriter(w, failures), output: map[string][]string{}, broken: map[string]bool{}, begun: map[string]bool{}}
	lines := bufio.NewScanner(in)
	lines.Buffer(nil, 16<<20)
	for lines.Scan() {
		var e event
		if json.Unmarshal(lines.Bytes(), &e) != nil {
			fmt.Fprintln(w, lines.Text())
			continue
		}
		r.add(e)
	}
	return r.result, lines.Err()
}

func (r *reporter) add(e event) {
	switch {
	case e.Action == "build-output":
		fmt.Fprint(r.bad, e.Output)
	case e.Test != "":
		r.addTest(e)
	case e.Action == "output":
		r.addPackageOutput(e)
	case e.Action == "fail":
		r.packageFailed(e)
	}
}

func (r *reporter) addTest(e event) {
	key := e.Package + " " + e.Test
	switch e.Action {
	case "run":
		r.begun[key] = true
		return
	case "output":
		r.output[key] = append(r.output[key], e.Output)
		return
	case "pass":
		r.result.passed++
	case "fail":
		r.result.failed++
		r.broken[e.Package] = true
		r.result.beyond = r.result.beyond || slices.ContainsFunc(r.output[key], isPanic)
		fmt.Fprint(r.bad, strings.Join(r.output[key], ""))
		if !strings.Contains(e.Test, "/") {
			r.result.tests = append(r.result.tests, key+"\n")
		}
	case "skip":
		r.result.skipped++
		fmt.Fprintf(r.w, "SKIP\t%s\t%s\n", key, reason(r.output[key]))
	default:
		return
	}
	delete(r.output, key)
	delete(r.begun, key)
}

// addPackageOutput keeps the go command's line of the package, and what stands
// outside every test, until it is known whether the package failed.
func (r *reporter) addPackageOutput(e event) {
	if strings.HasPrefix(e.Output, "ok  \t") || strings.HasPrefix(e.Output, "FAIL\t") {
		fmt.Fprint(r.w, e.Output)
		return
	}
	r.output[e.Package] = append(r.output[e.Package], e.Output)
}

func (r *reporter) packageFailed(e event) {
	r.result.beyond = r.result.beyond || r.cutShort(e.Package)
	if r.broken[e.Package] {
		return
	}
	// No test failed: the reason is outside the tests, or in one that never ended.
	r.result.failed++
	r.result.beyond = true
	for key, lines := range r.output {
		if key == e.Package || strings.HasPrefix(key, e.Package+" ") {
			fmt.Fprint(r.bad, strings.Join(lines, ""))
		}
	}
}

// cutShort reports whether a package has ended in the middle of a test, by a panic or by
// its time: then there are tests that never ran.
func (r *reporter) cutShort(pkg string) bool {
	for key := range r.begun {
		if strings.HasPrefix(key, pkg+" ") {
			return true
		}
	}
	for key, lines := range r.output {
		if (key == pkg || strings.HasPrefix(key, pkg+" ")) && slices.ContainsFunc(lines, isPanic) {
			return true
		}
	}
	return false
}

func isPanic(line string) bool {
	return strings.HasPrefix(line, "panic: ") || strings.HasPrefix(line, "fatal error: ")
}

// reason is what a skipped test said first: its output without the framework's lines.
func reason(output []string) string {
	for _, line := range output {
		line = strings.TrimSpace(line)
		if line != "" && !strings.HasPrefix(line, "=== ") && !strings.HasPrefix(line, "--- ") {
			return line
		}
	}
	return "no reason given"
}
