package main

import (
	"fmt"
	"strings"
)

// hunk replaces whole lines.
type hunk struct{ old, new []string }

// line takes in one line of a patch, with its mark.
func (h *hunk) line(line string) {
	mark, text := line[0], line[1:]
	if mark != '+' {
		h.old = append(h.old, text)
	}
	if mark != '-' {
		h.new = append(h.new, text)
	}
}

// apply returns the text with all hunks of m in place. Each must match once, in
// the text as the ones before have left it: a patch that fits nowhere, or
// anywhere, proves nothing.
func (m *mutant) apply(text string) (string, error) {
	text = "\n" + text
	for i, h := range m.hunks {
		old, replacement := joined(h.old), joined(h.new)
		switch n := occurrences(text, old); {
		case len(h.old) == 0:
			return "", fmt.Errorf("%s: %s: hunk %d takes nothing away and has no context", m.at, m.ID, i+1)
		case n != 1:
			return "", fmt.Errorf("%s: %s: hunk %d stands in %s %d times, want once: adapt the patch to the code\n%s",
				m.at, m.ID, i+1, m.File, n, strings.Trim(old, "\n"))
		}
		text = strings.Replace(text, old, replacement, 1)
	}
	return text[1:], nil
}

// occurrences counts them all; neighbours may share a line end.
func occurrences(text, part string) (n int) {
	for {
		i := strings.Index(text, part)
		if i < 0 {
			return n
		}
		n++
		text = text[i+1:]
	}
}

// joined are lines with a line end on both sides, so that no part of a line matches.
func joined(lines []string) string {
	return "\n" + strings.Join(append(lines[:len(lines):len(lines)], ""), "\n")
}
