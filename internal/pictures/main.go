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

import (
	"fmt"
	"os"
	"path/filepath"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: go run ./internal/pictures DIRECTORY, in the top directory of the source")
		os.Exit(64)
	}
	if err := write(os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, "pictures:", err)
		os.Exit(1)
	}
}

func write(dir string) error {
	all, err := pictures(".")
	if err != nil {
		return err
	}
	for name, text := range all {
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o644); err != nil {
			return err
		}
	}
	return nil
}

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
