package main

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// A mutant is one way of breaking the code.
type mutant struct {
	ID         string // M1…: of the project's list of known BTT bugs; other letters: found since
	What       string
	File       string // in the tree, with slashes
	Driver     driver // the tests that must notice
	Symptom    *regexp.Regexp
	Equivalent string // why no test can notice; "" if one must
	hunks      []hunk
	at         string // file and line of the list, for errors
}

// driver is a set of tests of one package.
type driver struct {
	Package string // as the go command has it: ./fuzz
	Tests   string // regexp for the names of tests, or a test and a regexp: TestX/sub
	Race    bool
	Long    bool // without -short
	Lint    bool // in the simulator: also what was stored and drained, not only what a crash leaves
}

// pattern is the argument of -run.
func (d driver) pattern() string {
	top, sub, found := strings.Cut(d.Tests, "/")
	if found {
		sub = "/" + sub
	}
	return "^(" + top + ")$" + sub
}

func (d driver) String() string {
	s := strings.TrimPrefix(d.Package, "./") + " " + d.Tests
	if d.Race {
		s += " -race"
	}
	if d.Lint {
		s += " with lints"
	}
	return s
}

// load reads all lists of a directory, *.txt in the order of their names.
func load(dir string) (all []mutant, err error) {
	files, err := filepath.Glob(filepath.Join(dir, "*.txt"))
	if err != nil {
		return nil, err
	}
	at := map[string]string{}
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			return nil, err
		}
		ms, err := parse(filepath.Base(f), string(text))
		if err != nil {
			return nil, err
		}
		for _, m := range ms {
			if first := at[m.ID]; first != "" {
				return nil, fmt.Errorf("%s: %s is also at %s", m.at, m.ID, first)
			}
			at[m.ID] = m.at
		}
		all = append(all, ms...)
	}
	slices.SortStableFunc(all, func(a, b mutant) int { return compareIDs(a.ID, b.ID) })
	return all, nil
}

// compareIDs orders by letter, number, and what follows: M2, M10, M10b, N1.
func compareIDs(a, b string) int {
	if a[0] != b[0] {
		return int(a[0]) - int(b[0])
	}
	digits := func(s string) (int, string) {
		n, i := 0, 1
		for ; i < len(s) && '0' <= s[i] && s[i] <= '9'; i++ {
			n = 10*n + int(s[i]-'0')
		}
		return n, s[i:]
	}
	na, ra := digits(a)
	nb, rb := digits(b)
	if na != nb {
		return na - nb
	}
	return strings.Compare(ra, rb)
}

// parse reads a list. A mutant is a head and the hunks of a patch to one file:
//
//	# M2 the map is not zeroed
//	file: btt/format.go
//	driver: ./fuzz TestFormat [race] [long] [lint]
//	symptom: regexp for a line of the failing test's output
//	equivalent: why it survives (instead of symptom)
//
//	 a line of context
//	-a line that goes
//	+a line that comes
//	@@
//	-a line of another hunk
//
// Context and goers together must stand in the file exactly once. What comes
// before the first mutant is a comment.
func parse(name, text string) (all []mutant, err error) {
	var m *mutant
	for i, line := range strings.Split(text, "\n") {
		at := fmt.Sprintf("%s:%d", name, i+1)
		if id, what, found := strings.Cut(strings.TrimPrefix(line, "# "), " "); strings.HasPrefix(line, "# ") && found && isID(id) {
			all = append(all, mutant{ID: id, What: what, at: at})
			m = &all[len(all)-1]
			continue
		}
		if m == nil || line == "" {
			continue
		}
		if err := m.line(line); err != nil {
			return nil, fmt.Errorf("%s: %w", at, err)
		}
	}
	for i := range all {
		if err := all[i].complete(); err != nil {
			return nil, fmt.Errorf("%s: %s: %w", all[i].at, all[i].ID, err)
		}
	}
	return all, nil
}

var idForm = regexp.MustCompile(`^[A-Z][0-9]+[a-z]?$`)

func isID(s string) bool { return idForm.MatchString(s) }

// line takes in one line of the head or of a hunk.
func (m *mutant) line(line string) (err error) {
	switch line[0] {
	case ' ', '-', '+':
		if len(m.hunks) == 0 {
			m.hunks = append(m.hunks, hunk{})
		}
		m.hunks[len(m.hunks)-1].line(line)
		return nil
	case '@':
		m.hunks = append(m.hunks, hunk{})
		return nil
	}
	key, value, _ := strings.Cut(line, ": ")
	switch key {
	case "file":
		m.File = value
	case "driver":
		m.Driver, err = parseDriver(value)
	case "symptom":
		m.Symptom, err = regexp.Compile(value)
	case "equivalent":
		m.Equivalent = value
	default:
		return fmt.Errorf("neither a head nor a hunk: %q", line)
	}
	return err
}

func parseDriver(s string) (d driver, err error) {
	words := strings.Fields(s)
	if len(words) < 2 {
		return d, fmt.Errorf("driver %q: want a package and its tests", s)
	}
	d.Package, d.Tests = words[0], words[1]
	for _, w := range words[2:] {
		switch w {
		case "race":
			d.Race = true
		case "long":
			d.Long = true
		case "lint":
			d.Lint = true
		default:
			return d, fmt.Errorf("driver %q: %q is none of race, long, lint", s, w)
		}
	}
	return d, nil
}

func (m *mutant) complete() error {
	switch {
	case m.File == "":
		return fmt.Errorf("no file")
	case m.Driver.Package == "":
		return fmt.Errorf("no driver")
	case (m.Symptom == nil) == (m.Equivalent == ""):
		return fmt.Errorf("want either a symptom or a reason why it is equivalent")
	case len(m.hunks) == 0:
		return fmt.Errorf("no patch")
	}
	return nil
}
