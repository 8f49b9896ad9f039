package btt

import (
	"github.com/bttnbd/bttnbd/layout"
	"github.com/bttnbd/bttnbd/pmem"
)

// Wipe destroys the signature of every info block that [Open] or Linux could
// find, durably. Who is about to discard the contents of an image does this
// first: a power cut in the middle of discarding would otherwise leave sound info
// blocks over half of a map.
func Wipe(r *pmem.Region) (err error) {
	defer r.CatchFault(&err)
	defer pmem.ArmFaults()()
	if r.ReadOnly() {
		return errReadOnly
	}
	wipeSignatures(r, &FormatParams{MaxArena: layout.MaxArenaSize}, nil)
	return r.Drain()
}
