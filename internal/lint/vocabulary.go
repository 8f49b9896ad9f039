package lint

import (
	"bytes"
	"go/ast"
	"regexp"
	"slices"
	"strconv"
)

// The log has one vocabulary: the table under logHeading in docs/operations.md. Who
// searches a log must not have to guess whether it is "path", "file" or "image".
const (
	logDocument = "docs/operations.md"
	logHeading  = "### The log\n"
)

// logging are the packages that log.
var logging = []string{"nbd", "internal/attach", "internal/cli", "internal/monitor"}

// fieldMethods put a field on a line of the log (zerolog.Event).
var fieldMethods = []string{"Str", "Strs", "Stringer", "Int", "Int64", "Uint32", "Uint64", "Float64", "Bool", "Dur", "Time", "Any", "AnErr"}

// wrongFields finds fields of the log that the table does not have.
func wrongFields(tree []source) (found []finding) {
	words := logWords(tree)
	for _, s := range tree {
		if !s.isGo() || s.isTest() || !slices.Contains(logging, s.dir()) {
			continue
		}
		ast.Inspect(s.syntax, func(n ast.Node) bool {
			if name, ok := logField(n); ok && !slices.Contains(words, name) {
				found = append(found, s.at(n.(*ast.CallExpr).Args[0].Pos(), "the log's field %q is not in the table of %s", name, logDocument))
			}
			return true
		})
	}
	return found
}

// logWords are the first columns of the table.
func logWords(tree []source) (words []string) {
	for _, s := range tree {
		_, section, ok := bytes.Cut(s.text, []byte(logHeading))
		if s.path != logDocument || !ok {
			continue
		}
		section, _, _ = bytes.Cut(section, []byte("\n#"))
		for _, row := range regexp.MustCompile("(?m)^\\| (`[a-z_`, ]+`) \\|").FindAllSubmatch(section, -1) {
			for _, word := range regexp.MustCompile("[a-z_]+").FindAll(row[1], -1) {
				words = append(words, string(word))
			}
		}
	}
	return words
}

// logField is the name of the field that the call n gives a line of the log.
func logField(n ast.Node) (name string, ok bool) {
	call, ok := n.(*ast.CallExpr)
	if !ok || len(call.Args) != 2 {
		return "", false
	}
	method, ok := call.Fun.(*ast.SelectorExpr)
	if !ok || !slices.Contains(fieldMethods, method.Sel.Name) {
		return "", false
	}
	lit, ok := call.Args[0].(*ast.BasicLit)
	if !ok {
		return "", false
	}
	name, err := strconv.Unquote(lit.Value)
	return name, err == nil
}
