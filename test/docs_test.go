package clienttest

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// A page is a document, and how it stands in the repository.
type page struct {
	path string // from the top, with slashes
	text string
}

// pages are the documents that people read: README.md and those in docs.
func pages(t *testing.T) (all []page) {
	t.Helper()
	for _, pattern := range []string{"README.md", "CHANGELOG.md", "docs/*.md", "docs/adr/*.md"} {
		found, err := filepath.Glob(filepath.Join("..", pattern))
		if err != nil || len(found) == 0 {
			t.Fatalf("%s: %v", pattern, err)
		}
		for _, path := range found {
			text, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, page{filepath.ToSlash(path[len("../"):]), string(text)})
		}
	}
	return all
}

// A block is a fenced part of a page. Comments directly above it, which nobody sees,
// say what a test has to do about it:
//
//	<!-- before: COMMANDS -->   run first: what the reader has already
//	<!-- stays: TEXT -->        runs on; ready when it has printed TEXT
//	<!-- ended: WHAT -->        all that runs on is ended first, with Ctrl-C; so it is at the end of the page
//	<!-- not run: REASON -->    is not run
type block struct {
	page         string
	line         int // of the fence
	language     string
	text         string
	before       string
	stays, ended string
	notRun       string
}

func (b block) String() string { return fmt.Sprintf("%s:%d", b.page, b.line) }

var comment = regexp.MustCompile(`^<!-- (\w[\w ]*): (.*) -->$`)

func (p page) blocks() (all []block) {
	var b block
	inside := false
	for i, line := range strings.Split(p.text, "\n") {
		language, fence := strings.CutPrefix(line, "```")
		switch m := comment.FindStringSubmatch(line); {
		case fence && inside:
			inside = false
			all = append(all, b)
			b = block{}
		case fence:
			inside = true
			b.page, b.line, b.language = p.path, i+1, language
		case inside:
			b.text += line + "\n"
		case m == nil:
			b = block{}
		case m[1] == "before":
			b.before += m[2] + "\n"
		case m[1] == "stays":
			b.stays = m[2]
		case m[1] == "ended":
			b.ended = m[2]
		case m[1] == "not run":
			b.notRun = m[2]
		}
	}
	return all
}

// Goal: whoever follows a page, block by block, gets no error. Blocks without a
// language are no commands; those that are not run are few, and say why.
func TestDocsCommands(t *testing.T) {
	need(t, "bash", "nbdinfo", "nbdcopy", "qemu-img", "qemu-io", "openssl")
	const most = 12
	var left []string
	for _, p := range pages(t) {
		var run []block
		for _, b := range p.blocks() {
			switch {
			case b.notRun != "":
				left = append(left, fmt.Sprintf("%v: %s", b, b.notRun))
				if err := goodReason(b.notRun); err != nil {
					t.Errorf("%v: %v", b, err)
				}
			case b.language == "sh" && changesMachine.MatchString(b.text):
				t.Errorf("%v: it would change this very machine; mark it as not run:\n%s", b, b.text)
			case b.language == "sh":
				run = append(run, b)
			case looksLikeCommands.MatchString(b.text):
				t.Errorf("%v: commands in a block that is not of sh:\n%s", b, b.text)
			}
		}
		if len(run) > 0 {
			t.Run(strings.ReplaceAll(p.path, "/", "_"), func(t *testing.T) { follow(t, run) })
		}
	}
	t.Logf("%d blocks are not run:\n%s", len(left), strings.Join(left, "\n"))
	if len(left) > most {
		t.Errorf("%d blocks are not run, at most %d: run them, or take them out", len(left), most)
	}
}

var looksLikeCommands = regexp.MustCompile(`(?m)^(?:[$#] )?(?:bttnbd|bttcheck|make|go|scripts/\w+|systemctl|apt|ndctl|nbd\w+) `)

// changesMachine finds what is not to be run by a test, least of all as root.
var changesMachine = regexp.MustCompile(`(?m)^(?:sudo|apt|apt-get|systemctl|ndctl|modprobe|mkfs\S*|u?mount|bttnbd (?:attach|detach)) |> ?/[^d]`)

var testName = regexp.MustCompile(`\bTest[A-Z]\w+`)

