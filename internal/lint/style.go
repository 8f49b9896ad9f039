package lint

import (
	"bytes"
	"fmt"
	"go/ast"
	"slices"
)

const (
	maxFunctionLines = 70
	maxFileLines     = 600
)

// tooLong finds functions and files too long to read in one go. Tests may be: a
// table is not harder to read for being long.
func tooLong(tree []source) (found []finding) {
	for _, s := range tree {
		if !s.isGo() || s.isTest() {
			continue
		}
		if n := bytes.Count(s.text, []byte("\n")); n > maxFileLines {
			found = append(found, finding{s.path, 0, fmt.Sprintf("%d lines, at most %d", n, maxFileLines)})
		}
		for _, d := range s.syntax.Decls {
			f, ok := d.(*ast.FuncDecl)
			if !ok {
				continue
			}
			if n := s.line(f.End()) - s.line(f.Pos()) + 1; n > maxFunctionLines {
				found = append(found, s.at(f.Pos(), "%s has %d lines, at most %d", f.Name.Name, n, maxFunctionLines))
			}
		}
	}
	return found
}

// documented are the packages whose exported names are an interface to somebody.
var documented = []string{"layout", "pmem", "btt", "nbd", "check"}

// selfExplaining are methods of well-known interfaces: their name says it all.
var selfExplaining = []string{"Error", "Unwrap", "String"}

// undocumented finds exported names without a doc comment. A comment on a group
// of constants or variables, or at the end of its line, is one.
func undocumented(tree []source) (found []finding) {
	for _, s := range tree {
		if !s.isGo() || s.isTest() || !slices.Contains(documented, s.dir()) {
			continue
		}
		for _, d := range s.syntax.Decls {
			for _, name := range undocumentedNames(d) {
				found = append(found, s.at(name.Pos(), "exported %s has no doc comment", name.Name))
			}
		}
	}
	return found
}

func undocumentedNames(d ast.Decl) (names []*ast.Ident) {
	switch d := d.(type) {
	case *ast.FuncDecl:
		obvious := d.Recv != nil && slices.Contains(selfExplaining, d.Name.Name)
		if d.Doc == nil && d.Name.IsExported() && exportedReceiver(d) && !obvious {
			names = append(names, d.Name)
		}
	case *ast.GenDecl:
		for _, spec := range d.Specs {
			switch spec := spec.(type) {
			case *ast.TypeSpec:
				if d.Doc == nil && spec.Doc == nil && spec.Comment == nil && spec.Name.IsExported() {
					names = append(names, spec.Name)
				}
			case *ast.ValueSpec:
				if d.Doc == nil && spec.Doc == nil && spec.Comment == nil {
					names = append(names, exported(spec.Names)...)
				}
			}
		}
	}
	return names
}

func exported(names []*ast.Ident) []*ast.Ident {
	return slices.DeleteFunc(slices.Clone(names), func(n *ast.Ident) bool { return !n.IsExported() })
}

// exportedReceiver reports whether f can be reached from outside: it is no method,
// or one of an exported type.
func exportedReceiver(f *ast.FuncDecl) bool {
	if f.Recv == nil || len(f.Recv.List) == 0 {
		return true
	}
	t := f.Recv.List[0].Type
	for {
		switch u := t.(type) {
		case *ast.StarExpr:
			t = u.X
		case *ast.IndexExpr:
			t = u.X
		case *ast.Ident:
			return u.IsExported()
		default:
			return true
		}
	}
}

// mayKeepTime names the test files that may sleep, each with its reason.
var mayKeepTime = map[string]string{}

// sleepingTests finds tests that wait for a while where they could wait for
// something. In a synctest bubble no time passes, so sleeping there is no waiting.
func sleepingTests(tree []source) (found []finding) {
	for _, s := range tree {
		if !s.isGo() || !s.isTest() || mayKeepTime[s.path] != "" {
			continue
		}
		ast.Inspect(s.syntax, func(n ast.Node) bool {
			if isCall(n, "time", "Sleep") {
				found = append(found, s.at(n.Pos(), "time.Sleep in a test: wait for the event, not for a while"))
			}
			return !isCall(n, "synctest", "Test")
		})
	}
	return found
}

// isCall reports whether n is a call of the package's function.
func isCall(n ast.Node, pkg, function string) bool {
	call, ok := n.(*ast.CallExpr)
	if !ok {
		return false
	}
	sel, ok := call.Fun.(*ast.SelectorExpr)
	if !ok || sel.Sel.Name != function {
		return false
	}
	x, ok := sel.X.(*ast.Ident)
	return ok && x.Name == pkg
}
