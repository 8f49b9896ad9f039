package cli

import (
	"encoding/json"
	"io"
	"os"

	"golang.org/x/sys/unix"
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
