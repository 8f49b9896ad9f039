// Package convert makes one kind of BTT out of another.
//
//	flog.go    in place: every lane becomes one fresh record, which is at home in
//	           both padding schemes, with the flags of the flavour
//	parent.go  in place: the uuid of the namespace that the BTT is for
//	file.go    into a new file: any flavour into any other, block by block
//
// In place, a crash at any moment leaves an image that opens, with every block as
// it was: the change is complete or not, lane by lane, and doing it again completes
// it. A new file appears under its name when it is complete, or not at all.
//
// What stands in the way of changing between flavours in place is geometry: arena
// 0 of a kernel image begins 4096 bytes behind that of a uefi image and 4096 before
// that of a pool, so every block would have to move.
package convert
