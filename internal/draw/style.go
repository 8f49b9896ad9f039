// Package draw draws on a terminal, or as plain text where there is none.
package draw

import "strings"

// Style is what the one who looks can see. The zero value is plain ASCII without
// colour, right for a pipe and a file.
type Style struct {
	Colour  bool
	Unicode bool
	Width   int // columns; 0: 80
}

// StyleOf is the style of a terminal that is width columns wide, or of a pipe, in an
// environment: no colour with NO_COLOR (https://no-color.org) or on a dumb terminal;
// no Unicode unless the locale is of UTF-8, by the first of LC_ALL, LC_CTYPE and LANG
// that is set (POSIX).
func StyleOf(terminal bool, width int, getenv func(string) string) Style {
	s := Style{Width: width}
	if !terminal {
		return s
	}
	s.Colour = getenv("NO_COLOR") == "" && getenv("TERM") != "dumb" && getenv("TERM") != ""
	for _, name := range []string{"LC_ALL", "LC_CTYPE", "LANG"} {
		if locale := strings.ToLower(getenv(name)); locale != "" {
			s.Unicode = strings.Contains(locale, "utf-8") || strings.Contains(locale, "utf8")
			break
		}
	}
	return s
}

// colour is a foreground colour of a terminal, as the number in its escape sequence
// (ECMA-48 SGR).
type colour string

const (
	plain  colour = ""
	red    colour = "31"
	yellow colour = "33"
	blue   colour = "34"
	green  colour = "32"
	grey   colour = "90"
)

// paint is text in a colour.
func (s Style) paint(c colour, text string) string {
	if !s.Colour || c == plain {
		return text
	}
	return "\x1b[" + string(c) + "m" + text + "\x1b[0m"
}

// Bad is text that says that something is wrong.
func (s Style) Bad(text string) string { return s.paint(red, text) }

// Doubtful is text that warns.
func (s Style) Doubtful(text string) string { return s.paint(yellow, text) }

// Good is text that says that all is well.
func (s Style) Good(text string) string { return s.paint(green, text) }

func (s Style) width() int {
	if s.Width <= 0 {
		return 80
	}
	return s.Width
}
