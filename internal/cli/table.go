package cli

import (
	"fmt"
	"strings"
	"text/tabwriter"
)

// table is text for people: named lines, then tables with a head each, columns
// aligned within.
type table struct {
	b strings.Builder
	t *tabwriter.Writer
}

func newTable() *table {
	t := new(table)
	t.t = tabwriter.NewWriter(&t.b, 0, 8, 2, ' ', 0)
	return t
}

// line is a name and what there is to say.
func (t *table) line(name, format string, args ...any) {
	fmt.Fprintf(t.t, "%s\t%s\n", name, fmt.Sprintf(format, args...))
}

// head begins a table; names are separated by tabs.
func (t *table) head(names string) {
	t.gap()
	fmt.Fprintf(t.t, "\n%s\n", names)
}

// row is a line of it.
func (t *table) row(columns ...any) {
	for i, c := range columns {
		if i > 0 {
			fmt.Fprint(t.t, "\t")
		}
		fmt.Fprint(t.t, c)
	}
	fmt.Fprintln(t.t)
}

// gap ends what is aligned with each other.
func (t *table) gap() { t.t.Flush() }

// text is not aligned with anything.
func (t *table) text(format string, args ...any) {
	t.gap()
	fmt.Fprintf(&t.b, format, args...)
}
