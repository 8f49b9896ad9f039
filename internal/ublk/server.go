package ublk

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/bttnbd/bttnbd/nbd"
)

// A Server serves the queues of a device, each with a thread of its own: the driver
// knows a queue by its thread, and takes it for dead when that ends.
type Server struct {
	char    int // descriptor of /dev/ublkcN
	wake    int // see queue
	queues  []*queue
	threads sync.WaitGroup
	done    chan struct{} // closed when no thread is left

	mu   sync.Mutex
	errs []error
}

// NewServer serves the queues of a device with the backend of an export. It returns when
// the device can be started, or its recovery ended. When it fails nothing is left of it.
func NewServer(in Info, e *nbd.Export) (s *Server, err error) {
	s = &Server{char: -1, wake: -1, done: make(chan struct{})}
	path := charPath(int(in.Index))
	if s.char, err = unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0); err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	if s.wake, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		return nil, errors.Join(fmt.Errorf("eventfd: %w", err), s.Close())
	}
	// All get what they need before the first asks for requests: from then on the driver
	// waits for the others, and Linux 6.12 cannot begin another recovery.
	opened, asked := make(chan error), make(chan error)
	proceed := make(chan bool)
	for id := range int(in.Queues) {
		s.threads.Go(func() { s.thread(id, in, e, opened, asked, proceed) })
	}
	wait := func(c chan error) {
		for range in.Queues {
			err = errors.Join(err, <-c)
		}
	}
	wait(opened)
	ok := err == nil
	for range in.Queues {
		proceed <- ok
	}
	if ok {
		wait(asked)
	}
	go func() {
		s.threads.Wait()
		close(s.done)
	}()
	if err != nil {
		return nil, errors.Join(err, s.Leave(), s.Close())
	}
	return s, nil
}

// charPath is the character device that servers open.
func charPath(index int) string { return fmt.Sprintf("/dev/ublkc%d", index) }

// thread is the life of a queue.
func (s *Server) thread(id int, in Info, e *nbd.Export, opened, asked chan<- error, proceed <-chan bool) {
	runtime.LockOSThread() // for good: it ends with the queue
	q, err := newQueue(id, s.char, s.wake, in, e)
	opened <- err
	if !<-proceed {
		if err == nil {
			s.failed(q.close())
		}
		return
	}
	s.keep(q)
	err = q.fetch()
	asked <- err
	if err == nil {
		err = q.serve()
	}
	if err != nil {
		s.failed(errors.Join(err, s.wakeAll())) // no half of a device
	}
}

// keep remembers a queue until it is closed.
func (s *Server) keep(q *queue) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.queues = append(s.queues, q)
}

func (s *Server) failed(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.errs = append(s.errs, err)
}

// Done is closed when no queue is served any more: the device was stopped, or a queue
// has failed.
func (s *Server) Done() <-chan struct{} { return s.done }

// Stats returns the counts of all queues, after Done and before Close.
func (s *Server) Stats() (all Stats) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, q := range s.queues {
		all.add(&q.stats)
	}
	return all
}

// Leave ends the threads between two requests. The device is quiesced then, and requests
// wait for another server.
func (s *Server) Leave() error {
	err := s.wakeAll()
	<-s.done
	return err
}

func (s *Server) wakeAll() error {
	var one [8]byte
	ne.PutUint64(one[:], 1)
	if _, err := unix.Write(s.wake, one[:]); err != nil {
		return fmt.Errorf("eventfd: %w", err)
	}
	return nil
}

// Close lets go of the device, after Done. It tells why a queue has failed.
func (s *Server) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	errs := s.errs
	for _, q := range s.queues {
		errs = append(errs, q.close())
	}
	for _, fd := range []int{s.char, s.wake} {
		if fd >= 0 {
			errs = append(errs, unix.Close(fd))
		}
	}
	s.queues, s.char, s.wake = nil, -1, -1
	return errors.Join(errs...)
}
