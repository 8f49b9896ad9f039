// Package check examines a BTT image offline, says what is wrong with it, in words
// that name the place and the consequence, and repairs it. It reads the media with
// code of its own: it never imports the engine, so that one bug cannot blind both.
//
// [Inspect] reads the info blocks; [Survey] counts what is in flog and map; [Run]
// judges all of it. None of them writes. In the order in which it happens:
//
//  1. locate: which flavour this is, from both info blocks of arena 0 in each
//     place where one can be.                                       locate.go
//  2. arenas: follow nextoff; in each arena compare the two info blocks, check
//     that the areas are in order and inside the file, and that the arena
//     belongs with the first.                                       arenas.go
//  3. flog: padding scheme, the current record of each lane, writes that were
//     interrupted.                                                  flog.go
//  4. map: every entry in range, counts, errors.                    mapscan.go, claims.go
//  5. ownership: every internal block belongs to one map entry or one lane, and
//     to one only.                                                  owners.go
//
// Invariant 5 is what a BTT stands on. With n external blocks and f lanes an arena
// has n+f internal ones:
//
//	map entries   0 1 2 … n-1     each owns one block, error and zero entries too
//	lanes         0 … f-1         each owns one free block: old of its record
//	blocks        0 1 2 … n+f-1   each owned exactly once
//
// # Repair
//
// [Repair] makes a [Plan], which is data, and carries it out stage by stage:
//
//	planinfo.go  info blocks, of which the plan sees the new ones through an overlay
//	planpool.go  the header of a pool
//	planmap.go   who gets which block, and which entries become error entries
//	plan.go      the plan, its stages and what it refuses
//	apply.go     the stores and drains
//	backup.go    what was overwritten, and the way back
//
// docs/check.md has the rules, and all kinds of finding.
//
// # Interrupted writes
//
// A write makes its flog record current before it stores the map entry. A crash
// between the two leaves map[lba] == old, and the next open rolls it forward to
// new. Until then the map entry stands for old and the lane for new; afterwards
// the other way round; so the same blocks are owned, and an interrupted write is
// no damage. It counts as one only if old differs from new. A completed write may
// leave any third block in map[lba], because another lane wrote it again later.
package check