// goodReason is for a block that is run by tests, which must exist, or cannot be.
func goodReason(reason string) error {
	names := testName.FindAllString(reason, -1)
	if len(names) == 0 && !strings.HasPrefix(reason, "needs ") {
		return fmt.Errorf("%q is no reason: name the test that does it, or what it needs", reason)
	}
	for _, name := range names {
		grep := exec.Command("git", "grep", "-q", "--untracked", "func "+name+"(t ", "--", "*_test.go")
		grep.Dir = ".."
		if err := grep.Run(); err != nil {
			return fmt.Errorf("there is no test %s: %w", name, err)
		}
	}
	return nil
}

// follow runs the blocks of a page one after the other, in a new copy of the source.
func follow(t *testing.T, blocks []block) {
	dir := t.TempDir()
	copySource(t, dir)
	var exports string // hold for the blocks that follow, as in one terminal
	var running []func()
	end := func() {
		for _, interrupt := range running {
			interrupt()
		}
		running = nil
	}
	defer func() { end() }()
	for _, b := range blocks {
		if b.ended != "" {
			end()
		}
		script := "set -euo pipefail\n" + exports + b.before + b.text
		cmd := exec.Command("bash", "-c", script)
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "PATH="+filepath.Dir(bttnbd)+":"+os.Getenv("PATH"))
		if b.stays != "" {
			running = append(running, background(t, b, cmd))
		} else if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v: %v\n%s\n%s", b, err, script, out)
		}
		for line := range strings.Lines(b.text) {
			if strings.HasPrefix(line, "export ") {
				exports += line
			}
		}
	}
}

// Goal: `make run` proposes to write to an image that it has just made, and to none
// that somebody may have put something in; without Go, make says where to get it.
func TestDocsMakeRun(t *testing.T) {
	dir := t.TempDir()
	copySource(t, dir)
	for _, c := range []struct {
		when, want, none string
	}{{"first", "write -P", "-r -c"}, {"second", "-r -c 'read 0 64k'", "write -P"}} {
		cmd := exec.Command("bash", "-c", "make run 2>&1 | (trap '' INT; tee "+c.when+")")
		cmd.Dir = dir
		background(t, block{page: c.when, stays: "Ctrl-C here stops it"}, cmd)()
		out, err := os.ReadFile(filepath.Join(dir, c.when))
		if text := string(out); err != nil || !strings.Contains(text, c.want) || strings.Contains(text, c.none) {
			t.Errorf("make run for the %s time: want %q and no %q (%v):\n%s", c.when, c.want, c.none, err, text)
		}
	}
	for _, target := range []string{"build", "run"} {
		if o := try(t, "make", "-C", dir, target, "GO=no-such-go"); o.status == 0 || !strings.Contains(o.stderr, "go.dev/dl") {
			t.Errorf("make %s without Go: exit status %d: %s", target, o.status, o.stderr)
		}
	}
	if out := run(t, "make", "-C", dir, "help"); !strings.Contains(out, "make run ") || !strings.Contains(out, "make build ") {
		t.Errorf("make help:\n%s", out)
	}
}

// background starts a block that runs on, as in a terminal of its own, and returns
// what ends it, as Ctrl-C does.
func background(t *testing.T, b block, cmd *exec.Cmd) (interrupt func()) {
	t.Helper()
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	var output lockedBuffer
	cmd.Stdout, cmd.Stderr = &output, &output
	if err := cmd.Start(); err != nil {
		t.Fatalf("%v: %v", b, err)
	}
	ended := make(chan struct{})
	go func() {
		cmd.Wait() // however Ctrl-C ends it
		close(ended)
	}()
	over := func() bool {
		select {
		case <-ended:
			return true
		default:
			return false
		}
	}
	eventually(t, fmt.Sprintf("%q from %v", b.stays, b), func() bool {
		if over() {
			t.Fatalf("%v ended:\n%s", b, &output)
		}
		return strings.Contains(output.String(), b.stays)
	})
	return func() {
		if err := syscall.Kill(-cmd.Process.Pid, syscall.SIGINT); err != nil {
			t.Errorf("%v has ended before: %v\n%s", b, err, &output)
		}
		eventually(t, fmt.Sprintf("the end of %v", b), over)
	}
}

