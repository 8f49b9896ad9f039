//go:build !race

package pmem

import "golang.org/x/sys/cpu"

// flushers are all write-backs this processor can run, also those not chosen.
func flushers() map[string]func([]byte) {
	all := map[string]func([]byte){
		"flushLines":   flushLines,
		"clean to PoC": func(b []byte) { cleanCoherency(&b[0], uintptr(len(b)), lineSize) },
	}
	if cpu.ARM64.HasDCPOP {
		all["clean to PoP"] = func(b []byte) { cleanPersistence(&b[0], uintptr(len(b)), lineSize) }
	}
	return all
}
