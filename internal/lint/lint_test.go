package lint

import (
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const root = "../.."

// rules are all rules but the one on fuzz targets, which needs a list.
var rules = map[string]func([]source) []finding{
	"arrows":        wrongArrows,
	"unsafe":        unsafePlaces,
	"assembly":      assemblyPlaces,
	"lengths":       tooLong,
	"doc comments":  undocumented,
	"sleeps":        sleepingTests,
	"machine paths": machinePaths,
	"log fields":    wrongFields,
}

// Goal: the repository keeps every rule.
func TestRepository(t *testing.T) {
	tree, err := readTree(root)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.ContainsFunc(tree, func(s source) bool { return s.path == "internal/lint/lint_test.go" && s.isGo() }) {
		t.Fatalf("the %d files read do not include this one", len(tree))
	}
	for name, rule := range rules {
		t.Run(name, func(t *testing.T) { report(t, rule(tree)) })
	}
	t.Run("fuzz targets", func(t *testing.T) {
		list := exec.Command("scripts/fuzz", "--list")
		list.Dir = root
		out, err := list.Output()
		if err != nil {
			t.Fatalf("scripts/fuzz --list: %v", err)
		}
		report(t, lostFuzzTargets(tree, strings.Split(strings.TrimSpace(string(out)), "\n")))
	})
}

func report(t *testing.T, found []finding) {
	t.Helper()
	for _, f := range found {
		t.Error(f)
	}
}

// Goal: every file that may sleep exists and says why it does.
func TestExceptionsAreCurrent(t *testing.T) {
	tree, err := readTree(root)
	if err != nil {
		t.Fatal(err)
	}
	for name, why := range mayKeepTime {
		if !slices.ContainsFunc(tree, func(s source) bool { return s.path == name }) {
			t.Errorf("%s may sleep (%s), but is gone", name, why)
		}
	}
}

func longFunction(lines int) string {
	return "package p\n\nfunc f() {\n" + strings.Repeat("\tf()\n", lines-2) + "}\n"
}

// A trial is one source and the line that the rule must find in it, 0 for the file
// as a whole, -1 for nothing.
type trial struct {
	path, text string
	line       int
}

const nothing = -1

// Goal: every rule finds what breaks it, where it stands, and nothing in a source
// that keeps it.
func TestRulesCanFail(t *testing.T) {
	imp := func(path string) string { return fmt.Sprintf("package p\n\nimport _ %q\n", path) }
	trials := map[string][]trial{
		"arrows": {
			{"layout/a.go", imp(module + "/pmem"), 3},
			{"layout/a.go", imp(zerolog), 3},
			{"layout/a.go", imp(uuid), nothing},
			{"btt/a.go", imp(module + "/nbd"), 3},
			{"btt/a.go", imp(module + "/pmem"), nothing},
			{"btt/a.go", imp(zerolog + "/log"), 3},
			{"internal/cli/a.go", imp(testkit + "/testscript"), 3},
			{"internal/cli/a_test.go", imp(testkit + "/testscript"), nothing},
			{"btt/a_test.go", imp(module + "/check"), 3},
			{"check/a.go", imp(module + "/btt"), 3},
			{"check/a_test.go", imp(module + "/btt"), 3},
			{"nbd/a.go", imp(zerolog), nothing},
			{"nbd/a.go", imp(module + "/btt"), 3},
			{"nbd/a_test.go", imp(module + "/nbd"), nothing},
			{"cmd/bttnbd/main.go", imp(module + "/btt"), 3},
			{"internal/cli/serve.go", imp(module + "/btt"), nothing},
			{"fuzz/a_test.go", imp(module + "/btt"), nothing},
			{"fuzz/a.go", imp(module + "/btt"), 3},
			{"newcomer/a.go", imp("fmt"), 0},
		},
		"unsafe": {
			{"pmem/copy.go", imp("unsafe"), 3},
			{"pmem/copy_unsafe.go", imp("unsafe"), nothing},
			{"pmem/copy_unsafe_test.go", imp("unsafe"), nothing},
			{"btt/copy_unsafe.go", imp("unsafe"), 3},
			{"internal/socket/calls_unsafe.go", imp("unsafe"), nothing},
			{"internal/socket/calls.go", imp("unsafe"), 3},
			{"internal/ublk/ring_unsafe.go", imp("unsafe"), nothing},
			{"internal/ublk/ring.go", imp("unsafe"), 3},
			{"pmem/copy_unsafe.go", imp("C"), 3},
		},
		"assembly": {
			{"btt/copy_amd64.s", "TEXT ·f(SB),$0\n", 0},
			{"pmem/copy_amd64.s", "TEXT ·f(SB),$0\n", nothing},
			{"internal/socket/pause_amd64.s", "TEXT ·f(SB),$0\n", nothing},
			{"internal/socket/copy_amd64.s", "TEXT ·f(SB),$0\n", 0},
		},
		"lengths": {
			{"nbd/a.go", longFunction(maxFunctionLines), nothing},
			{"nbd/a.go", longFunction(maxFunctionLines + 1), 3},
			{"nbd/a_test.go", longFunction(maxFunctionLines + 1), nothing},
			{"nbd/a.go", "package p\n" + strings.Repeat("\n", maxFileLines-1), nothing},
			{"nbd/a.go", "package p\n" + strings.Repeat("\n", maxFileLines), 0},
		},
		"doc comments": {
			{"nbd/a.go", "package p\n\nfunc F() {}\n", 3},
			{"nbd/a.go", "package p\n\n// F does.\nfunc F() {}\n", nothing},
			{"nbd/a.go", "package p\n\nfunc f() {}\n", nothing},
			{"nbd/a.go", "package p\n\n// T is.\ntype T int\n\nfunc (t *T) F() {}\n", 6},
			{"nbd/a.go", "package p\n\n// T is.\ntype T int\n\nfunc (T) String() string { return \"\" }\n", nothing},
			{"nbd/a.go", "package p\n\nfunc String() string { return \"\" }\n", 3},
			{"nbd/a.go", "package p\n\ntype t int\n\nfunc (t *t) F() {}\n", nothing},
			{"nbd/a.go", "package p\n\ntype T int\n", 3},
			{"nbd/a.go", "package p\n\nconst A, b = 1, 2\n", 3},
			{"nbd/a.go", "package p\n\nconst (\n\tA = 1\n)\n", 4},
			{"nbd/a.go", "package p\n\n// The As.\nconst (\n\tA = 1\n)\n", nothing},
			{"nbd/a.go", "package p\n\nconst (\n\tA = 1 // of many\n)\n", nothing},
			{"internal/cli/a.go", "package p\n\nfunc F() {}\n", nothing},
		},
		"sleeps": {
			{"nbd/a_test.go", "package p\n\nimport \"time\"\n\nfunc f() { time.Sleep(1) }\n", 5},
			{"nbd/a.go", "package p\n\nimport \"time\"\n\nfunc f() { time.Sleep(1) }\n", nothing},
			{"nbd/a_test.go", "package p\n\nimport \"time\"\n\nfunc f() { <-time.After(1) }\n", nothing},
			{"nbd/a_test.go", "package p\n\nfunc f() { synctest.Test(t, func() { time.Sleep(1) }) }\n", nothing},
			{"nbd/a_test.go", "package p\n\nfunc f() {\n\tsynctest.Test(t, g)\n\ttime.Sleep(1)\n}\n", 5},
		},
		"machine paths": {
			{"docs/a.md", "text\nsee /ho" + "me/someone/notes\n", 2},
			{"scripts/a", "cd /ro" + "ot/x\n", 1},
			{"docs/a.md", "https://example.org/ho" + "me/page\n", nothing},
			{"docs/a.md", "a work/home/root matter\n", nothing},
		},
		"log fields": {
			{"nbd/a.go", "package p\n\nfunc f() {\n\tlog.Str(\"file\", p)\n}\n", 4},
			{"nbd/a.go", "package p\n\nfunc f() {\n\tlog.Str(name, p)\n\tflags.Int(\"a\", 1, \"b\")\n}\n", nothing},
			{"nbd/a_test.go", "package p\n\nfunc f() {\n\tlog.Str(\"file\", p)\n}\n", nothing},
			{"check/a.go", "package p\n\nfunc f() {\n\tlog.Str(\"file\", p)\n}\n", nothing},
		},
	}
	for name, rule := range rules {
		if len(trials[name]) == 0 {
			t.Errorf("rule %q has no trial", name)
		}
		for _, tt := range trials[name] {
			s, err := parse(tt.path, []byte(tt.text))
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			expect(t, name, tt, rule([]source{s}))
		}
	}
}

func expect(t *testing.T, rule string, tt trial, found []finding) {
	t.Helper()
	switch {
	case tt.line == nothing && len(found) != 0:
		t.Errorf("%s: found %v in a source that keeps the rule:\n%s", rule, found, tt.text)
	case tt.line != nothing && (len(found) != 1 || found[0].line != tt.line):
		t.Errorf("%s: found %v, want one finding in line %d of %s:\n%s", rule, found, tt.line, tt.path, tt.text)
	}
}

// Goal: words of the log are those of the table under its heading, and no others.
func TestLogWords(t *testing.T) {
	text := "| `before` | x |\n" + logHeading + "text `in` it\n\n| word | of |\n|---|---|\n| `path` | x |\n| `offset`, `length` | `y` |\n\n## Next\n| `behind` | x |\n"
	s, err := parse(logDocument, []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	if got := logWords([]source{s}); !slices.Equal(got, []string{"path", "offset", "length"}) {
		t.Errorf("words: %q", got)
	}
}

// Goal: a fuzz target that the smoke run would not find is found.
func TestLostFuzzTargets(t *testing.T) {
	s, err := parse("nbd/a_test.go", []byte("package nbd\n\nfunc FuzzA(f *testing.F) {}\nfunc FuzzB(f *testing.F) {}\n"))
	if err != nil {
		t.Fatal(err)
	}
	found := lostFuzzTargets([]source{s}, []string{module + "/nbd FuzzA", module + "/btt FuzzB"})
	if len(found) != 1 || found[0].line != 4 {
		t.Errorf("found %v, want FuzzB in line 4", found)
	}
}