// Goal: a file for the server that a page shows is one that the server understands.
func TestDocsConfigurations(t *testing.T) {
	tried := 0
	for _, p := range pages(t) {
		for _, b := range p.blocks() {
			if b.language != "toml" {
				continue
			}
			tried++
			path := filepath.Join(t.TempDir(), "page.toml")
			if err := os.WriteFile(path, []byte(b.text), 0o600); err != nil {
				t.Fatal(err)
			}
			// The images and certificates of the page are not here, so that this must fail:
			// about them, and not about the file.
			if o := try(t, bttnbd, "serve", "--config", path); o.status == 0 || strings.Contains(o.stderr, path) {
				t.Errorf("%v: exit status %d: %s", b, o.status, o.stderr)
			}
		}
	}
	if tried == 0 {
		t.Error("no page shows a configuration")
	}
}

// Goal: each key of an export that docs/operations.md lists is one.
func TestDocsExportKeys(t *testing.T) {
	text, err := os.ReadFile("../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	sentence := regexp.MustCompile(`An export has the keys ([^;]+);`).FindSubmatch(text)
	if sentence == nil {
		t.Fatal("docs/operations.md lists no keys of an export")
	}
	keys := span.FindAllString(string(sentence[1]), -1)
	path := filepath.Join(t.TempDir(), "page.toml")
	for _, key := range append(keys, "`no-key`") {
		key = strings.Trim(key, "`")
		// No key has a table for its value: a key is refused for that, anything else as unknown.
		if err := os.WriteFile(path, []byte("[[export]]\n"+key+" = {}\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		o := try(t, bttnbd, "serve", "--config", path)
		if known := !strings.Contains(o.stderr, "unknown key"); known != (key != "no-key") || !strings.Contains(o.stderr, key) {
			t.Errorf("%s: exit status %d: %s", key, o.status, o.stderr)
		}
	}
}

// Goal: what a page adds to a unit is understood by systemd.
func TestDocsUnits(t *testing.T) {
	need(t, "systemd-analyze")
	tried := 0
	for _, p := range pages(t) {
		for _, b := range p.blocks() {
			if b.language != "ini" {
				continue
			}
			tried++
			dir := units(t)
			drop := filepath.Join(dir, "bttnbd.service.d", "override.conf")
			if err := os.Mkdir(filepath.Dir(drop), 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(drop, []byte(b.text), 0o600); err != nil {
				t.Fatal(err)
			}
			cmd := exec.Command("systemd-analyze", "verify", "--man=no", "bttnbd.service")
			cmd.Env = append(os.Environ(), "SYSTEMD_UNIT_PATH="+dir+":")
			if out, err := cmd.CombinedOutput(); err != nil || strings.Contains(string(out), dir) {
				t.Errorf("%v: %v\n%s", b, err, out)
			}
		}
	}
	if tried == 0 {
		t.Error("no page changes a unit")
	}
}

var (
	linkTarget = regexp.MustCompile(`\]\(([^()\s]+)\)`)
	imageTag   = regexp.MustCompile(`<img[^>]* src="([^"]+)"`)
	fenced     = regexp.MustCompile("(?ms)^```.*?^```$")
	headline   = regexp.MustCompile(`(?m)^#+ (.+)$`)
)

// Goal: every link within the repository leads to a file, and to a heading in it.
func TestDocsLinks(t *testing.T) {
	all := pages(t)
	links := 0
	for _, p := range all {
		text := fenced.ReplaceAllString(p.text, "")
		for _, m := range slices.Concat(linkTarget.FindAllStringSubmatch(text, -1), imageTag.FindAllStringSubmatch(text, -1)) {
			target := m[1]
			if strings.Contains(target, "://") {
				continue
			}
			links++
			file, anchor, _ := strings.Cut(target, "#")
			to := p.path
			if file != "" {
				to = filepath.ToSlash(filepath.Join(filepath.Dir(p.path), file))
			}
			if _, err := os.Stat(filepath.Join("..", to)); err != nil {
				t.Errorf("%s: the link %s leads nowhere: %v", p.path, target, err)
				continue
			}
			i := slices.IndexFunc(all, func(q page) bool { return q.path == to })
			if anchor != "" && (i < 0 || !slices.Contains(all[i].anchors(), anchor)) {
				t.Errorf("%s: the link %s leads to no heading", p.path, target)
			}
		}
	}
	if links < 30 {
		t.Errorf("only %d links found", links)
	}
}

var notInAnchors = regexp.MustCompile(`[^\p{L}\p{N} _-]`)

// anchors are the names of the headings as GitHub makes them.
func (p page) anchors() (all []string) {
	for _, m := range headline.FindAllStringSubmatch(fenced.ReplaceAllString(p.text, ""), -1) {
		all = append(all, strings.ReplaceAll(notInAnchors.ReplaceAllString(strings.ToLower(m[1]), ""), " ", "-"))
	}
	return all
}

// absent are flags that the pages name to say that there are none.
var absent = []string{"--tls-psk"}

var (
	quoted = regexp.MustCompile(`'[^']*'`) // a command that one of ours is given
	span   = regexp.MustCompile("`[^`\n]+`")
	flag   = regexp.MustCompile(`(?:^|[\s("\[/])(--[a-z][a-z0-9-]+)`)
)

// Goal: every flag that a page names is one of the command it is said of, or, where
// none is named, of some command of ours.
func TestDocsFlags(t *testing.T) {
	flags := flagsOfCommands(t)
	checked := 0
	for _, p := range pages(t) {
		if p.path == "docs/mutants.md" {
			continue // made from patches
		}
		var parts []string
		for _, b := range p.blocks() {
			if b.language == "sh" {
				parts = append(parts, regexp.MustCompile(`[|;&\n]+|\$\(`).Split(b.text, -1)...)
			}
		}
		for _, s := range span.FindAllString(fenced.ReplaceAllString(p.text, ""), -1) {
			parts = append(parts, strings.Trim(s, "`"))
		}
		for _, part := range parts {
			part, _, _ = strings.Cut(strings.TrimSpace(quoted.ReplaceAllString(part, "''")), " #")
			known, ours := flags[commandOf(part)]
			for _, m := range flag.FindAllStringSubmatch(part, -1) {
				if !ours {
					continue
				}
				checked++
				if m[1] != "--help" && !slices.Contains(known, m[1]) && !slices.Contains(absent, m[1]) {
					t.Errorf("%s: `%s`: there is no %s", p.path, part, m[1])
				}
			}
		}
	}
	if checked < 100 {
		t.Errorf("only %d flags found", checked)
	}
}

// commandOf is the command of ours that a line calls, "any" if the line is but a flag,
// or the program of others.
func commandOf(line string) string {
	words := strings.Fields(line)
	switch {
	case len(words) == 0:
		return ""
	case strings.HasPrefix(words[0], "-"):
		return "any"
	case words[0] == "bttnbd" && len(words) > 1 && !strings.HasPrefix(words[1], "-"):
		return "bttnbd " + words[1]
	case slices.Contains([]string{"create", "serve", "info", "check", "convert", "attach", "detach", "list", "top", "grow"}, words[0]):
		return "bttnbd " + words[0]
	}
	return words[0]
}

// flagsOfCommands asks each command for its help.
func flagsOfCommands(t *testing.T) map[string][]string {
	t.Helper()
	long := regexp.MustCompile(`--[a-z][a-z0-9-]+`)
	all := map[string][]string{
		"bttnbd":   long.FindAllString(run(t, bttnbd, "--help"), -1),
		"bttcheck": long.FindAllString(run(t, bttcheck, "--help"), -1),
	}
	commands := regexp.MustCompile(`(?m)^  ([a-z]+)  +[A-Z]`).FindAllStringSubmatch(run(t, bttnbd, "--help"), -1)
	if len(commands) < 8 {
		t.Fatalf("only the commands %q", commands)
	}
	all["any"] = slices.Concat(all["bttnbd"], all["bttcheck"])
	for _, m := range commands {
		name := "bttnbd " + m[1]
		all[name] = long.FindAllString(run(t, bttnbd, m[1], "--help"), -1)
		all["any"] = append(all["any"], all[name]...)
	}
	return all
}
