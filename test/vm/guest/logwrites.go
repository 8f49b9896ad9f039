package main

import (
	"fmt"
	"os"
	"strconv"

	"github.com/bttnbd/bttnbd/test/vm/workload"
)

// replay carries a log of dm-log-writes out on the device from entry FROM up to
// TO, not included.
func replay(device *os.File, args []string) error {
	if len(args) != 3 {
		return fmt.Errorf("want DEVICE LOG FROM TO")
	}
	from, err := strconv.Atoi(args[1])
	if err != nil {
		return err
	}
	to, err := strconv.Atoi(args[2])
	if err != nil {
		return err
	}
	l, err := readWriteLog(args[0])
	if err != nil {
		return err
	}
	return l.Replay(device, from, to, pages(1<<20))
}

// points prints, of N points of a log at which all before is durable, spread over
// what follows the mark 0: the number of entries up to there, and the last mark.
// Marks are numbers.
func points(log string, n int) error {
	l, err := readWriteLog(log)
	if err != nil {
		return err
	}
	mark := ""
	var all []string
	for i, e := range l.Entries {
		if e.Mark != "" {
			mark = e.Mark
		}
		if mark != "" && e.Durable() {
			all = append(all, fmt.Sprint(i+1, " ", mark))
		}
	}
	if len(all) < n {
		return fmt.Errorf("%d entries, %d flushes, fewer than %d", len(l.Entries), len(all), n)
	}
	for i := range n {
		fmt.Println(all[(i+1)*len(all)/n-1])
	}
	fmt.Fprintf(os.Stderr, "%d entries, %d of them flushes or FUA\n", len(l.Entries), len(all))
	return nil
}

func readWriteLog(path string) (*workload.WriteLog, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	return workload.ReadWriteLog(f)
}
