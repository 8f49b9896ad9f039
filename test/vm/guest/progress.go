package main

import (
	"encoding/binary"
	"fmt"
	"os"
	"strconv"
	"time"
)

// stuck is when progress gives up: far above what anything takes.
const stuck = 90 * time.Second

// progress returns when the n logs with these counters have got so many more
// acknowledged, all together, and prints how many there are.
func progress(counters string, args []string) error {
	var n [2]int
	for i := range n {
		var err error
		if n[i], err = strconv.Atoi(args[i]); err != nil {
			return err
		}
	}
	first, err := total(counters, n[0])
	if err != nil {
		return err
	}
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for began := time.Now(); ; <-tick.C {
		now, err := total(counters, n[0])
		switch {
		case err != nil:
			return err
		case now >= first+uint64(n[1]):
			fmt.Println(now)
			return nil
		case time.Since(began) > stuck:
			return fmt.Errorf("%d writes acknowledged since %v", now-first, stuck)
		}
	}
}

func total(counters string, n int) (sum uint64, err error) {
	f, err := os.Open(counters)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	for i := range n {
		var b [8]byte
		if _, err := f.ReadAt(b[:], int64(i)*page); err != nil {
			return 0, err
		}
		sum += binary.LittleEndian.Uint64(b[:])
	}
	return sum, nil
}
