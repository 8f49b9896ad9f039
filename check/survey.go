package check

import (
	"context"

	"github.com/bttnbd/bttnbd/layout"
	"github.com/bttnbd/bttnbd/pmem"
)

// FlogFlags says what the records of a flog hold besides block numbers, which is a
// matter of who wrote them. Readers mask it; ndctl does not.
type FlogFlags string

// The flags found in the flog of an arena.
const (
	FlagsNone  FlogFlags = "none"  // block numbers: Linux, UEFI
	FlagsError FlogFlags = "error" // the same, and in old that the block was bad: Linux
	FlagsFull  FlogFlags = "full"  // whole map entries: PMDK, Windows
	FlagsMixed FlogFlags = "mixed" // full in some records, and not in others
)

// ArenaSurvey is what the flog and the map of an arena hold.
type ArenaSurvey struct {
	FlogFlags FlogFlags // "": the arena is truncated
	InFlight  uint64    // lanes with an interrupted write: the flog is ahead of the map
	BadLanes  uint64    // lanes of which no record can be believed
	Counted   bool      // the map was gone through; otherwise the counts are 0
	Initial   uint64    // map entries, by what a read of them means
	Zero      uint64
	Error     uint64
	Normal    uint64
}

// Survey looks at the flogs, and if maps is set at the maps, of the arenas of an
// inspected image, and judges nothing: for that there is [Run]. A map is read whole,
// on all cores, and not kept in memory. It never writes. If the image is in use,
// the numbers are those of one moment or another. Errors are those of Run.
func Survey(ctx context.Context, r *pmem.Region, im *Image, maps bool, o Options) (list []ArenaSurvey, err error) {
	defer r.CatchFault(&err)
	defer pmem.ArmFaults()()
	x := newReader(r, o)
	x.flavour = im.Flavour
	p := newProgress(im, o)
	for i := range im.Arenas {
		a := &im.Arenas[i]
		var s ArenaSurvey
		if a.Missing == 0 {
			x.surveyFlog(a, &s)
			if maps {
				if err := x.surveyMap(ctx, a, &s, &p); err != nil {
					return nil, err
				}
			}
		}
		list = append(list, s)
	}
	return list, nil
}

func (x *reader) surveyFlog(a *Arena, s *ArenaSurvey) {
	var used, full, bad int
	lanes, _ := x.lanes(new(collector), a)
	for i := range lanes {
		l := &lanes[i]
		if l.inFlight {
			s.InFlight++
		}
		if l.current < 0 || l.doubtful {
			s.BadLanes++
		}
		for _, r := range []layout.FlogRecord{l.group[0], l.group[l.padding]} {
			if r.Seq == 0 {
				continue
			}
			used++
			switch {
			case r.New.State() != layout.Initial || r.Old.State() > layout.Error:
				full++
			case r.Old.State() == layout.Error:
				bad++
			}
		}
	}
	switch {
	case full > 0 && full == used:
		s.FlogFlags = FlagsFull
	case full > 0:
		s.FlogFlags = FlagsMixed
	case bad > 0:
		s.FlogFlags = FlagsError
	default:
		s.FlogFlags = FlagsNone
	}
}

func (x *reader) surveyMap(ctx context.Context, a *Arena, s *ArenaSurvey, p *progress) error {
	m := mapScan{reader: x, c: new(collector), a: a}
	if err := m.scan(ctx, p); err != nil {
		return err
	}
	s.Counted = true
	s.Initial, s.Zero = m.count[layout.Initial], m.count[layout.Zero]
	s.Error, s.Normal = m.count[layout.Error], m.count[layout.Normal]
	return nil
}
