package lint

import (
	"path"
	"strings"
)

// unsafePlaces finds imports of unsafe outside *_unsafe.go (and the tests of those
// files) of pmem, internal/socket and internal/ublk, and cgo anywhere.
func unsafePlaces(tree []source) (found []finding) {
	for _, s := range tree {
		if !s.isGo() {
			continue
		}
		for _, spec := range s.syntax.Imports {
			switch spec.Path.Value {
			case `"unsafe"`:
				name := strings.TrimSuffix(strings.TrimSuffix(path.Base(s.path), ".go"), "_test")
				if dir := s.dir(); dir != "pmem" && dir != "internal/socket" && dir != "internal/ublk" || !strings.HasSuffix(name, "_unsafe") {
					found = append(found, s.at(spec.Pos(), "unsafe belongs in *_unsafe.go of pmem, internal/socket and internal/ublk"))
				}
			case `"C"`:
				found = append(found, s.at(spec.Pos(), "no cgo"))
			}
		}
	}
	return found
}

// assemblyPlaces finds assembly outside pmem, but for the instruction that waits
// between two looks at a socket.
func assemblyPlaces(tree []source) (found []finding) {
	for _, s := range tree {
		pause := s.dir() == "internal/socket" && strings.HasPrefix(path.Base(s.path), "pause_")
		if path.Ext(s.path) == ".s" && s.dir() != "pmem" && !pause {
			found = append(found, finding{s.path, 0, "assembly belongs in pmem"})
		}
	}
	return found
}
