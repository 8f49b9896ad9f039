// Package fuzz is the proof that a device of package btt is crash-safe. It holds
// only tests: they drive the engine that ships over the memory of package
// pmemtest, cut the power at every moment at which more than before is decided,
// run recovery on every image that a crash can leave, and compare what is read
// with what was promised. See docs/testing.md.
//
//	world_test.go     the small world: a machine, a device, a few blocks of it
//	oracle_test.go    what may be read after a crash, and what a wrong block looks like
//	check_test.go     every block owned once, in the eyes of two readers
//	foreign_test.go   what Linux and PMDK would make of a crash image
//	explore_test.go   every image of a crash: recover, read, check, go on, crash again
//	sequence_test.go  all short sequences of operations
//	pagecache_test.go the same for a file behind the page cache; an msync that fails
//	epochs_test.go    a second crash after recovery and one more operation; every lane
//	schedule_test.go  every order of what a few threads do
//	history_test.go   whether any order of operations explains what was read
//	sampled_test.go   long lives, from a seed
//	format_test.go    crashes while a BTT is being made
//	grow_test.go      crashes while one becomes larger
//	repair_test.go    crashes while one is being repaired
//	arenas_test.go    several arenas, and one beyond 4 GiB
//	corrupt_test.go   what no crash leaves is refused
//	fault_test.go     the n-th access fails, for every n
//	groups_test.go    overlapping requests of a group keep their order
//	native_test.go    sequences as a target for go test -fuzz
//	model_test.go     weaker ideas of a crash, for comparison
//
// The directory mutants holds ways of breaking the engine, each with the test that
// must notice: see docs/mutants.md.
package fuzz
