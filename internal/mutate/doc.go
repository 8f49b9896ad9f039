package main

import (
	"regexp"
	"strings"
	"unicode"
)

const intro = `Each mutant is the code that ships with one thing broken: a patch in ` + "`fuzz/mutants`" + `, applied with ` + "`go test -overlay`" + ` to the real packages. ` +
	"`make mutants`" + ` runs each against the tests that are there to notice it. A patch that no longer fits the code, a mutant that survives without a reason, and one that dies only of the test's timeout fail the run. ` +
	`M1 to M86 are bugs that BTT implementations have had or could have; N are our own.

This file is written by ` + "`make mutants-doc`" + `.`

const modelsIntro = `Mutants that die in the simulator: the test that kills each, with its idea of a crash weakened. This is why there is a simulator: killing the server cannot lose a store, and a medium that loses all or nothing cannot lose them in the wrong order.`

// sourceLine is where a test says that it failed; it moves with every edit.
var sourceLine = regexp.MustCompile(`\b\w+_test\.go:\d+: `)

// cell makes s fit a table cell.
func cell(s string) string {
	s = strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '.'
		}
		return r
	}, s)
	return strings.NewReplacer("|", `\|`, "<", "&lt;").Replace(s)
}
