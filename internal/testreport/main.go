// Command testreport turns `go test -json` on its standard input into what a
// person wants of a long run: the go command's line for each package, the output
// of the tests that failed, the tests that were skipped and why, and the counts.
//
//	go test -json ./... | go run ./internal/testreport -counts FILE
//
// The counts are appended to FILE as one line, "passed failed skipped". The exit
// status is 1 when something failed.
package main

import (
	"flag"
	"fmt"
	"io"
	"os"
)

func main() {
	counts := flag.String("counts", "", "append \"passed failed skipped\" to `FILE`")
	flag.Parse()
	r, err := summarize(os.Stdin, os.Stdout)
	if err == nil && *counts != "" {
		err = appendCounts(*counts, r)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "testreport:", err)
		os.Exit(1)
	}
	if r.failed > 0 {
		os.Exit(1)
	}
}

func appendCounts(path string, r result) (err error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o666)
	if err != nil {
		return err
	}
	_, err = io.WriteString(f, r.String()+"\n")
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	return err
}
