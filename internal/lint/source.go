package lint

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

// A source is one file of the repository.
type source struct {
	path   string // from the repository's root, with slashes
	text   []byte
	syntax *ast.File // nil unless a Go file
	fset   *token.FileSet
}

// A finding is one place that breaks a rule.
type finding struct {
	path string
	line int // 0: the file as a whole
	what string
}

func (f finding) String() string {
	if f.line == 0 {
		return fmt.Sprintf("%s: %s", f.path, f.what)
	}
	return fmt.Sprintf("%s:%d: %s", f.path, f.line, f.what)
}

func (s source) dir() string  { return path.Dir(s.path) }
func (s source) isGo() bool   { return s.syntax != nil }
func (s source) isTest() bool { return strings.HasSuffix(s.path, "_test.go") }

func (s source) line(at token.Pos) int { return s.fset.Position(at).Line }

func (s source) at(pos token.Pos, format string, args ...any) finding {
	return finding{s.path, s.line(pos), fmt.Sprintf(format, args...)}
}

// readTree reads the files under root that git tracks or would track. All Go files
// are parsed, whatever their build constraints, but those of nested modules.
func readTree(root string) ([]source, error) {
	git := exec.Command("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard")
	git.Dir = root
	out, err := git.Output()
	if err != nil {
		return nil, fmt.Errorf("git ls-files in %s: %w", root, err)
	}
	names := strings.Split(strings.TrimRight(string(out), "\x00"), "\x00")
	slices.Sort(names)
	var tree []source
	for _, name := range slices.Compact(names) {
		text, err := os.ReadFile(filepath.Join(root, name))
		if os.IsNotExist(err) {
			continue // tracked, and deleted in the work tree
		}
		if err != nil {
			return nil, err
		}
		s, err := parse(name, text)
		if err != nil {
			return nil, err
		}
		tree = append(tree, s)
	}
	return tree, nil
}

func parse(name string, text []byte) (source, error) {
	s := source{path: name, text: text, fset: token.NewFileSet()}
	if path.Ext(name) != ".go" || strings.Contains(name, "testdata/") {
		return s, nil
	}
	var err error
	s.syntax, err = parser.ParseFile(s.fset, name, text, parser.ParseComments|parser.SkipObjectResolution)
	return s, err
}
