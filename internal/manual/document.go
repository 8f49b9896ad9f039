package main

import (
	"bytes"
	"fmt"
	"regexp"
	"strings"
)

var (
	firstHeading = regexp.MustCompile(`\A# .*\n`)
	heading      = regexp.MustCompile(`(?m)^#(#+ )`)
	picture      = regexp.MustCompile(`(?m)^!\[[^\]]*\]\([^)]*\)\n+`)
	aside        = regexp.MustCompile(`(?m)^<!-- not in the manual -->\n(.+\n)+\n*`)
	link         = regexp.MustCompile(`\[([^\]]+)\]\([^)]*\)`)
	table        = regexp.MustCompile(`(?m)(^\|.*\n)+`)
)

// demote makes a document the rest of a page: its title and its pictures go, its sections
// become those of the page, its links their text, and its tables lists. What is for
// those who have the source at hand goes: a paragraph below the comment that says so,
// and the last column of a table if it has the names of test cases.
func demote(text []byte) []byte {
	text = firstHeading.ReplaceAll(text, []byte("# DESCRIPTION\n"))
	text = heading.ReplaceAll(text, []byte("$1"))
	text = picture.ReplaceAll(text, nil)
	text = aside.ReplaceAll(text, nil)
	text = link.ReplaceAll(text, []byte("$1"))
	return table.ReplaceAllFunc(text, list)
}

// list turns a table, which would be wider than a terminal, into a list: its first
// column are the terms, and each other cell is a paragraph that begins with the
// head of its column.
func list(table []byte) []byte {
	var b bytes.Buffer
	rows := strings.Split(strings.TrimSpace(string(table)), "\n")
	heads := cells(rows[0])
	if last := len(heads) - 1; heads[last] == "cases" {
		heads = heads[:last]
	}
	for _, row := range rows[2:] { // the second is the line below the head
		c := cells(row)[:len(heads)]
		fmt.Fprintf(&b, "%s\n", c[0])
		for i, cell := range c[1:] {
			if head := heads[i+1]; len(c) > 2 && head != "" && cell != "" {
				cell = head + ": " + cell
			}
			if cell != "" {
				fmt.Fprintf(&b, ": %s\n\n", cell)
			}
		}
	}
	return b.Bytes()
}

// cells are the cells of a row; a bar that belongs to the text is written \|.
func cells(row string) []string {
	const bar = "\x00"
	row = strings.TrimSpace(strings.ReplaceAll(row, `\|`, bar))
	all := strings.Split(strings.TrimSuffix(strings.TrimPrefix(row, "|"), "|"), "|")
	for i := range all {
		all[i] = strings.TrimSpace(strings.ReplaceAll(all[i], bar, "|"))
	}
	return all
}
