package check

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"slices"

	"github.com/bttnbd/bttnbd/layout"
	"github.com/bttnbd/bttnbd/pmem"
)

// Plan is a repair as data: what is to be stored where, and what is left alone and
// why. Making one changes nothing.
type Plan struct {
	Steps   []Step    `json:"steps"`
	Refused []Refusal `json:"refused"`

	metadata []extent // all that the plan rests on: info blocks, maps and flogs
}

// Step is one change. After is stored over Before, at Offset.
type Step struct {
	Arena  int    `json:"arena"` // index, or [WholeImage]
	Kind   Kind   `json:"kind"`  // the finding that it mends
	Stage  Stage  `json:"stage"`
	Offset uint64 `json:"offset"` // in the image, in bytes
	Before Hex    `json:"before"`
	After  Hex    `json:"after"`
	Why    string `json:"why"`
	// Lost are the external blocks of which a user will miss something: reads of
	// them fail from now on, until they are written.
	Lost []uint64 `json:"lost_lbas,omitempty"`

	stores []wordStore // how to get from Before to After, in this order; nil: at once
}

// Refusal is damage that a repair leaves alone.
type Refusal struct {
	Arena  int    `json:"arena"`
	Kind   Kind   `json:"kind"`
	Offset uint64 `json:"offset"`
	Why    string `json:"why"`
}

// Lost are the LBAs of all steps, in order, each once.
func (p *Plan) Lost() (lbas []uint64) {
	for i := range p.Steps {
		lbas = append(lbas, p.Steps[i].Lost...)
	}
	slices.Sort(lbas)
	return slices.Compact(lbas)
}

// Stage is when a step is due. All of a stage is durable before the next begins.
type Stage uint8

// The stages, in their order. Those of flog and map come first, arena by arena,
// because a damaged info block keeps most systems off an image that is not mended
// yet. After [StageInfo] the image is checked; only if nothing but error flags is
// left are those cleared.
const (
	StageMark Stage = iota // interrupted writes are completed, entries marked as errors
	StageMove              // error entries get blocks that nobody owns
	StageLane              // lanes get fresh records
	StageInfo              // info blocks, one copy at a time
	StageFlag              // error flags
	numStages
)

var stageNames = [numStages]string{"mark", "move", "lane", "info", "flag"}

// String is the name of the stage.
func (s Stage) String() string {
	if s < numStages {
		return stageNames[s]
	}
	return fmt.Sprintf("stage(%d)", uint8(s))
}

// MarshalText is String, for JSON.
func (s Stage) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// Hex is bytes whose text form is hexadecimal.
type Hex []byte

// MarshalText is two digits a byte.
func (h Hex) MarshalText() ([]byte, error) { return hex.AppendEncode(nil, h), nil }

// wordStore is one store of 8 bytes at an offset in the image.
type wordStore struct{ off, v uint64 }

// extent is n bytes at off of the image.
type extent struct{ off, n uint64 }

// maxSteps is how many changes a repair makes at most. More damage than that is
// not damage but another image.
const maxSteps = 1 << 20

// planner makes a plan.
type planner struct {
	*reader
	plan Plan
	o    RepairOptions
	lost map[int]bool // arenas without a flog, to be left alone
}

