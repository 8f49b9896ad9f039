// Command bench measures bttnbd beside its peers, in pairs, on one machine in one
// run. Absolute figures of a shared machine mean little; ratios of pairs that ran
// one after the other mean something, and their median more.
//
//	go run ./internal/bench [-pairs 5] [-seconds 1] [-only REGEXP] [-json FILE] [-svg FILE]
//
// The peers are libpmemblk through a small C program, nbdkit's memory plugin,
// nbdkit with a plugin over libpmemblk, and qemu-nbd. Images lie in /dev/shm and
// are treated as persistent memory, except where msync is what is measured.
package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"regexp"
	"text/tabwriter"
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
	prepare          func() (us, them side, done func(), err error)
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
	flag.Parse()
	if err := run(*pairs, time.Duration(*seconds*float64(time.Second)), *only, *jsonFile, *svgFile); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(pairs int, d time.Duration, only, jsonFile, svgFile string) error {
	match, err := regexp.Compile(only)
	if err != nil {
		return err
	}
	b, err := newBench()
	if err != nil {
		return err
	}
	defer b.close()
	var results []result
	for _, row := range b.rows() {
		if !match.MatchString(row.name + " " + row.peer) {
			continue
		}
		r, err := row.run(pairs, d)
		if err != nil {
			return fmt.Errorf("%s against %s: %w", row.name, row.peer, err)
		}
		fmt.Fprintln(os.Stderr, r)
		results = append(results, r)
	}
	printTable(results)
	if jsonFile != "" {
		out, err := json.MarshalIndent(map[string]any{"schema": 1, "results": results}, "", "  ")
		if err != nil {
			return err
		}
		if err := os.WriteFile(jsonFile, append(out, '\n'), 0o644); err != nil {
			return err
		}
	}
	if svgFile != "" {
		return os.WriteFile(svgFile, drawSVG(results), 0o644)
	}
	return nil
}

func printTable(results []result) {
	w := tabwriter.NewWriter(os.Stdout, 0, 4, 2, ' ', 0)
	fmt.Fprintln(w, "what\tagainst\tours\tpeer\tratio\tspread\ttarget\tCPU/op ours\tpeer\tratio\ttarget\t")
	for _, r := range results {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%.2f\t%.2f-%.2f\t%s\t%s\t%s\t%s\t%s\t\n", r.Name, r.Peer,
			rate(r.Ours.Rate, r.Unit), rate(r.Theirs.Rate, r.Unit), r.Ratio, r.Low, r.High, want("≥", r.Target),
			micros(r.Ours.CPU), micros(r.Theirs.CPU), orDash(r.RatioCPU), want("≤", r.TargetCPU))
	}
	w.Flush()
}

func rate(v float64, unit string) string {
	switch {
	case v >= 1e9:
		return fmt.Sprintf("%.2f G%s", v/1e9, unit)
	case v >= 1e6:
		return fmt.Sprintf("%.2f M%s", v/1e6, unit)
	}
	return fmt.Sprintf("%.1f k%s", v/1e3, unit)
}

// micros is CPU time an operation, or a KiB where bytes are counted.
func micros(s float64) string {
	if s == 0 {
		return "-"
	}
	if s < 1e-8 {
		return fmt.Sprintf("%.1f ns/KiB", s*1024*1e9)
	}
	return fmt.Sprintf("%.2f µs", s*1e6)
}

func orDash(v float64) string {
	if v == 0 {
		return "-"
	}
	return fmt.Sprintf("%.2f", v)
}

func want(sign string, v float64) string {
	if v == 0 {
		return "-"
	}
	return fmt.Sprintf("%s %.2f", sign, v)
}
