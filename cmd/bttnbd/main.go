// Command bttnbd makes, serves and checks Block Translation Tables.
package main

import (
	"os"

	"github.com/bttnbd/bttnbd/internal/cli"
)

func main() {
	os.Exit(cli.Main(cli.NewRoot(), os.Args[1:], os.Stdout, os.Stderr))
}
