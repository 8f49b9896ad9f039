package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"time"
)

// timeout ends a driver that does not end by itself. It is no kill.
const (
	timeout      = 120 * time.Second
	timeoutPanic = "panic: test timed out after"
)

// outcome is what became of a mutant.
type outcome struct {
	mutant
	Verdict verdict
	Test    string // that failed
	Line    string // of its output, in which the symptom is
	Took    time.Duration
	// First is a wrong verdict that a second try did not confirm: the driver depends on
	// chance. It is reported, so that somebody makes it certain.
	First verdict
	// Models says under which crash models the simulator notices; nil if not asked.
	Models map[string]bool
	detail string // the output, where the verdict needs explaining
}

type verdict string

const (
	killed     verdict = "killed"
	equivalent verdict = "equivalent" // survived, with a reason
	survived   verdict = "SURVIVED"
	notSo      verdict = "KILLED, BUT SAID TO BE EQUIVALENT"
	otherwise  verdict = "KILLED BY SOMETHING ELSE"
	timedOut   verdict = "TIMED OUT"
	broken     verdict = "DOES NOT BUILD"
	unmatched  verdict = "PATCH DOES NOT FIT"
)

func (v verdict) ok() bool { return v == killed || v == equivalent }

// bench is where mutants are built and run.
type bench struct {
	root    string // of the tree
	scratch string
}

func newBench(root string) (*bench, error) {
	root, err := filepath.Abs(root)
	if err != nil {
		return nil, err
	}
	scratch, err := os.MkdirTemp("", "mutate")
	return &bench{root, scratch}, err
}

func (b *bench) close() { os.RemoveAll(b.scratch) }

// runAll runs the mutants, jobs at a time, and tells on stderr as they end.
func (b *bench) runAll(all []mutant, jobs int, models bool) *report {
	r := &report{outcomes: make([]outcome, len(all)), models: models}
	start := time.Now()
	next := make(chan int)
	var wg sync.WaitGroup
	for range jobs {
		wg.Go(func() {
			for i := range next {
				r.outcomes[i] = b.run(all[i], models)
				fmt.Fprintf(os.Stderr, "%-5s %-10s %5.1f s\n", all[i].ID, r.outcomes[i].Verdict, r.outcomes[i].Took.Seconds())
			}
		})
	}
	for i := range all {
		next <- i
	}
	close(next)
	wg.Wait()
	r.took = time.Since(start)
	return r
}

// run builds one mutant and lets its driver have a go at it.
func (b *bench) run(m mutant, models bool) outcome {
	o := outcome{mutant: m}
	start := time.Now()
	defer os.RemoveAll(b.dir(m))
	env, err := b.overlay(m)
	if err != nil {
		o.Verdict, o.detail = unmatched, err.Error()
		return o
	}
	if err := b.build(m, env); err != nil {
		o.Verdict, o.detail = broken, err.Error()
		return o
	}
	model := images
	if m.Driver.Lint {
		model = "full"
	}
	o.try(func() (string, error) {
		return b.test(m, append(env, "BTTNBD_MODEL="+model), m.Driver.pattern(), m.Driver.Long)
	})
	o.Took = time.Since(start)
	if models && m.Driver.Package == simulator && o.Verdict == killed {
		o.Models = b.weaker(m, env)
	}
	return o
}

// weaker lets the mutant's driver try with weaker models. Each sees all that the
// one before sees, so that after a kill there is nothing to find out. The full
// model without lints is what has just killed a mutant whose driver asks for none.
func (b *bench) weaker(m mutant, env []string) map[string]bool {
	noticed := map[string]bool{images: !m.Driver.Lint}
	dead := false
	for _, model := range weakModels {
		if !dead {
			out, err := b.test(m, append(env, "BTTNBD_MODEL="+model), m.Driver.pattern(), m.Driver.Long)
			dead = err != nil && !strings.Contains(out, timeoutPanic)
		}
		noticed[model] = dead
	}
	return noticed
}

