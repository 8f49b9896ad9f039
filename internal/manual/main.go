// Command manual writes the man pages into a directory: those of the commands from
// the command tree, and two from documents. A test compares them with docs/man.
//
//	go run ./internal/manual docs/man
package main

import "github.com/bttnbd/bttnbd/internal/generated"

func main() { generated.Main("manual", pages) }
