package report

import (
	"cmp"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/bttnbd/bttnbd/check"
	"github.com/bttnbd/bttnbd/internal/units"
	"github.com/bttnbd/bttnbd/layout"
)

// verdict is what the reader must know first.
type verdict struct {
	Class  string // good, warn or bad
	Text   string
	Detail string // what follows from it
	Next   string // command to run; "": none
}

func (p *Page) verdict() verdict {
	r, last := p.Report, final(p.Report)
	errors, warnings := tally(last.Findings)
	number := fmt.Sprintf("%s, %s", units.Plural(errors, "error"), units.Plural(warnings, "warning"))
	quoted := p.Word
	if clean(quoted) != quoted {
		quoted = "PATH" // what does not show as it is must not be copied
	}
	changes := units.Plural(uint64(r.Repaired), "change")
	switch {
	case r.Repaired > 0 && last.Damaged():
		return verdict{"bad", "Repaired in part: " + number + " left", changes + " made. What is left, and why, stands below.", ""}
	case r.Repaired > 0:
		return verdict{"good", "Repaired", changes + " made, and a check afterwards found no error. Reads of the LBAs below fail until they are written.", ""}
	case r.Damaged() && r.Plan != nil && len(r.Plan.Steps) > 0:
		return verdict{"bad", "Damaged: " + number,
			fmt.Sprintf("A repair would make %s; %s.", units.Plural(uint64(len(r.Plan.Steps)), "change"), lossOf(r.Plan)), p.Command + " --repair --backup undo " + quoted}
	case r.Damaged():
		return verdict{"bad", "Damaged: " + number, "There is nothing that a repair would do without guessing.", ""}
	case warnings > 0:
		return verdict{"warn", "No damage, " + units.Plural(warnings, "warning"), "The image works, but not all of it is as it should be.", ""}
	}
	return verdict{"good", "Clean", "Each block has one owner, each entry and record a meaning. Whether data is what was written, no check of the structure can tell.", ""}
}

func lossOf(p *check.Plan) string {
	if n := len(p.Lost()); n > 0 {
		return fmt.Sprintf("reads of %s would fail until written", units.Plural(uint64(n), "LBA"))
	}
	return "no LBA would be lost"
}

func tally(list []check.Finding) (errors, warnings uint64) {
	for i := range list {
		switch n := max(1, list[i].More); list[i].Severity {
		case check.Error:
			errors += n
		case check.Warning:
			warnings += n
		}
	}
	return errors, warnings
}

// totals are findings by kind, the worst and the most first.
func totals(list []check.Finding) (all []total) {
	type kind struct {
		severity check.Severity
		kind     check.Kind
	}
	count := map[kind]uint64{}
	for i := range list {
		count[kind{list[i].Severity, list[i].Kind}] += uint64(max(1, list[i].More))
	}
	kinds := slices.SortedFunc(maps.Keys(count), func(a, b kind) int {
		return cmp.Or(cmp.Compare(b.severity, a.severity), cmp.Compare(count[b], count[a]), cmp.Compare(a.kind, b.kind))
	})
	for _, k := range kinds {
		all = append(all, total{k.severity.String(), k.kind.String(), count[k]})
	}
	return all
}

// whyNothing are the reasons for which a plan is empty, each once, the first few.
func whyNothing(plan *check.Plan) (all []string) {
	if len(plan.Steps) > 0 {
		return nil
	}
	for _, f := range plan.Refused {
		if why := clean(f.Why); len(all) < maxWhy && !slices.Contains(all, why) {
			all = append(all, why)
		}
	}
	return all
}

// row is a finding, or what a repair leaves alone.
type row struct {
	spot
	Class                                   string // error, warning, info
	Severity, Code, LBA, Text, Repair, Lost string
}

// rows are findings as lines of a table, the worst first; and how many do not fit.
func (p *Page) rows(list []check.Finding, plan *check.Plan) (all []row, more int) {
	losses := p.losses(plan)
	for s := check.Error + 1; s > 0; s-- {
		for i := range list {
			f := &list[i]
			if f.Severity != s-1 {
				continue
			}
			if len(all) == maxRows {
				more++
				continue
			}
			r := row{
				Class: f.Severity.String(), Severity: f.Severity.String(), Code: f.Kind.String(),
				spot: where(f.Arena, f.Offset), Text: clean(f.Message), Repair: clean(f.Repair), Lost: losses.of(f),
			}
			if f.LBA != nil {
				r.LBA = fmt.Sprint(*f.LBA)
			}
			all = append(all, r)
		}
	}
	return all, more
}

