//go:build amd64

// Not for the other architectures: tests run there under qemu-user, which ends the
// process where a kernel has it told of the fault.

package pmem_test

import (
	"errors"
	"fmt"
	"log"
	"os"
	"path/filepath"

	"github.com/bttnbd/bttnbd/pmem"
)

// Memory that is gone is an error of the access, not the end of the process.
func ExampleRegion_CatchFault() {
	dir, err := os.MkdirTemp("", "pmem")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "memory")
	r, err := pmem.Create(path, 1<<20, pmem.Options{})
	if err != nil {
		log.Fatal(err)
	}
	defer r.Close()
	if err := os.Truncate(path, 4096); err != nil { // somebody else does
		log.Fatal(err)
	}

	read := func(p []byte, off uint64) (err error) {
		defer r.CatchFault(&err)
		defer pmem.ArmFaults()()
		r.Read(p, off)
		return nil
	}
	err = read(make([]byte, 16), 65536)
	var fault *pmem.FaultError
	fmt.Println(errors.As(err, &fault))
	// Output:
	// true
}
