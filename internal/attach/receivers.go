package attach

import (
	"context"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bttnbd/bttnbd/internal/kernel"
)

// Connections are given to a device one after the other, each when the kernel reads
// from the one before: see internal/kernel/receivers.go. Only a new device has to take
// all at once, and gets others if the kernel does not read from all.

// receiverTimeout is for how long we wait for the kernel's threads. It starts one in
// less than a millisecond, or, busy, in tens of them.
const receiverTimeout = 2 * time.Second

// awaitReceivers returns true when the kernel reads from n connections of the device,
// and false when it has not come to that in time.
func (s *Service) awaitReceivers(ctx context.Context, n int) bool {
	ctx, cancel := context.WithTimeout(ctx, receiverTimeout)
	defer cancel()
	return s.dev.AwaitReceivers(ctx, n)
}

// give gives the kernel a connection in place of a dead one, and waits until it reads
// from n.
func (s *Service) give(ctx context.Context, fd, n int) error {
	setup := s.setup
	setup.Sockets = []int{fd}
	if err := kernel.Reconfigure(setup); err != nil {
		return err
	}
	if !s.awaitReceivers(ctx, n) {
		s.o.Log.Warn().Str("device", s.dev.Path()).Msg("the machine is very busy: the kernel does not listen on a connection yet")
	}
	return nil
}

// giveInTurn is give when others may do the same.
func (s *Service) giveInTurn(fd int) error {
	s.giving.Lock()
	defer s.giving.Unlock()
	n := 1
	s.mu.Lock()
	for _, c := range s.connections {
		if c != nil {
			n++
		}
	}
	s.mu.Unlock()
	return s.give(context.Background(), fd, n)
}

// renew replaces all connections of a device that nobody uses yet.
func (s *Service) renew(ctx context.Context) error {
	n := len(s.connections)
	for _, c := range s.connections {
		c.cut()
	}
	s.connections = s.connections[:0]
	s.awaitReceivers(ctx, 0)
	for i := range n {
		c, fd, err := s.source.connect()
		if err != nil {
			return err
		}
		s.connections = append(s.connections, c)
		err = s.give(ctx, fd, i+1)
		unix.Close(fd)
		if err != nil {
			return err
		}
	}
	return nil
}
