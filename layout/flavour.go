package layout

import "fmt"

// Flavour is a way of putting a BTT into a container: where the first arena
// begins, which version its info blocks carry, and what its makers do besides.
// What is found on media is kept in its own flavour.
type Flavour struct {
	Name         string
	Start        uint64 // offset of arena 0 in the container, in bytes
	Major, Minor uint16
	Align        uint32 // internal block sizes are rounded up to this
}

// The flavours, in the order in which an image is probed for them.
var (
	// Kernel is version 1.1 behind an unused first page: namespaces without a
	// label, which is what Linux and QEMU use by default.
	Kernel = Flavour{Name: "kernel", Start: 4096, Major: 1, Minor: 1, Align: 64}
	// UEFI is version 2.0 at the start of the container: UEFI, Windows, and Linux
	// on labelled namespaces.
	UEFI = Flavour{Name: "uefi", Start: 0, Major: 2, Minor: 0, Align: 64}
)

// Flavours lists all flavours in the order in which an image is probed.
func Flavours() []Flavour { return []Flavour{Kernel, UEFI} }

// FlavourByName finds a flavour by the name used on the command line.
func FlavourByName(name string) (Flavour, error) {
	for _, f := range Flavours() {
		if f.Name == name {
			return f, nil
		}
	}
	return Flavour{}, fmt.Errorf("unknown format %q: choose kernel or uefi", name)
}
