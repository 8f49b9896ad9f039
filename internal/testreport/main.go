// Command testreport turns `go test -json` on its standard input into what a
// person wants of a long run: the go command's line for each package, the output
// of the tests that failed, the tests that were skipped and why, and the counts.
//
//	go test -json ./... | go run ./internal/testreport -counts FILE -failures FILE
//
// The counts are appended to the one file as a line, "passed failed skipped", the
// output of what failed to the other. The exit status is 1 when something failed.
//
// With -again FILE it also writes down, as lines "package test", what may be tried a
// second time: see result.again.
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"strings"

	"github.com/bttnbd/bttnbd/internal/tally"
)

func main() {
	counts := flag.String("counts", "", "append \"passed failed skipped\" to `FILE`")
	failures := flag.String("failures", "", "append the output of what failed to `FILE`")
	again := flag.String("again", "", "append what may be tried a second time to `FILE`")
	flag.Parse()
	r, err := report(*counts, *failures, *again)
	if err != nil {
		fmt.Fprintln(os.Stderr, "testreport:", err)
		os.Exit(1)
	}
	if r.failed > 0 {
		os.Exit(1)
	}
}

func report(counts, failures, again string) (r result, err error) {
	var bad strings.Builder
	if r, err = summarize(os.Stdin, os.Stdout, &bad); err != nil {
		return r, err
	}
	return r, errors.Join(
		tally.Append(counts, r.String()+"\n"),
		tally.Append(failures, bad.String()),
		tally.Append(again, strings.Join(r.again(), "")))
}
