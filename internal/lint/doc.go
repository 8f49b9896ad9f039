// Package lint holds the project's own rules about its source, each a function
// over the files of the repository. They run as tests; every rule is tested, too,
// on a small source that breaks it.
//
//	source.go    the files, parsed
//	arrows.go    which package may import what
//	memory.go    where unsafe code and assembly may stand
//	style.go     lengths, doc comments, sleeping tests
//	hygiene.go   paths of a machine, fuzz targets that no run would find
package lint