// MakePlan examines the image, as [Run] does, and works out what [Repair] would do.
// It changes nothing. Errors are those of Run.
func MakePlan(ctx context.Context, r *pmem.Region, o RepairOptions) (plan *Plan, err error) {
	defer r.CatchFault(&err)
	defer pmem.ArmFaults()()
	p := &planner{reader: newReader(r, o.Options), o: o, lost: map[int]bool{}, plan: Plan{Steps: []Step{}, Refused: []Refusal{}}}
	c := &collector{arena: WholeImage}
	im, err := p.inspect(c)
	if err != nil {
		return nil, err
	}
	c.end()
	if i := slices.IndexFunc(c.list, func(f Finding) bool { return f.Kind == InfoSecond && f.Severity == Error }); i >= 0 {
		p.refuse(&c.list[i])
		return &p.plan, nil
	}
	im, left, err := p.planInfo(ctx, im, c.list)
	if err != nil {
		return nil, err
	}
	pr := progress{report: o.Progress}
	for i := range im.Arenas {
		a := &im.Arenas[i]
		pr.total += uint64(a.Info.ExternalNLBA)
		if a.Missing == 0 {
			p.plan.metadata = append(p.plan.metadata, extent{a.Offset, layout.InfoSize}, extent{a.Offset + a.Info.MapOff, a.Info.InfoOff + layout.InfoSize - a.Info.MapOff})
		}
	}
	for i := range im.Arenas {
		c.begin(i, im.Arenas[i].Offset)
		s, err := p.checkArena(ctx, c, &im.Arenas[i], new(ArenaReport), &pr)
		if err != nil {
			return nil, err
		}
		if s == nil || p.lost[i] {
			continue // refused
		}
		if err := p.planArena(ctx, s); err != nil {
			return nil, err
		}
	}
	p.planFlags(im)
	for i := range left {
		if left[i].Severity > Info && left[i].Kind != ArenaError {
			p.refuse(&left[i])
		}
	}
	slices.SortStableFunc(p.plan.Steps, func(a, b Step) int { return cmp.Compare(a.Stage.order(), b.Stage.order()) })
	return &p.plan, nil
}

// order: the stages of flog and map belong to one arena each, the others to all.
func (s Stage) order() Stage { return max(s, StageLane) }

func (p *planner) refuse(f *Finding) {
	why := leftBecause[f.Kind]
	switch {
	case p.lost[f.Arena], f.Kind == PoolHeader && p.lost[0]:
		why = "left, because the flog of the arena is lost"
	case why == "":
		why = "left, because nothing proves what it was"
	}
	p.plan.Refused = append(p.plan.Refused, Refusal{Arena: f.Arena, Kind: f.Kind, Offset: f.Offset, Why: f.Message + "; " + why})
}

// leftBecause is why findings of a kind are left, where that is not simply for want
// of proof.
var leftBecause = map[Kind]string{
	InfoSecond:     "left, because it may be the user's data",
	InfoFlags:      "left, because nobody knows what they are for",
	ArenaTruncated: "left, because what is missing cannot be made up",
	ArenaMismatch:  "left, because it may hold the data of another BTT: --adopt takes it for part of this one",
	ArenaChain:     "left, because an arena may be missing",
	ArenaGeometry:  "left, because another place for all data would be a guess",
}

// Preview adds to the report of a [Run] the plan of what [Repair] would do, and takes
// back what findings promise that the plan does not do. It changes nothing. Errors are
// those of Run.
func Preview(ctx context.Context, r *pmem.Region, rep *Report, o RepairOptions) (err error) {
	if rep.Plan, err = MakePlan(ctx, r, o); err != nil {
		return err
	}
	rep.Plan.settleReport(rep)
	return nil
}

// settleReport takes back what the findings promise where the plan does nothing.
func (p *Plan) settleReport(r *Report) {
	busy := map[int]bool{}
	for i := range p.Steps {
		busy[p.Steps[i].Arena] = true
	}
	for i := range r.Arenas {
		if !busy[i] {
			leave(r.Findings, i)
		}
	}
	stuck := map[int]bool{} // arenas whose flog and map are left
	for _, f := range p.Refused {
		stuck[f.Arena] = stuck[f.Arena] || f.Kind == MapRange || f.Kind == BlockOrphan
	}
	for i := range r.Findings {
		f := &r.Findings[i]
		pointsHere := f.Kind == ArenaLost
		if pointsHere || f.Severity > Info && f.Kind >= FlogPadding && stuck[f.Arena] {
			f.Repair = ""
		}
	}
}

func (p *planner) add(s Step) {
	if !bytes.Equal(s.Before, s.After) {
		p.plan.Steps = append(p.plan.Steps, s)
	}
}

// entryBytes is a map entry as it stands on media.
func entryBytes(e layout.MapEntry) Hex { return binary.LittleEndian.AppendUint32(nil, uint32(e)) }
