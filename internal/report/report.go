// Package report draws what a check has found, for people who would rather look: one
// HTML page, or one SVG picture, complete in itself. Neither has a script, nor anything
// from elsewhere.
//
// Whatever comes out of an image is hostile: all text goes through html/template, and
// before that through clean, which leaves no character that could hide, reorder or
// break the rest.
package report

import (
	"embed"
	"fmt"
	"html/template"
	"io"
	"strings"
	"time"
	"unicode"

	"github.com/bttnbd/bttnbd/check"
	"github.com/bttnbd/bttnbd/internal/units"
)

// Page is what a report is made of.
type Page struct {
	Report  *check.Report      // of a check, perhaps with the plan of a repair, and what came of it
	Image   *check.Image       // as it is now
	Charts  []check.ArenaChart // of the arenas of Image; nil: not drawn
	Command string             // "bttcheck", as the reader would call it
	Word    string             // the path as a word of a command line
	Made    time.Time
	Program string // name and version of what made it
}

// Cells is how many cells the strips of Charts should have: one for each 4 of the
// picture's units.
const Cells = picWidth / 4

//go:embed page.html picture.svg style.css
var files embed.FS

var templates = template.Must(template.New("").Funcs(template.FuncMap{
	"style": func() (template.CSS, error) {
		b, err := files.ReadFile("style.css") // our own, not of an image
		return template.CSS(b), err
	},
}).ParseFS(files, "page.html", "picture.svg"))

// HTML writes the page. Errors are those of w.
func (p *Page) HTML(w io.Writer) error { return templates.ExecuteTemplate(w, "page.html", p.view()) }

// SVG writes the picture alone, with the verdict above it. Errors are those of w.
func (p *Page) SVG(w io.Writer) error { return templates.ExecuteTemplate(w, "alone", p.view()) }

// view is the page in the words of the templates. Each string in it is clean.
type view struct {
	Path    string
	Verdict verdict
	Facts   []fact
	Picture picture
	Counts  []counts
	Totals  []total  // findings by kind, where there are many
	Why     []string // a repair would change nothing
	Found   []row
	More    int // findings that are not listed
	Lost    string
	LostN   int
	Steps   []step
	MoreS   int // steps that are not listed
	Planned string
	Left    []row
	Left2   []row // findings after a repair
	Made    string
	Program string

	AnyLBA, AnyLost, AnyBytes bool // whether a column has anything in it
}

// total is how often a kind of finding is there.
type total struct {
	Severity, Code string
	Count          uint64
}

type fact struct{ Name, Value string }

type counts struct {
	Arena, Offset, Size, Lanes, InFlight string
	Data, Zero, Error, Initial           string
}

const (
	maxRows  = 1000 // findings on the page
	maxSteps = 500  // of the plan
	fewRows  = 15   // findings that are not counted by kind first
	maxWhy   = 5    // reasons above them
)

func (p *Page) view() *view {
	r := p.Report
	v := &view{
		Path: clean(r.Path), Verdict: p.verdict(), Facts: p.facts(), Picture: p.picture(),
		Made: p.Made.UTC().Format("2006-01-02 15:04 UTC"), Program: clean(p.Program),
	}
	v.Found, v.More = p.rows(r.Findings, r.Plan)
	for i := range v.Found {
		v.AnyLBA = v.AnyLBA || v.Found[i].LBA != ""
		v.AnyLost = v.AnyLost || v.Found[i].Lost != ""
	}
	if len(r.Findings) > fewRows {
		v.Totals = totals(r.Findings)
	}
	if r.After != nil {
		v.Left2, _ = p.rows(r.After.Findings, nil)
	}
	last := final(r)
	for i := range last.Arenas {
		v.Counts = append(v.Counts, countsOf(&last.Arenas[i]))
	}
	if r.Plan != nil {
		p.plan(v)
	}
	return v
}

func final(r *check.Report) *check.Report {
	if r.After != nil {
		return r.After
	}
	return r
}

func (p *Page) facts() []fact {
	r := p.Report
	if len(p.Image.Arenas) == 0 {
		return []fact{{"size", units.Human(r.Size)}, {"format", clean(r.Format) + ", if any"}, {"arenas", "none that can be believed"}}
	}
	in := &p.Image.Arenas[0].Info
	return []fact{
		{"size", units.Human(r.Size)},
		{"format", fmt.Sprintf("%s, version %d.%d", clean(r.Format), in.Major, in.Minor)},
		{"uuid", clean(in.UUID.String())},
		{"parent uuid", clean(in.ParentUUID.String())},
		{"arenas", fmt.Sprint(len(p.Image.Arenas))},
		{"sectors", fmt.Sprintf("%d of %s", r.Sectors, units.Bytes(uint64(r.SectorSize)))},
	}
}

func countsOf(a *check.ArenaReport) counts {
	n := func(v uint64) string {
		if !a.Checked {
			return "?"
		}
		return fmt.Sprint(v)
	}
	return counts{
		Arena: fmt.Sprint(a.Arena), Offset: fmt.Sprint(a.Offset), Size: units.Short(a.Size), Lanes: fmt.Sprint(a.Lanes),
		InFlight: n(a.InFlight), Data: n(a.Normal), Zero: n(a.Zero), Error: n(a.Error), Initial: n(a.Initial),
	}
}

// clean is text without what could deceive or break what stands around it: control
// characters, marks that change the direction of writing, bytes that are no UTF-8.
func clean(s string) string {
	return strings.Map(func(r rune) rune {
		if r == ' ' || unicode.IsGraphic(r) && !unicode.Is(unicode.Cf, r) && r != '\u2028' && r != '\u2029' {
			return r
		}
		return unicode.ReplacementChar
	}, strings.ToValidUTF8(s, string(unicode.ReplacementChar)))
}
