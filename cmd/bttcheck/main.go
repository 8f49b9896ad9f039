// Command bttcheck is "bttnbd check" under a name of its own.
package main

import (
	"os"

	"github.com/bttnbd/bttnbd/internal/cli"
)

func main() {
	os.Exit(cli.Main(cli.NewCheck("bttcheck"), os.Args[1:], os.Stdout, os.Stderr))
}
