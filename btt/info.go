package btt

import (
	"fmt"
	"sync"

	"github.com/bttnbd/bttnbd/layout"
	"github.com/bttnbd/bttnbd/pmem"
)

// infoState is the info block of an open arena, as it stands on media.
type infoState struct {
	mu         sync.Mutex
	raw        [layout.InfoSize]byte
	fromBackup bool // the primary copy is bad
}

// readInfo decodes the info block at off. The image has at least 4096 bytes there.
func readInfo(r *pmem.Region, off uint64, raw *[layout.InfoSize]byte) (layout.Info, error) {
	r.Read(raw[:], off)
	return layout.DecodeInfo(raw[:])
}

// holdsInfo reports whether an info block may begin at off: inside the image, in
// a place where one can be.
func holdsInfo(r *pmem.Region, off uint64) bool {
	return off%8 == 0 && r.Size() >= layout.InfoSize && off <= r.Size()-layout.InfoSize
}

// backupPlaces are where the backup info block of an arena at base can be when
// its primary does not say: where the backups of the arenas behind it lead, and where
// guessedPlaces says.
func backupPlaces(r *pmem.Region, base, maxArena uint64) []uint64 {
	var places []uint64
	if off, found := backupByChain(r, base); found {
		places = append(places, off)
	}
	return append(places, guessedPlaces(r, base, maxArena)...)
}

// guessedPlaces are the end of an arena of full size at base, and the end of the image.
// In an image that has grown, users' data can stand in the first: what is read there
// may be made up. So nothing is guessed where anything is known.
func guessedPlaces(r *pmem.Region, base, maxArena uint64) (places []uint64) {
	if base < r.Size() {
		for _, size := range []uint64{maxArena, (r.Size() - base) / 4096 * 4096} {
			if off := base + size - layout.InfoSize; size >= 2*layout.InfoSize && holdsInfo(r, off) {
				places = append(places, off)
			}
		}
	}
	return places
}

// backupByChain finds the backup of an arena of any size: the one at the end of the
// image says where its arena begins, and there the arena before ends. No user's data
// stands in any of these places.
func backupByChain(r *pmem.Region, base uint64) (off uint64, found bool) {
	var raw [layout.InfoSize]byte
	end := r.Size() / 4096 * 4096
	for range maxArenas {
		if end < base || end-base < 2*layout.InfoSize {
			return 0, false
		}
		off := end - layout.InfoSize
		in, err := readInfo(r, off, &raw)
		if err != nil || in.InfoOff < layout.InfoSize || in.InfoOff > off-base {
			return 0, false
		}
		if end = off - in.InfoOff; end == base {
			return off, true
		}
	}
	return 0, false
}

// findInfo reads the info block of the arena at base: the primary copy, or else
// a backup that says that it belongs there.
func findInfo(r *pmem.Region, base, maxArena uint64, f layout.Flavour) (in layout.Info, st *infoState, err error) {
	st = new(infoState)
	if !holdsInfo(r, base) {
		return in, nil, fmt.Errorf("the image ends at %d", r.Size())
	}
	in, err = readInfo(r, base, &st.raw)
	if err == nil {
		err = judge(&in, r.Size()-base, f)
	}
	if err == nil {
		return in, st, nil
	}
	chained, found := backupByChain(r, base)
	places := []uint64{chained}
	if !found {
		places = places[:0]
		if in.InfoOff < r.Size() && holdsInfo(r, base+in.InfoOff) {
			places = append(places, base+in.InfoOff) // the bad primary may still know
		}
		places = append(places, guessedPlaces(r, base, maxArena)...)
	}
	for _, off := range places {
		backup, berr := readInfo(r, off, &st.raw)
		if berr != nil || backup.InfoOff != off-base || judge(&backup, r.Size()-base, f) != nil {
			continue
		}
		// What the chain leads to is a backup, whatever users have written elsewhere.
		if found || !isPrimary(r, off, &st.raw) {
			st.fromBackup = true
			return backup, st, nil
		}
	}
	return in, nil, err
}

// isPrimary reports whether the info block raw at off is the primary of an arena that
// begins there: a copy of it is where its backup would be. In an image that has grown,
// arenas of 512 GiB can begin where the backup of one before would stand.
func isPrimary(r *pmem.Region, off uint64, raw *[layout.InfoSize]byte) bool {
	in, err := layout.DecodeInfo(raw[:])
	if err != nil || in.InfoOff >= r.Size() || !holdsInfo(r, off+in.InfoOff) {
		return false
	}
	var backup [layout.InfoSize]byte
	r.Read(backup[:], off+in.InfoOff)
	return backup == *raw
}

// judge checks an info block of whose arena avail bytes exist.
func judge(in *layout.Info, avail uint64, f layout.Flavour) error {
	if in.Major != f.Major || in.Minor != f.Minor {
		return fmt.Errorf("version %d.%d where %s images have %d.%d", in.Major, in.Minor, f.Name, f.Major, f.Minor)
	}
	if in.Nfree > maxLanes {
		return &layout.FieldError{Field: "nfree", Value: uint64(in.Nfree), Want: fmt.Sprintf("at most %d", maxLanes)}
	}
	return in.Validate(avail)
}

// Limits of what is opened: memory is needed for each lane and each arena, and an
// image must not be able to ask for more than the machine has. 4096 arenas of full
// size are 2 PiB, and have 2^20 lanes if each has the 256 that everybody gives it: so
// many may all arenas have together, which take some 80 MB.
const (
	maxLanes  = 1 << 20
	maxArenas = 4096
)

// setFlags rewrites both info blocks of the arena with new flags.
func (a *arena) setFlags(flags uint32) error {
	return a.setInfo(func(raw []byte) { layout.PatchFlags(raw, flags) })
}

// setInfo rewrites both info blocks of the arena with what patch makes of them. The
// copy that open would not rely on goes first, so that one good copy exists at any
// moment, and nothing has changed until the other is written.
func (a *arena) setInfo(patch func(raw []byte)) error {
	st := &a.info
	st.mu.Lock()
	defer st.mu.Unlock()
	patch(st.raw[:])
	order := [2]uint64{a.base + a.geo.InfoOff, a.base}
	if st.fromBackup {
		order[0], order[1] = order[1], order[0]
	}
	for i, off := range order {
		a.reg.Write(off, st.raw[:])
		if err := a.reg.Drain(); err != nil {
			return fmt.Errorf("arena %d: info block at offset %d: %w", a.index, off, err)
		}
		// Should the other one fail now, it may be torn, and this is the good one: not
		// even another try may touch it before the other is whole.
		st.fromBackup = i == 0 && off != a.base
	}
	return nil
}
