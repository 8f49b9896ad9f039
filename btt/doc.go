// Package btt is the engine: a Block Translation Table over a [pmem.Region].
// It gives its user an array of blocks of which each is, after any crash, wholly
// old or wholly new, and of which an acknowledged write is never lost.
//
// # Theory of operation
//
// An arena has a few more internal blocks than blocks that its user sees. A map
// says which internal block holds which external one. A write never touches the
// block that the map points at: it fills a free block, notes the intended move in
// a log record (the flog), and then swings the map entry over with one aligned
// 4-byte store. Every free block belongs to a lane; a writer owns a lane for as
// long as its write takes, and afterwards the lane owns the block that the write
// has replaced.
//
// Entry points: [Format] lays out, [Grow] adds arenas, [Open] recovers, then [Device.ReadAt],
// [Device.WriteAt], [Device.WriteGroup], [Device.ZeroAt] and the rest move data,
// all of them from any number of goroutines at once, and [Device.Close] ends it.
//
// # Write path (write.go)
//
// A group of blocks with distinct numbers, a lane for each:
//
//	step                                          power fails here: recovery sees
//	1  data → the lanes' free blocks              old flog record, old map: old block
//	   drain
//	2  lock the map lines; note {lba, old},       old record still current: old block
//	   then {new, seq} in the flog; flush
//	   drain                                      new record, old map: rolls forward, new block
//	3  swing the map entries; flush               either of these two
//	   drain, unlock, release lanes               new record, new map: new block
//
// Each of the three drains is needed: without the first a record can name a block
// whose data is torn, without the second a map entry can be durable before its
// record, and then the block is in the map and free at once; without the third a
// lane can be used again while the map on media still names its block.
//
// The two halves of a record lie in one cache line and are stored in order, so
// they need no drain between them: what survives of a line is a prefix of the
// stores to it.
//
// # Read path (read.go)
//
// A reader takes no lock. It first tries without telling anybody (glimpse.go): it
// looks the block up, copies it, and looks whether the entry has stayed the same
// meanwhile and has not been swung away and back, which a count for each map lock
// tells. If it has not, the block was the map's all the time, and by I2 nobody
// stored to it.
//
// Otherwise, and for all that is no plain block with data, it looks the block up,
// announces it in the read tracking table (RTT), looks again, and only then copies.
// A writer that is about to fill a free block waits until nobody has it announced.
// So such a reader ends, however many writers there are. The announcement and the
// second look must not pass each other; sync/atomic is sequentially consistent,
// which is what this needs.
//
// # Zero and error entries (zero.go)
//
// They change only the map entry: one aligned store, no flog. A reader can
// therefore see such an entry before it is durable, and so persists it itself
// before it answers. See [arena.settle].
//
// # Invariants
//
//	I1  every internal block is owned exactly once: by a map entry or by a lane
//	I2  a block that the map owns is never stored to, except by formatting
//	I3  data is durable before a flog record names it
//	I4  a flog record is durable before the map entry that it announces is stored
//	I5  a map entry is durable before its lane, its map lock or its
//	    acknowledgement is given
//	I6  a map entry changes only under its map lock
//	I7  at most one of a pair of flog records is being written; the other is
//	    current and durable
//	I8  nothing that a reader has been shown is taken back by a crash
//
// Lock order: lane, then (waiting for the RTT), then map locks in ascending
// order, then nothing. Nobody holding a map lock waits for a lane, and readers
// hold nothing that a writer waits for but their RTT slot, which they give back
// within a copy. So a partial write may wait for it with its map lock in hand.
package btt
