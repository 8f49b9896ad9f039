package check_test

import (
	"context"
	"fmt"
	"log"

	"github.com/bttnbd/bttnbd/check"
	"github.com/bttnbd/bttnbd/pmem"
)

// What bttcheck does: look at an image that nobody writes to, and say what is wrong.
func Example() {
	r, err := pmem.Open("disk.btt", pmem.Options{ReadOnly: true})
	if err != nil {
		log.Fatal(err)
	}
	defer r.Close()
	rep, err := check.Run(context.Background(), r, check.Options{})
	if err != nil {
		log.Fatal(err) // it could not be looked at; damage is no error
	}
	for _, f := range rep.Findings {
		fmt.Println(f.Severity, f.Kind, f.Offset, f.Message)
	}
	fmt.Println("clean:", rep.Clean())
}
