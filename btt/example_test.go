package btt_test

import (
	"fmt"
	"log"
	"os"
	"path/filepath"

	"github.com/google/uuid"

	"github.com/bttnbd/bttnbd/btt"
	"github.com/bttnbd/bttnbd/layout"
	"github.com/bttnbd/bttnbd/pmem"
)

// A new image, written, closed and opened again. A program that is killed
// instead of closing the device loses nothing either.
func Example() {
	dir, err := os.MkdirTemp("", "btt")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "disk.btt")

	r, err := pmem.Create(path, 32<<20, pmem.Options{})
	if err != nil {
		log.Fatal(err)
	}
	err = btt.Format(r, btt.FormatParams{
		Flavour:    layout.Kernel,
		SectorSize: 4096,
		UUID:       uuid.MustParse("6a1e9a0e-95a4-4a4f-8f5e-1f5a9d9f1c02"),
		Zeroed:     true, // a new file is
	})
	if err != nil {
		log.Fatal(err)
	}
	dev, err := btt.Open(r, btt.Options{})
	if err != nil {
		log.Fatal(err)
	}
	if _, err := dev.WriteAt([]byte("wholly old or wholly new"), 4096); err != nil {
		log.Fatal(err)
	}
	if err := dev.Close(); err != nil { // closes the region, too
		log.Fatal(err)
	}

	r, err = pmem.Open(path, pmem.Options{ReadOnly: true})
	if err != nil {
		log.Fatal(err)
	}
	dev, err = btt.Open(r, btt.Options{})
	if err != nil {
		log.Fatal(err)
	}
	defer dev.Close()
	p := make([]byte, 24)
	if _, err := dev.ReadAt(p, 4096); err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%s\n", p)
	fmt.Println(dev.Flavour().Name, dev.SectorSize(), dev.Size(), dev.UUID())
	// Output:
	// wholly old or wholly new
	// kernel 4096 32440320 6a1e9a0e-95a4-4a4f-8f5e-1f5a9d9f1c02
}

// Several blocks under the three drains of one: each is atomic by itself, all are
// durable when WriteGroup returns.
func ExampleDevice_WriteGroup() {
	r := pmem.NewHeap(16 << 20)
	if err := btt.Format(r, btt.FormatParams{Flavour: layout.UEFI, SectorSize: 512, UUID: uuid.New()}); err != nil {
		log.Fatal(err)
	}
	dev, err := btt.Open(r, btt.Options{})
	if err != nil {
		log.Fatal(err)
	}
	defer dev.Close()

	block := make([]byte, 512)
	offs := []int64{0, 8 * 512, 9 * 512}
	errs := make([]error, len(offs))
	dev.WriteGroup(offs, [][]byte{block, block, block}, errs)
	for _, err := range errs {
		fmt.Println(err)
	}
	// Output:
	// <nil>
	// <nil>
	// <nil>
}
