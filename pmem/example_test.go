package pmem_test

import (
	"fmt"
	"log"
	"os"
	"path/filepath"

	"github.com/bttnbd/bttnbd/pmem"
)

// A record that is there as a whole or not at all: first the record, then what makes
// it count, and a drain between the two.
func Example() {
	dir, err := os.MkdirTemp("", "pmem")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "log")

	r, err := pmem.Create(path, 1<<20, pmem.Options{})
	if err != nil {
		log.Fatal(err)
	}
	record := []byte("a record, of whole words") // bulk operations are of multiples of 8 bytes
	r.Write(64, record)
	if err := r.Drain(); err != nil { // a power failure before: no record
		log.Fatal(err)
	}
	r.Store64(0, uint64(len(record))) // one store of 8 bytes is never torn
	if err := r.Persist(0, 8); err != nil {
		log.Fatal(err)
	}
	// From here on it survives whatever r.Durability() says.
	if err := r.Close(); err != nil {
		log.Fatal(err)
	}

	r, err = pmem.Open(path, pmem.Options{ReadOnly: true})
	if err != nil {
		log.Fatal(err)
	}
	defer r.Close()
	p := make([]byte, r.Load64(0))
	r.Read(p, 64)
	fmt.Printf("%s\n", p)
	// Output:
	// a record, of whole words
}
