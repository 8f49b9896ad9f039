package main

import (
	"encoding/binary"
	"fmt"
	"os"
)

// crowd fills so much memory with a pattern, again and again, and looks each time
// whether all of it is still there. With more than the machine has, it goes through
// swap. The kernel is asked to end this process first when it finds no way out.
func crowd(mib, rounds int) error {
	if err := os.WriteFile("/proc/self/oom_score_adj", []byte("1000"), 0); err != nil {
		return err
	}
	const page = 4096
	p := pages(mib << 20)
	for round := range uint64(rounds) {
		for at := 0; at < len(p); at += page {
			was := binary.LittleEndian.Uint64(p[at:])
			if want := uint64(at) * round; was != want {
				return fmt.Errorf("round %d: page %d holds %#x, want %#x", round, at/page, was, want)
			}
			binary.LittleEndian.PutUint64(p[at:], uint64(at)*(round+1))
		}
		fmt.Println("round", round)
	}
	return nil
}