// spot is where something is.
type spot struct{ Where, At, Hex string }

func where(arena int, offset uint64) spot {
	s := spot{"image", fmt.Sprintf("offset %d", offset), fmt.Sprintf("%#x", offset)}
	if arena != check.WholeImage {
		s.Where = fmt.Sprintf("arena %d", arena)
	}
	return s
}

// losses are the LBAs that a plan gives up, by what it mends.
type losses struct {
	step map[place][]uint64
	lba  map[uint64]bool
}

type place struct {
	kind   check.Kind
	offset uint64
}

func (p *Page) losses(plan *check.Plan) losses {
	l := losses{map[place][]uint64{}, map[uint64]bool{}}
	if plan == nil {
		return l
	}
	for i := range plan.Steps {
		s := &plan.Steps[i]
		offsets := []uint64{s.Offset}
		if block, ok := p.blockOf(s); ok {
			offsets = append(offsets, block) // of which a finding about a block speaks
		}
		for _, off := range offsets {
			at := place{s.Kind, off}
			l.step[at] = append(l.step[at], s.Lost...)
		}
		for _, lba := range s.Lost {
			l.lba[lba] = true
		}
	}
	return l
}

// blockOf is the offset of the block that a map entry names which a step changes.
func (p *Page) blockOf(s *check.Step) (off uint64, ok bool) {
	const entrySize = 4
	if len(s.Before) != entrySize || s.Arena < 0 || s.Arena >= len(p.Image.Arenas) {
		return 0, false
	}
	a := &p.Image.Arenas[s.Arena]
	mapOff := a.Offset + a.Info.MapOff
	if s.Offset < mapOff || s.Offset >= mapOff+entrySize*uint64(a.Info.ExternalNLBA) {
		return 0, false
	}
	entry := layout.MapEntry(binary.LittleEndian.Uint32(s.Before))
	block := entry.Owned(layout.PremapLBA((s.Offset - mapOff) / entrySize))
	return a.Offset + a.Info.DataOff + uint64(block)*uint64(a.Info.InternalLBASize), true
}

// of is what mending a finding loses, as text.
func (l losses) of(f *check.Finding) string {
	if lost := l.step[place{f.Kind, f.Offset}]; len(lost) > 0 {
		return ranges(lost)
	}
	if f.LBA != nil && l.lba[*f.LBA] {
		return fmt.Sprint(*f.LBA)
	}
	return ""
}

// step is a change of the plan.
type step struct {
	spot
	Stage, Code, Before, After, Why, Lost string
}

// plan puts the plan on the page: what was or would be done, and what is left.
func (p *Page) plan(v *view) {
	plan := p.Report.Plan
	for i := range plan.Steps {
		if i == maxSteps {
			v.MoreS = len(plan.Steps) - i
			break
		}
		s := &plan.Steps[i]
		v.Steps = append(v.Steps, step{
			Stage: s.Stage.String(), Code: s.Kind.String(), spot: where(s.Arena, s.Offset),
			Before: bytesText(s.Before), After: bytesText(s.After), Why: clean(s.Why), Lost: ranges(s.Lost),
		})
	}
	for i := range v.Steps {
		v.AnyBytes = v.AnyBytes || v.Steps[i].Before != ""
	}
	v.Why = whyNothing(plan)
	v.Planned = "What a repair would do"
	if p.Report.Repaired > 0 {
		v.Planned = "What the repair has done"
	}
	for _, f := range plan.Refused {
		v.Left = append(v.Left, row{Class: "warning", Code: f.Kind.String(), spot: where(f.Arena, f.Offset), Text: clean(f.Why)})
	}
	lost := plan.Lost()
	v.Lost, v.LostN = ranges(lost), len(lost)
}

// bytesText shows a map entry or a flog group as it stands on media. A block is too
// long, and its length says nothing: "".
func bytesText(b check.Hex) string {
	const most = 64
	if len(b) > most {
		return ""
	}
	var words []string
	for i := 0; i < len(b); i += 4 {
		words = append(words, hex.EncodeToString(b[i:min(i+4, len(b))]))
	}
	return strings.Join(words, " ")
}

// ranges are LBAs as text, the first of them if there are many.
func ranges(lbas []uint64) string { return units.Ranges(lbas, 60) }
