package fuzz

import (
	"context"
	"fmt"
	"hash/maphash"
	"sync"

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
	inFlight, theirs := checked(m)
	switch {
	case mine != nil && theirs == nil && inFlight == 0:
		return fmt.Errorf("%w; and bttcheck does not see it", mine)
	case mine != nil:
		return mine
	case theirs != nil:
		return theirs
	case inFlight > 0:
		return fmt.Errorf("bttcheck finds %d writes interrupted, after recovery", inFlight)
	}
	return nil
}

// judged are the images that bttcheck has found whole, with the number of writes
// that it finds interrupted in each: most images come by several times, and what it
// says follows from their bytes alone. One that has damage is never in here.
var judged = struct {
	sync.Mutex
	seed   maphash.Seed
	images map[uint64]uint64
}{seed: maphash.MakeSeed(), images: map[uint64]uint64{}}

// checked is what bttcheck says of a machine's memory, before or after recovery: how
// many writes were interrupted in its first arena, and what is damaged.
func checked(m *pmemtest.Machine) (inFlight uint64, err error) {
	image := m.Glance()
	key := maphash.Bytes(judged.seed, image)
	judged.Lock()
	inFlight, known := judged.images[key]
	judged.Unlock()
	if known {
		return inFlight, nil
	}
	if inFlight, err = judge(image); err != nil {
		return 0, err
	}
	judged.Lock()
	judged.images[key] = inFlight
	judged.Unlock()
	return inFlight, nil
}

// judge runs bttcheck. A crash may leave one of the info blocks torn, or the two
// different, and an arena's error flag is set on purpose here; nothing else may be
// wrong.
func judge(image []byte) (inFlight uint64, err error) {
	rep, err := check.Run(context.Background(), pmem.NewTraced(image, nil), check.Options{MaxArena: arena})
	if err != nil {
		return 0, fmt.Errorf("bttcheck: %w", err)
	}
	for i := range rep.Findings {
		switch f := &rep.Findings[i]; f.Kind {
		case check.InfoChecksum, check.InfoCopies, check.ArenaError:
		default:
			if f.Severity > check.Info {
				return 0, fmt.Errorf("bttcheck finds: %s", f.Message)
			}
		}
	}
	return rep.Arenas[0].InFlight, nil
}
