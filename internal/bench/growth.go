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
	print := func(what, unit string, s side) error {
		var all []measurement
		for range times {
			m, err := s(d)
			if err != nil {
				return fmt.Errorf("%s: %w", what, err)
			}
			all = append(all, m)
		}
		median := bout{}.judge(all, all).Ours
		_, err := fmt.Fprintf(w, "%s\t%s\t%s\t\n", what, rate(median.Rate, unit), cost(median.CPU, unit))
		return err
	}
	if err := b.serverGrowth(print); err != nil {
		return err
	}
	return b.engineGrowth(print)
}

// serverGrowth varies one thing at a time of 4 KiB requests on one connection at depth 16.
func (b *bench) serverGrowth(print func(what, unit string, s side) error) error {
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
			what, unit := "read", "op/s"
			if l.write {
				what = "write"
			}
			if l.block > 4096 {
				unit = "B/s"
			}
			if err := print(fmt.Sprintf("NBD %d KiB %s, %d x depth %d", l.block>>10, what, l.connections, l.depth), unit, s.side(l)); err != nil {
				return err
			}
		}
	}
	b.stopServers()
	return nil
}

// engineGrowth varies the size of random writes on sectors of 4 KiB, up to a group, and
// the number of lanes.
func (b *bench) engineGrowth(print func(what, unit string, s side) error) error {
	image := b.dir + "/growth"
	for _, nfree := range []uint32{256, 64, 16, 4, 2, 1} {
		os.Remove(image)
		if err := makeImage(image, 4096, nfree); err != nil {
			return err
		}
		for _, threads := range []int{1, 2, 8} {
			if err := print(fmt.Sprintf("engine 4 KiB write, %d lanes, %d threads", nfree, threads), "op/s", engineSide(os.Args[0], image, "write", 4096, threads)); err != nil {
				return err
			}
		}
		for kib := 8; nfree == 256 && kib <= 128; kib *= 2 {
			if err := print(fmt.Sprintf("engine %d KiB write, 256 lanes, 1 threads", kib), "op/s", engineSide(os.Args[0], image, "write", kib<<10, 1)); err != nil {
				return err
			}
		}
	}
	return nil
}
