//go:build !race

package pmem

// flushers are all write-backs this processor can run, also those not chosen.
func flushers() map[string]func([]byte) {
	all := map[string]func([]byte){
		"flushLines": flushLines,
		"clflush":    func(b []byte) { clflush(&b[0], uintptr(len(b))) },
	}
	if hasCLFLUSHOPT {
		all["clflushopt"] = func(b []byte) { clflushopt(&b[0], uintptr(len(b))) }
	}
	if hasCLWB {
		all["clwb"] = func(b []byte) { clwb(&b[0], uintptr(len(b))) }
	}
	return all
}
