package nbd_test

import (
	"context"
	"fmt"
	"log"
	"net"
	"sync"
	"syscall"

	"github.com/bttnbd/bttnbd/nbd"
	"github.com/bttnbd/bttnbd/nbd/nbdtest"
)

// disk is the smallest backend that works: a slice of bytes. What it does not
// declare in its export (trim, zeroes) clients are not offered.
type disk struct {
	mu sync.RWMutex
	b  []byte
}

func (d *disk) ReadAt(p []byte, off int64) (int, error) {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return copy(p, d.b[off:]), nil
}

func (d *disk) WriteGroup(offs []int64, data [][]byte, errs []error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for i, off := range offs {
		copy(d.b[off:], data[i])
	}
}

func (d *disk) Flush() error                { return nil }
func (d *disk) Readable(off, n int64) error { return nil }
func (d *disk) ZeroAt(off, n int64) error   { return syscall.ENOTSUP }
func (d *disk) TrimAt(off, n int64) error   { return syscall.ENOTSUP }
func (d *disk) Extents(off, n int64, emit func(int64, uint8) bool) error {
	emit(n, 0) // all of it is data
	return nil
}

// A server of a backend of one's own.
func ExampleServer() {
	server, err := nbd.NewServer([]nbd.Export{{
		Name: "scratch", Size: 1 << 20, Backend: &disk{b: make([]byte, 1<<20)}, MultiConn: true,
	}}, nbd.Options{})
	if err != nil {
		log.Fatal(err)
	}
	l, err := net.Listen("tcp", "localhost:0")
	if err != nil {
		log.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- server.Serve(ctx, l) }()

	c, info, err := nbdtest.Dial("tcp", l.Addr().String(), "scratch")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("bytes:", info.Size)
	c.Close()

	stop()
	fmt.Println(<-done, server.Shutdown(context.Background()))
	// Output:
	// bytes: 1048576
	// <nil> <nil>
}
