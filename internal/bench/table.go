package main

import (
	"fmt"
	"io"
	"text/tabwriter"
)

func (r report) print(to io.Writer) {
	w := tabwriter.NewWriter(to, 0, 4, 2, ' ', 0)
	fmt.Fprintln(w, "what\tagainst\tours\tpeer\tratio\tspread\ttarget\tCPU/op ours\tpeer\tratio\ttarget\t")
	for _, r := range r.Results {
		if r.Error != "" {
			fmt.Fprintf(w, "%s\t%s\tFAILED\t\t\t\t\t\t\t\t\t\n", r.Name, r.Peer)
			continue
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%.2f\t%.2f-%.2f\t%s\t%s\t%s\t%s\t%s\t\n", r.Name, r.Peer,
			rate(r.Ours.Rate, r.Unit), rate(r.Theirs.Rate, r.Unit), r.Ratio, r.Low, r.High, want("≥", r.Target),
			cost(r.Ours.CPU, r.Unit), cost(r.Theirs.CPU, r.Unit), orDash(r.RatioCPU), want("≤", r.TargetCPU))
	}
	w.Flush()
	for _, f := range r.Figures {
		fmt.Fprintln(to, f)
	}
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

// cost is CPU time an operation, or a KiB where bytes are counted.
func cost(s float64, unit string) string {
	switch {
	case s == 0:
		return "-"
	case unit == "B/s":
		return fmt.Sprintf("%.0f ns/KiB", s*1024*1e9)
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
