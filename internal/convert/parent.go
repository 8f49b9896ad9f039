package convert

import (
	"errors"
	"fmt"

	"github.com/google/uuid"

	"github.com/bttnbd/bttnbd/btt"
	"github.com/bttnbd/bttnbd/layout"
	"github.com/bttnbd/bttnbd/pmem"
)

// Why a parent uuid cannot be changed in place.
var (
	// ErrPoolParent: in a pool it must be that of the pool set.
	ErrPoolParent = errors.New("the parent uuid of a pool's BTT is that of its pool set, in the pool header: make a new pool with --output")
	// ErrArenas: a crash between two arenas would leave them with different parents.
	ErrArenas = errors.New("an image of several arenas cannot change its parent uuid at one moment: make a new image with --output")
)

// Parent changes the parent uuid in both info blocks of an image of one arena. Zero
// means any namespace. It completes interrupted writes first and is durable on
// return; a crash leaves the old uuid or the new one. Nobody may use the image
// meanwhile. Errors: [ErrPoolParent], [ErrArenas], and those of [btt.Open].
func Parent(r *pmem.Region, parent uuid.UUID, o btt.Options) (err error) {
	d, err := open(r, o)
	switch {
	case err != nil:
		return err
	case d.ParentUUID() == parent:
		return nil
	case d.Flavour().Pool:
		return ErrPoolParent
	case len(d.Arenas()) > 1:
		return ErrArenas
	}
	defer r.CatchFault(&err)
	defer pmem.ArmFaults()()
	a := d.Arenas()[0]
	// The copy that an open does not rely on goes first.
	good, other := a.Offset, a.Offset+a.Geometry.InfoOff
	if a.FromBackup {
		good, other = other, good
	}
	var raw [layout.InfoSize]byte
	r.Read(raw[:], good)
	layout.PatchParent(raw[:], parent)
	for _, off := range [...]uint64{other, good} {
		r.Write(off, raw[:])
		if err := r.Drain(); err != nil {
			return fmt.Errorf("info block at offset %d: %w", off, err)
		}
	}
	return nil
}
