// Package generated is for programs that write files which are kept beside their
// source, and for the tests that these are current.
package generated

import (
	"bytes"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
)

// Main is a main function: it writes the files that make returns, by name, into the
// directory that the one argument names. make is given the top directory of the source.
func Main(command string, make func(source string) (map[string][]byte, error)) {
	if len(os.Args) != 2 {
		fmt.Fprintf(os.Stderr, "usage: go run ./internal/%s DIRECTORY, in the top directory of the source\n", command)
		os.Exit(64)
	}
	if err := write(os.Args[1], make); err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", command, err)
		os.Exit(1)
	}
}

func write(dir string, make func(source string) (map[string][]byte, error)) error {
	all, err := make(".")
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

// Stale lists, a line each, what in dir is not as in all, is missing, or is too much.
func Stale(dir string, all map[string][]byte) (list []string, err error) {
	for _, name := range slices.Sorted(maps.Keys(all)) {
		got, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil || !bytes.Equal(got, all[name]) {
			list = append(list, fmt.Sprintf("%s is not current (%v)", name, err))
		}
	}
	there, err := os.ReadDir(dir)
	for _, e := range there {
		if all[e.Name()] == nil {
			list = append(list, e.Name()+" is made by nobody: remove it")
		}
	}
	return list, err
}
