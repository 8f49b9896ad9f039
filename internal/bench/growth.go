package main

import (
	"fmt"
	"io"
	"os"
	"text/tabwriter"
	"time"
)

// growth prints how the cost of ours grows: medians of so many measurements each.
func growth(to io.Writer, times int, d time.Duration) error {
	b, err := newBench("")
	if err != nil {
		return err
	}
	defer b.close()
	w := tabwriter.NewWriter(to, 0, 4, 2, ' ', 0)
	defer w.Flush()
	line := func(what, unit string, s side) error {
		var all []measurement
		for range times {
			m, err := s.measure(d)
			if err != nil {
				return fmt.Errorf("%s: %w", what, err)
			}
			all = append(all, m)
		}
		m := medians(all)
		_, err := fmt.Fprintf(w, "%s\t%s\t%s\t\n", what, rate(m.Rate, unit), cost(m.CPU, unit))
		return err
	}
	if err := b.serverGrowth(line); err != nil {
		return err
	}
	return b.engineGrowth(line)
}

// serverGrowth varies one thing at a time of 4 KiB requests on one connection at depth 16.
func (b *bench) serverGrowth(line func(what, unit string, s side) error) error {
	s, err := b.serve("ours")
	if err != nil {
		return err
	}
	var loads []load
	for _, kib := range []int{4, 16, 64, 256, 1024} {
		loads = append(loads, load{connections: 1, depth: 16, block: kib << 10, sequential: kib > 4})
	}
	for _, depth := range []int{1, 2, 4, 8, 32, 64, 128} {
		loads = append(loads, load{connections: 1, depth: depth, block: 4096})
	}
	for _, connections := range []int{2, 4, 8, 16} {
		loads = append(loads, load{connections: connections, depth: 16, block: 4096})
	}
	for _, l := range loads {
		for _, l.write = range []bool{false, true} {
			if err := line(l.name(), l.unit(), s.side(l)); err != nil {
				return err
			}
		}
	}
	b.stopServers()
	return nil
}

// engineGrowth varies the size of random writes on sectors of 4 KiB, up to a group, and
// the number of lanes.
func (b *bench) engineGrowth(line func(what, unit string, s side) error) error {
	image := b.dir + "/growth"
	for _, nfree := range []uint32{256, 64, 16, 4, 2, 1} {
		os.Remove(image)
		if err := makeImage(image, 4096, nfree); err != nil {
			return err
		}
		for _, threads := range []int{1, 2, 8} {
			if err := line(fmt.Sprintf("engine 4 KiB write, %d lanes, %s", nfree, threadsName(threads)), "op/s", engineSide(os.Args[0], image, "write", 4096, threads)); err != nil {
				return err
			}
		}
		for kib := 8; nfree == 256 && kib <= 128; kib *= 2 {
			if err := line(fmt.Sprintf("engine %d KiB write, 256 lanes, 1 thread", kib), "op/s", engineSide(os.Args[0], image, "write", kib<<10, 1)); err != nil {
				return err
			}
		}
	}
	return nil
}