// try runs the driver, and once more after a wrong verdict.
func (o *outcome) try(driver func() (out string, err error)) {
	o.judge(driver())
	if o.Verdict.ok() {
		return
	}
	again := outcome{mutant: o.mutant}
	if again.judge(driver()); again.Verdict.ok() {
		again.First, again.detail = o.Verdict, o.detail
	}
	*o = again
}

// judge compares what the driver said with what it should say.
func (o *outcome) judge(out string, err error) {
	o.Test = failedTest(out)
	symptom := o.Symptom
	if o.Equivalent != "" {
		symptom = regexp.MustCompile(`.*`)
	}
	switch {
	case err == nil && o.Equivalent != "":
		o.Verdict = equivalent
	case err == nil:
		o.Verdict = survived
	case strings.Contains(out, timeoutPanic):
		o.Verdict, o.detail = timedOut, out
	case !symptom.MatchString(out):
		o.Verdict, o.detail = otherwise, out
	case o.Equivalent != "":
		o.Verdict, o.detail = notSo, out
	default:
		o.Verdict = killed
		for line := range strings.SplitSeq(out, "\n") {
			if symptom.MatchString(line) {
				o.Line = strings.TrimSpace(line)
				break
			}
		}
	}
}

var failure = regexp.MustCompile(`(?m)^ *--- FAIL: (\S+)`)

// failedTest is the innermost test that failed first.
func failedTest(out string) (name string) {
	for _, m := range failure.FindAllStringSubmatch(out, -1) {
		if strings.HasPrefix(m[1], name) {
			name = m[1]
		}
	}
	return name
}

func (b *bench) dir(m mutant) string { return filepath.Join(b.scratch, m.ID) }

// overlay writes the mutated file beside the tree. The environment it returns
// makes every go command see it in the tree, those that tests start included.
func (b *bench) overlay(m mutant) (env []string, err error) {
	path := filepath.Join(b.root, filepath.FromSlash(m.File))
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	mutated, err := m.apply(string(text))
	if err != nil {
		return nil, err
	}
	dir := b.dir(m)
	if err := os.MkdirAll(dir, 0o777); err != nil {
		return nil, err
	}
	instead := filepath.Join(dir, filepath.Base(path))
	if err := os.WriteFile(instead, []byte(mutated), 0o666); err != nil {
		return nil, err
	}
	list, err := json.Marshal(map[string]any{"Replace": map[string]string{path: instead}})
	if err != nil {
		return nil, err
	}
	overlay := filepath.Join(dir, "overlay.json")
	flags := os.Getenv("GOFLAGS") + " -overlay=" + overlay
	return append(os.Environ(), "GOFLAGS="+strings.TrimSpace(flags)), os.WriteFile(overlay, list, 0o666)
}

// build compiles the driver's test binary.
func (b *bench) build(m mutant, env []string) error {
	args := []string{"test", "-c", "-vet=off", "-o", filepath.Join(b.dir(m), "test")}
	if m.Driver.Race {
		args, env = append(args, "-race"), append(env, "CGO_ENABLED=1")
	}
	cmd := exec.Command("go", append(args, m.Driver.Package)...)
	cmd.Dir, cmd.Env = b.root, env
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%w\n%s", err, out)
	}
	return nil
}

// test runs the tests in their package's directory. A mutant may do anything: the
// shell bounds its memory, except with the race detector, which reserves a lot.
func (b *bench) test(m mutant, env []string, pattern string, long bool) (out string, err error) {
	binary := filepath.Join(b.dir(m), "test")
	args := []string{"-test.run=" + pattern, "-test.failfast", "-test.timeout=" + timeout.String()}
	if !long {
		args = append(args, "-test.short")
	}
	limit := "ulimit -v 16000000 && "
	if m.Driver.Race {
		limit = ""
	}
	cmd := exec.Command("sh", append([]string{"-c", limit + `exec "$0" "$@"`, binary}, args...)...)
	cmd.Dir, cmd.Env = filepath.Join(b.root, m.Driver.Package), env
	raw, err := cmd.CombinedOutput()
	if err == nil && strings.Contains(string(raw), "no tests to run") {
		err = errors.New("no tests to run")
	}
	return string(raw), err
}
