// Command testreport turns `go test -json` on its standard input into what a
// person wants of a long run: the go command's line for each package, the output
// of the tests that failed, the tests that were skipped and why, and the counts.
//
//	go test -json ./... | go run ./internal/testreport -counts FILE -failures FILE
//
// The counts are appended to the one file as a line, "passed failed skipped", the
// output of what failed to the other. The exit status is 1 when something failed.
package main

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"os"
)

func main() {
	counts := flag.String("counts", "", "append \"passed failed skipped\" to `FILE`")
	failures := flag.String("failures", "", "append the output of what failed to `FILE`")
	flag.Parse()
	r, err := report(*counts, *failures)
	if err != nil {
		fmt.Fprintln(os.Stderr, "testreport:", err)
		os.Exit(1)
	}
	if r.failed > 0 {
		os.Exit(1)
	}
}

func report(counts, failures string) (r result, err error) {
	var bad bytes.Buffer
	if r, err = summarize(os.Stdin, os.Stdout, &bad); err != nil {
		return r, err
	}
	if err := appendTo(counts, []byte(r.String()+"\n")); err != nil {
		return r, err
	}
	return r, appendTo(failures, bad.Bytes())
}

// appendTo adds to a file, or to none with an empty path.
func appendTo(path string, text []byte) error {
	if path == "" {
		return nil
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o666)
	if err != nil {
		return err
	}
	_, err = f.Write(text)
	return errors.Join(err, f.Close())
}
