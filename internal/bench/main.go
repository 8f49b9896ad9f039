// Command bench measures bttnbd beside its peers, in pairs, on one machine in one
// run. Absolute figures of a shared machine mean little; ratios of pairs that ran
// one after the other mean something, and their median more.
//
//	go run ./internal/bench [-pairs 5] [-seconds 1] [-only REGEXP] [-json FILE] [-svg FILE] [-old DIRECTORY] [-growth]
//
// The peers are libpmemblk through a small C program, nbdkit's memory plugin,
// nbdkit with a plugin over libpmemblk, and qemu-nbd. Images lie in /dev/shm and
// are treated as persistent memory, except where msync is what is measured. With -old
// the peer is another build of ours: what a change is worth. With -growth there is no
// peer: it prints how our cost grows with size, depth, connections, lanes and threads.
package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"regexp"
	"time"
)

// measurement is one side of one pair.
type measurement struct {
	Rate float64 `json:"rate"` // operations or bytes a second
	CPU  float64 `json:"cpu"`  // server CPU seconds an operation, 0 if not measured
}

// side runs one measurement.
type side func(d time.Duration) (measurement, error)

// bout is a row of the table: us against a peer.
type bout struct {
	name, peer, unit string
	target           float64 // ratio of rates wanted, 0 for none
	targetCPU        float64 // ratio of CPU an operation wanted at most, 0 for none
	prepare          func(*scope) (us, them side, err error)
}

func main() {
	if len(os.Args) > 1 && os.Args[1] == engineWorker {
		engineMain(os.Args[2:])
		return
	}
	pairs := flag.Int("pairs", 5, "pairs a row")
	seconds := flag.Float64("seconds", 1, "length of one measurement")
	only := flag.String("only", "", "rows whose name matches")
	jsonFile := flag.String("json", "", "write the results there")
	svgFile := flag.String("svg", "", "draw the ratios there")
	old := flag.String("old", "", "a directory with `bttnbd` and `bench` of another version, to be the peer of every row")
	grow := flag.Bool("growth", false, "how cost grows, instead of the table")
	flag.Parse()
	length := time.Duration(*seconds * float64(time.Second))
	if *grow {
		if *only != "" || *old != "" {
			fmt.Fprintln(os.Stderr, "bench: -growth measures ours alone, and all of it: leave -only and -old out")
			os.Exit(64)
		}
		if err := growth(os.Stdout, *pairs, length); err != nil {
			fmt.Fprintln(os.Stderr, "bench:", err)
			os.Exit(1)
		}
		return
	}
	if err := run(*pairs, length, *only, *jsonFile, *svgFile, *old); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(pairs int, d time.Duration, only, jsonFile, svgFile, old string) error {
	match, err := regexp.Compile(only)
	if err != nil {
		return err
	}
	b, err := newBench(old)
	if err != nil {
		return err
	}
	defer b.close()
	r := b.measure(pairs, d, match)
	r.print(os.Stdout)
	if jsonFile != "" {
		out, err := json.MarshalIndent(r, "", "  ")
		if err != nil {
			return err
		}
		if err := os.WriteFile(jsonFile, append(out, '\n'), 0o644); err != nil {
			return err
		}
	}
	if svgFile != "" {
		if err := os.WriteFile(svgFile, drawSVG(r), 0o644); err != nil {
			return err
		}
	}
	return r.failures()
}

// report is all that was measured.
type report struct {
	Schema  int      `json:"schema"`
	When    string   `json:"when"` // the day
	Machine machine  `json:"machine"`
	Results []result `json:"results"`
	Figures []figure `json:"figures"`
}

// measure measures what match matches. A row that fails is noted and costs the
// others nothing.
func (b *bench) measure(pairs int, d time.Duration, match *regexp.Regexp) report {
	r := report{Schema: 2, When: time.Now().UTC().Format(time.DateOnly), Machine: thisMachine()}
	for _, row := range b.rows() {
		if b.old != "" && row.peer == "nbdkit libpmemblk" {
			continue // the same load as the row before
		}
		if !match.MatchString(row.name + " " + row.peer) {
			continue
		}
		got, err := row.run(pairs, d)
		if err != nil {
			got = result{Name: row.name, Peer: row.peer, Unit: row.unit, Error: err.Error()}
			b.stopServers() // one of them may be what failed
		}
		fmt.Fprintln(os.Stderr, got)
		r.Results = append(r.Results, got)
	}
	for _, f := range b.figures() {
		if match.MatchString(f.Name) {
			f.take(pairs)
			fmt.Fprintln(os.Stderr, f)
			r.Figures = append(r.Figures, f)
		}
	}
	return r
}

// failures is an error that names the rows that failed.
func (r report) failures() error {
	var errs []error
	for _, row := range r.Results {
		if row.Error != "" {
			errs = append(errs, errors.New(row.String()))
		}
	}
	for _, f := range r.Figures {
		if f.Error != "" {
			errs = append(errs, errors.New(f.String()))
		}
	}
	return errors.Join(errs...)
}
