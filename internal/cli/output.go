package cli

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"github.com/bttnbd/bttnbd/internal/draw"
)

// schema is the number in every JSON object. Fields are only ever added; a
// change of any other kind would be another number.
const schema = 1

// writeJSON prints v as one object, indented, and a line feed.
func writeJSON(w io.Writer, v any) error {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return err
	}
	_, err := w.Write(visibleJSON(b.Bytes()))
	return err
}

// visible is text, a path above all, that a terminal shows and does not obey: what
// cannot be printed is written as in Go, \x1b or \u009b. Line feeds are among that.
func visible(text string) string {
	if !utf8.ValidString(text) || strings.ContainsFunc(text, unprintable) {
		var b strings.Builder
		for i, r := range text {
			switch _, size := utf8.DecodeRuneInString(text[i:]); {
			case r == utf8.RuneError && size == 1:
				fmt.Fprintf(&b, `\x%02x`, text[i])
			case unprintable(r):
				b.WriteString(strings.Trim(strconv.QuoteRune(r), "'"))
			default:
				b.WriteRune(r)
			}
		}
		return b.String()
	}
	return text
}

func unprintable(r rune) bool { return !unicode.IsPrint(r) }

// visibleJSON is the same JSON without anything that a terminal would obey: such
// characters become \uXXXX, which they may be wherever JSON allows them but for the
// space between its words.
func visibleJSON(text []byte) []byte {
	keep := func(r rune) bool { return r == '\n' || r != utf8.RuneError && unicode.IsPrint(r) }
	if bytes.IndexFunc(text, func(r rune) bool { return !keep(r) }) < 0 {
		return text
	}
	var b bytes.Buffer
	for _, r := range string(text) {
		switch {
		case keep(r):
			b.WriteRune(r)
		case r == '\r' || r == '\t':
			b.WriteByte(' ')
		case r > 0xffff:
			high, low := utf16.EncodeRune(r)
			fmt.Fprintf(&b, `\u%04x\u%04x`, high, low)
		default:
			fmt.Fprintf(&b, `\u%04x`, r)
		}
	}
	return b.Bytes()
}

// isTerminal reports whether somebody may be looking at w.
func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

// styleOf is how to write to w: in colour and beyond ASCII only to a terminal.
func styleOf(w io.Writer) draw.Style {
	if !isTerminal(w) {
		return draw.Style{}
	}
	width := 0
	if size, err := unix.IoctlGetWinsize(int(w.(*os.File).Fd()), unix.TIOCGWINSZ); err == nil {
		width = int(size.Col)
	}
	return draw.StyleOf(true, width, os.Getenv)
}
