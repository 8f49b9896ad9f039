package main

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

const (
	root = "../.."
	list = root + "/fuzz/mutants"
)

func mutants(t *testing.T) []mutant {
	t.Helper()
	all, err := load(list)
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// Goal: every patch fits the code as it is now, and there are as many mutants as
// promised. What they die of takes minutes and is make mutants' matter.
func TestMutantsFit(t *testing.T) {
	all := mutants(t)
	if len(all) < 90 {
		t.Errorf("%d mutants, want 90 at least", len(all))
	}
	for _, m := range all {
		text, err := os.ReadFile(filepath.Join(root, m.File))
		if err != nil {
			t.Errorf("%s: %v", m.at, err)
			continue
		}
		if _, err := m.apply(string(text)); err != nil {
			t.Error(err)
		}
		tests, err := filepath.Glob(filepath.Join(root, m.Driver.Package, "*_test.go"))
		if err != nil || len(tests) == 0 {
			t.Errorf("%s: %s: no tests in %s", m.at, m.ID, m.Driver.Package)
		}
		top, _, _ := strings.Cut(m.Driver.Tests, "/")
		for name := range strings.SplitSeq(top, "|") {
			if !anyContains(t, tests, "\nfunc "+name+"(") {
				t.Errorf("%s: %s: no test %s in %s", m.at, m.ID, name, m.Driver.Package)
			}
		}
	}
}

func anyContains(t *testing.T, files []string, what string) bool {
	return slices.ContainsFunc(files, func(f string) bool {
		text, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		return strings.Contains(string(text), what)
	})
}

// Goal: the document lists exactly the mutants that there are, each once, and
// those without a test to kill them as such.
func TestDocument(t *testing.T) {
	text, err := os.ReadFile(root + "/docs/mutants.md")
	if err != nil {
		t.Fatal(err)
	}
	_, lasting, _ := strings.Cut(string(text), "\n## Equivalent\n")
	var listed, want []string
	for _, m := range regexp.MustCompile(`(?m)^\| ([A-Z][0-9]+[a-z]?) \|`).FindAllStringSubmatch(string(text), -1) {
		listed = append(listed, m[1])
	}
	for _, m := range mutants(t) {
		want = append(want, m.ID)
		if m.Equivalent != "" && !strings.Contains(lasting, "| "+m.ID+" |") {
			t.Errorf("%s is not among the equivalent ones", m.ID)
		}
	}
	slices.SortFunc(listed, compareIDs)
	if !slices.Equal(listed, want) {
		t.Errorf("docs/mutants.md lists %v,\nthere are %v: run make mutants-doc", listed, want)
	}
}

const sample = `A comment.

# N9 a thing is broken
file: a.go
driver: ./p TestX|TestY race lint
symptom: wr+ong

 keep
-old
+new
@@
-two
-lines
`

// Goal: a list says what it means, and a patch changes what it names and nothing
// else.
func TestParseAndApply(t *testing.T) {
	all, err := parse("sample", sample)
	if err != nil || len(all) != 1 {
		t.Fatalf("%v, %v", all, err)
	}
	m := all[0]
	if m.ID != "N9" || m.What != "a thing is broken" || m.File != "a.go" || m.Driver != (driver{Package: "./p", Tests: "TestX|TestY", Race: true, Lint: true}) || !m.Symptom.MatchString("wrrong") {
		t.Errorf("parsed %+v", m)
	}
	for text, want := range map[string]string{
		"keep\nold\nmore\ntwo\nlines\n":                         "keep\nnew\nmore\n",
		"two\nlines\nkeep\nold\n":                               "keep\nnew\n",
		"keep\nolder\ntwo\nlines\n":                             "", // a part of a line
		"keep\nold\nkeep\nold\ntwo\nlines\n":                    "", // twice
		"keep\nold\ntwo\n":                                      "", // not at all
		"	keep\nold\ntwo\nlines\n":                              "",
		"before\nkeep\nold\nbetween\nafter\ntwo\nlines\nlast\n": "before\nkeep\nnew\nbetween\nafter\nlast\n",
	} {
		got, err := m.apply(text)
		if (err != nil) != (want == "") || got != want {
			t.Errorf("%q: got %q, %v; want %q", text, got, err, want)
		}
	}
}

// Goal: a list that is not complete is refused with the place.
func TestParseRefuses(t *testing.T) {
	for what, text := range map[string]string{
		"no file":           strings.Replace(sample, "file: a.go\n", "", 1),
		"no driver":         strings.Replace(sample, "driver: ./p TestX|TestY race lint\n", "", 1),
		"neither":           strings.Replace(sample, "symptom: wr+ong\n", "", 1),
		"both":              strings.Replace(sample, "file:", "equivalent: so\nfile:", 1),
		"a bad regexp":      strings.Replace(sample, "wr+ong", "(", 1),
		"an unknown word":   strings.Replace(sample, "race", "fast", 1),
		"an unknown header": strings.Replace(sample, "file:", "fill:", 1),
		"no patch":          strings.Split(sample, "\n keep")[0] + "\n",
	} {
		if _, err := parse("sample", text); err == nil || !strings.HasPrefix(err.Error(), "sample:") {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// Goal: only a failure of which the symptom can be seen is a kill; a timeout, a
// survivor and a dead "equivalent" are not.
func TestJudge(t *testing.T) {
	die, died := regexp.MustCompile("is owned by"), os.ErrInvalid
	for _, c := range []struct {
		equivalent, out string
		err             error
		want            verdict
	}{
		{"", "ok", nil, survived},
		{"", "--- FAIL: TestX (0.1s)\n    --- FAIL: TestX/a (0.1s)\n  block 3 is owned by b\n", died, killed},
		{"", "--- FAIL: TestX (0.1s)\n something else\n", died, otherwise},
		{"", "panic: test timed out after 1s\nis owned by", died, timedOut},
		{"why", "ok", nil, equivalent},
		{"why", "--- FAIL: TestX\n", died, notSo},
	} {
		o := outcome{mutant: mutant{Symptom: die, Equivalent: c.equivalent}}
		o.judge(c.out, c.err)
		if o.Verdict != c.want {
			t.Errorf("%q, %v: %s, want %s", c.out, c.err, o.Verdict, c.want)
		}
		if c.want == killed && (o.Test != "TestX/a" || o.Line != "block 3 is owned by b") {
			t.Errorf("killed by %q, %q", o.Test, o.Line)
		}
	}
}

// Goal: a verdict that chance has made is told from a lasting one, and not hidden.
func TestSecondTry(t *testing.T) {
	dead := "--- FAIL: TestX\n block 3 is owned by b\n"
	for _, c := range []struct {
		outs        []string
		want, first verdict
	}{
		{[]string{dead}, killed, ""},
		{[]string{"ok", dead}, killed, survived},
		{[]string{"ok", "ok"}, survived, ""},
		{[]string{"--- FAIL: TestX\n else\n", "ok"}, survived, ""},
	} {
		o := outcome{mutant: mutant{ID: "N9", Symptom: regexp.MustCompile("is owned by")}}
		n := 0
		o.try(func() (string, error) {
			n++
			if out := c.outs[n-1]; out != "ok" {
				return out, os.ErrInvalid
			}
			return "ok", nil
		})
		if n != len(c.outs) || o.Verdict != c.want || o.First != c.first {
			t.Errorf("%q: %s, first %q, after %d; want %s, first %q", c.outs, o.Verdict, o.First, n, c.want, c.first)
		}
		failures := t.TempDir() + "/failures"
		if err := (&report{outcomes: []outcome{o}}).appendFailures(failures); err != nil {
			t.Fatal(err)
		}
		text, _ := os.ReadFile(failures)
		if shown := strings.Contains(string(text), "N9"); shown != (c.want != killed || c.first != "") {
			t.Errorf("%q: among the failures: %t\n%s", c.outs, shown, text)
		}
	}
}
