package fuzz

import (
	"context"
	"fmt"

	"github.com/bttnbd/bttnbd/check"
	"github.com/bttnbd/bttnbd/layout"
	"github.com/bttnbd/bttnbd/pmem"
	"github.com/bttnbd/bttnbd/pmem/pmemtest"
)

// sound looks at an image with two readers that have nothing in common, the one in
// this package and the one that ships as bttcheck: after recovery every internal
// block is owned once (I1), and no write is under way. What nobody has read yet is
// taken for lost, which is one of the fates that it may still have.
func sound(m *pmemtest.Machine, f layout.Flavour) error {
	mine := bijective(m.Region(), f)
	rep, theirs := checked(m)
	switch {
	case mine != nil && theirs == nil && rep.Arenas[0].InFlight == 0:
		return fmt.Errorf("%w; and bttcheck does not see it", mine)
	case mine != nil:
		return mine
	case theirs != nil:
		return theirs
	case rep.Arenas[0].InFlight > 0:
		return fmt.Errorf("bttcheck finds %d writes interrupted, after recovery", rep.Arenas[0].InFlight)
	}
	return nil
}

// checked is what bttcheck says of a machine's memory, before or after recovery.
// A crash may leave one of the info blocks torn, or the two different, and an
// arena's error flag is set on purpose here; nothing else may be wrong.
func checked(m *pmemtest.Machine) (*check.Report, error) {
	rep, err := check.Run(context.Background(), pmem.NewTraced(m.Glance(), nil), check.Options{MaxArena: arena})
	if err != nil {
		return nil, fmt.Errorf("bttcheck: %w", err)
	}
	for i := range rep.Findings {
		switch f := &rep.Findings[i]; f.Kind {
		case check.InfoChecksum, check.InfoCopies, check.ArenaError:
		default:
			if f.Severity > check.Info {
				return nil, fmt.Errorf("bttcheck finds: %s", f.Message)
			}
		}
	}
	return rep, nil
}
