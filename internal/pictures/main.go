// Command pictures draws docs/pictures from what the pictures are of: the constants of
// the format, the table of package arrows, and the steps of a write. A test compares
// them with what is there.
//
//	go run ./internal/pictures docs/pictures
//
//	canvas.go    boxes, lines and text as SVG
//	media.go     what is on media
//	write.go     the write path and its three drains
//	packages.go  who imports whom
package main

import "github.com/bttnbd/bttnbd/internal/generated"

func main() { generated.Main("pictures", pictures) }

// pictures are all of them by file name. source is the top directory.
func pictures(source string) (map[string][]byte, error) {
	packages, err := drawPackages(source)
	if err != nil {
		return nil, err
	}
	media, err := drawMedia()
	if err != nil {
		return nil, err
	}
	return map[string][]byte{"media.svg": media, "write.svg": drawWrite(), "packages.svg": packages}, nil
}
