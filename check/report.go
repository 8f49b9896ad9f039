package check

import "fmt"

// Schema is the version of the JSON form of [Report]. Fields are only ever added.
const Schema = 1

// WholeImage is the Arena of a finding that is not about one arena.
const WholeImage = -1

// maxFindings is how many findings of one kind an arena lists; the rest is only
// counted, so that a report on an image full of noise stays small.
const maxFindings = 100

// Finding is one thing that a check found.
type Finding struct {
	Arena    int      `json:"arena"` // index, or [WholeImage]
	Kind     Kind     `json:"kind"`
	Severity Severity `json:"severity"`
	Offset   uint64   `json:"offset"`         // in the image, in bytes, of what the finding is about
	LBA      *uint64  `json:"lba"`            // external block of the whole device; nil: none in particular
	More     uint64   `json:"more,omitempty"` // stands for so many of its kind that are not listed
	Message  string   `json:"message"`        // one line: what, where, and what follows from it
	Repair   string   `json:"repair"`         // what a repair would do; empty: nothing
}

// ArenaReport is what a check counted in one arena.
type ArenaReport struct {
	Arena   int    `json:"arena"`
	Offset  uint64 `json:"offset"` // in the image, in bytes
	Size    uint64 `json:"size"`   // bytes, info blocks included
	Lanes   uint32 `json:"lanes"`
	Padding string `json:"padding"` // "{0,1}" or "{0,2}"
	// Checked is false if flog and map could not be examined; the counts are 0 then.
	Checked  bool   `json:"checked"`
	Initial  uint64 `json:"initial_entries"`
	Zero     uint64 `json:"zero_entries"`
	Error    uint64 `json:"error_entries"`
	Normal   uint64 `json:"normal_entries"`
	InFlight uint64 `json:"lanes_in_flight"`
}

// Report is the outcome of a check.
type Report struct {
	Schema     int           `json:"schema"`
	Path       string        `json:"path"`
	Size       uint64        `json:"size"`   // of the image, in bytes
	Format     string        `json:"format"` // the flavour: "kernel", "uefi" or "pmemblk"
	UUID       string        `json:"uuid"`
	SectorSize uint32        `json:"sector_size"` // external_lbasize in bytes
	Sectors    uint64        `json:"sectors"`     // external blocks of all arenas found
	Arenas     []ArenaReport `json:"arenas"`
	Findings   []Finding     `json:"findings"`
	// Of a repair: what it was to do, how many steps it has done, and the check
	// afterwards; nil if there was nothing to do.
	Plan     *Plan   `json:"plan,omitempty"`
	Repaired int     `json:"repaired_steps,omitempty"`
	After    *Report `json:"after,omitempty"`
}

// Clean reports whether there is neither an error nor a warning.
func (r *Report) Clean() bool { return worst(r.Findings) == Info }

// Damaged reports whether there is an error.
func (r *Report) Damaged() bool { return worst(r.Findings) == Error }

func worst(fs []Finding) (s Severity) {
	for i := range fs {
		s = max(s, fs[i].Severity)
	}
	return s
}

// collector gathers the findings of one arena after another.
type collector struct {
	arena  int
	offset uint64 // of the arena
	list   []Finding
	count  [numKinds]uint64 // in this arena
	worst  [numKinds]Severity
}

// begin ends the arena before and starts the next one.
func (c *collector) begin(arena int, offset uint64) {
	c.end()
	c.arena, c.offset = arena, offset
}

// end adds, for each kind of which not all were listed, how many more there are.
func (c *collector) end() {
	for k, n := range c.count {
		if n > maxFindings {
			c.list = append(c.list, Finding{
				Arena: c.arena, Kind: Kind(k), Severity: c.worst[k], Offset: c.offset, More: n - maxFindings,
				Message: fmt.Sprintf("%d more findings of the kind %v in this arena", n-maxFindings, Kind(k)),
			})
		}
	}
	c.count, c.worst = [numKinds]uint64{}, [numKinds]Severity{}
}

// room counts a finding and reports whether it is still to be listed. Loops over
// the map ask it before they spend time on a message.
func (c *collector) room(k Kind, s Severity) bool {
	c.count[k]++
	c.worst[k] = max(c.worst[k], s)
	return c.count[k] <= maxFindings
}

// list one for which room has said yes.
func (c *collector) put(f Finding) {
	f.Arena = c.arena
	c.list = append(c.list, f)
}

func (c *collector) add(f Finding) {
	if c.room(f.Kind, f.Severity) {
		c.put(f)
	}
}

// omit counts n findings that nobody will list.
func (c *collector) omit(k Kind, s Severity, n uint64) {
	if n > 0 {
		c.count[k] = max(c.count[k], maxFindings) + n
		c.worst[k] = max(c.worst[k], s)
	}
}
