package cli

import (
	"encoding/json"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"github.com/bttnbd/bttnbd/internal/draw"
)

// schema is the number in every JSON object. Fields are only ever added; a
// change of any other kind would be another number.
const schema = 1

// writeJSON prints v as one object, indented, and a line feed.
func writeJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false)
	return e.Encode(v)
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
