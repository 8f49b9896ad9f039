package lint

import (
	"bytes"
	"fmt"
	"go/ast"
	"regexp"
	"slices"
	"strings"
)

// machinePath is an absolute path that exists on somebody's machine only.
var machinePath = regexp.MustCompile(`(?:^|[^A-Za-z0-9_.\-/])/(work|root|home)/[A-Za-z0-9_.]`)

// machinePaths finds paths of the machine that somebody happened to work on.
func machinePaths(tree []source) (found []finding) {
	for _, s := range tree {
		for i, line := range bytes.Split(s.text, []byte("\n")) {
			if m := machinePath.Find(line); m != nil {
				found = append(found, finding{s.path, i + 1, fmt.Sprintf("names a path of one machine: %q…", m)})
			}
		}
	}
	return found
}

// lostFuzzTargets finds fuzz targets that are not among listed, the lines
// "package Target" of scripts/fuzz --list. A build constraint can hide one.
func lostFuzzTargets(tree []source, listed []string) (found []finding) {
	for _, s := range tree {
		if !s.isGo() || !s.isTest() {
			continue
		}
		for _, d := range s.syntax.Decls {
			f, ok := d.(*ast.FuncDecl)
			if !ok || f.Recv != nil || !strings.HasPrefix(f.Name.Name, "Fuzz") {
				continue
			}
			target := module + "/" + s.dir() + " " + f.Name.Name
			if !slices.Contains(listed, target) {
				found = append(found, s.at(f.Pos(), "scripts/fuzz --list does not have %s", f.Name.Name))
			}
		}
	}
	return found
}
