package attach

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"

	"github.com/bttnbd/bttnbd/internal/kernel"
	"github.com/bttnbd/bttnbd/nbd"
)

// Options say what to attach, and how. Either Open or Remote is given.
type Options struct {
	Index       int // N of /dev/nbdN, or kernel.AnyIndex
	Connections int // from 1; a device that is revived keeps the number it has

	Path   string                 // of the image, absolute
	Open   func() (*Image, error) // opens it
	Remote *Remote
	// Grow makes the image larger, which is not open then. It refuses what is another file.
	Grow func(want Growth, is fs.FileInfo) (Growth, error)

	Timeout     time.Duration // see kernel.Setup; 0: what fits the medium
	DeadTimeout time.Duration
	Log         zerolog.Logger
}

// A source makes connections for the kernel.
type source interface {
	// connect returns a connection in transmission, and the descriptor of its
	// other end, which the caller closes when the kernel has got it.
	connect() (connection, int, error)
	backend() string // identifies what is behind all its connections
	close() error    // when no connection is left
}

// A connection is one that the kernel has, or will get.
type connection interface {
	offered() (e kernel.Export, blockSize uint32)
	await() (goodbye bool, err error) // returns when it has ended; goodbye: by NBD_CMD_DISC
	leave()                           // makes it end between two requests, soon
	cut()                             // ends it at once, for the kernel too
	close()
}

// A Service is this process behind one device.
type Service struct {
	o       Options
	dev     kernel.Device
	setup   kernel.Setup
	source  source
	since   time.Time // of the device
	made    bool      // by this process, not revived
	serves  string    // the device's Attachment that we serve
	control *control

	mu          sync.Mutex
	connections []connection // one each slot of the device, nil where the last one has ended
	giving      sync.Mutex   // by who gives the kernel a connection

	keeping sync.WaitGroup // a goroutine each connection
	leaving atomic.Bool    // connections end because we want it
	gone    chan struct{}  // closed when the device is
	once    sync.Once      // closes gone
}

// Start attaches: it returns when the device is usable. If a device waits for this
// very backend it is revived.
func Start(ctx context.Context, o Options) (*Service, error) {
	s := &Service{o: o, since: time.Now(), gone: make(chan struct{})}
	var err error
	if o.Remote != nil {
		s.source = &remoteSource{*o.Remote}
	} else if s.source, err = newImageSource(o.Open, o.Log); err != nil {
		return nil, err
	}
	if err := s.attach(ctx); err != nil {
		return nil, errors.Join(err, s.giveUp())
	}
	return s, nil
}

// attach finds the device and gives it connections.
func (s *Service) attach(ctx context.Context) error {
	dev, waiting, err := choose(s.o.Index, s.source.backend(), s.o.Path)
	if err != nil {
		return err
	}
	n := s.o.Connections
	if waiting {
		n = max(1, dev.Connections())
	}
	var sockets []int
	defer func() {
		for _, fd := range sockets {
			unix.Close(fd)
		}
	}()
	for len(s.connections) < n {
		c, fd, err := s.source.connect()
		if err != nil {
			return err
		}
		s.connections = append(s.connections, c)
		sockets = append(sockets, fd)
		if e, _ := c.offered(); e.Flags&nbd.NBD_FLAG_CAN_MULTI_CONN == 0 {
			break // the kernel takes no more
		}
	}
	s.describe()
	if waiting {
		err = s.revive(ctx, dev, sockets)
	} else {
		err = s.create(ctx, sockets)
	}
	if err != nil {
		return err
	}
	return s.settle(ctx)
}

// describe fills the setup in from what the first connection offers.
func (s *Service) describe() {
	e, blockSize := s.connections[0].offered()
	s.setup.Size = e.Size - e.Size%uint64(blockSize)
	s.setup.BlockSize = blockSize
	s.setup.Flags = e.Flags
	s.setup.Backend = s.source.backend()
	s.setup.Timeout, s.setup.DeadTimeout = s.timeout(), s.o.DeadTimeout
}

// slowest is what a request may take on a medium that may be slow.
const slowest = 30 * time.Second

// timeout is what was asked for, or fits the medium.
func (s *Service) timeout() time.Duration {
	if s.o.Timeout != 0 {
		return s.o.Timeout
	}
	if images, ok := s.source.(*imageSource); ok {
		return images.image.Timeout
	}
	return slowest
}

// create makes a device of the connections.
func (s *Service) create(ctx context.Context, sockets []int) (err error) {
	setup := s.setup
	setup.Index, setup.Sockets = s.o.Index, sockets
	if s.setup.Index, err = kernel.Connect(setup); err != nil {
		return err
	}
	s.made = true
	s.found(kernel.DeviceOf(s.setup.Index))
	if s.awaitReceivers(ctx, len(sockets)) {
		return nil
	}
	s.o.Log.Info().Str("device", s.dev.Path()).Msg("the machine is busy, and the kernel does not listen on all connections; making them anew")
	return s.renew(ctx)
}

// revive gives a device that waits its new connections.
func (s *Service) revive(ctx context.Context, dev kernel.Device, sockets []int) error {
	if err := s.sameShape(dev); err != nil {
		return err
	}
	if known, ok := readState(dev); ok {
		s.since = known.Since
	}
	s.setup.Index = dev.Index
	s.found(dev)
	s.awaitReceivers(ctx, 0) // of the old connections
	for i, fd := range sockets {
		if err := s.give(ctx, fd, i+1); err != nil {
			return err
		}
	}
	s.o.Log.Info().Str("device", s.dev.Path()).Msg("the device was waiting, and goes on")
	if dev.Size() < s.setup.Size {
		return s.resize(ctx)
	}
	return nil
}

// found notes the device that we serve from now on, as it is.
func (s *Service) found(dev kernel.Device) { s.dev, s.serves = dev, dev.Attachment() }

// sameShape refuses what a filesystem would notice.
func (s *Service) sameShape(dev kernel.Device) error {
	readOnly := s.setup.Flags&nbd.NBD_FLAG_READ_ONLY != 0
	switch {
	case dev.Size() != s.setup.Size && (s.o.Remote != nil || dev.Size() > s.setup.Size): // a larger image has grown
		return fmt.Errorf("%s has %d bytes and the image %d: not what it was attached from: bttnbd detach %s first", dev.Path(), dev.Size(), s.setup.Size, dev.Path())
	case dev.BlockSize() != s.setup.BlockSize:
		return fmt.Errorf("%s has blocks of %d bytes and the image of %d: not what it was attached from: bttnbd detach %s first", dev.Path(), dev.BlockSize(), s.setup.BlockSize, dev.Path())
	case readOnly && !dev.ReadOnly():
		return fmt.Errorf("%s was attached writable: leave --read-only out, or bttnbd detach %s first", dev.Path(), dev.Path())
	}
	return nil
}

// usableTimeout bounds the wait for the device node.
const usableTimeout = 10 * time.Second

// settle keeps the connections from now on, and returns when the device is usable
// and others can find us.
func (s *Service) settle(ctx context.Context) (err error) {
	s.keepAll()
	if err := s.dev.RaiseLimits(); err != nil {
		s.o.Log.Warn().Err(err).Msg("cannot raise the size of requests")
	}
	ctx, cancel := context.WithTimeout(ctx, usableTimeout)
	defer cancel()
	if err := s.dev.AwaitUsable(ctx, s.setup.Size); err != nil {
		return err
	}
	if err := s.dev.Announce(); err != nil {
		s.o.Log.Warn().Err(err).Msg("cannot have udev name the device")
	}
	if s.control, err = listen(s.dev); err != nil {
		return err
	}
	return s.writeState()
}

func (s *Service) keepAll() {
	for i, c := range s.connections {
		s.keeping.Go(func() { s.keep(i, c) })
	}
}

// giveUp undoes a start that has failed. A device that was made goes; one that had
// been waiting waits on.
func (s *Service) giveUp() error {
	var errs []error
	if s.made {
		errs = append(errs, kernel.Disconnect(s.setup.Index))
	}
	return errors.Join(append(errs, s.end(s.made))...)
}

// How long keep waits before a new connection, doubling while none lasts.
const (
	minPause = 20 * time.Millisecond
	maxPause = time.Second
)

// keep puts a new connection into a slot whenever the kernel has given one up, until
// the device is gone or we leave.
func (s *Service) keep(slot int, c connection) {
	pause := minPause
	if c == nil {
		c = s.replace(slot, &pause)
	}
	for c != nil {
		began := time.Now()
		goodbye, err := c.await()
		if s.leaving.Load() {
			return
		}
		s.set(slot, nil)
		c.close()
		if goodbye || !s.ours() {
			s.once.Do(func() { close(s.gone) })
			return
		}
		s.o.Log.Warn().Err(err).Str("device", s.dev.Path()).Int("connection", slot).Msg("connection lost; making a new one")
		if time.Since(began) > maxPause {
			pause = minPause
		}
		c = s.replace(slot, &pause)
	}
}

// replace tries until there is a new connection, or returns nil when there is no use.
func (s *Service) replace(slot int, pause *time.Duration) connection {
	for {
		select {
		case <-time.After(*pause):
		case <-s.gone:
			return nil
		}
		*pause = min(2**pause, maxPause)
		if s.leaving.Load() {
			return nil
		}
		if !s.ours() {
			s.once.Do(func() { close(s.gone) })
			return nil
		}
		c, err := s.reconnect()
		if err == nil {
			s.set(slot, c)
			return c
		}
		s.o.Log.Warn().Err(err).Str("device", s.dev.Path()).Msg("no new connection; trying again")
	}
}

// reconnect gives the kernel a connection in place of a dead one.
func (s *Service) reconnect() (connection, error) {
	c, fd, err := s.source.connect()
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	if e, _ := c.offered(); e.Size-e.Size%uint64(s.setup.BlockSize) != s.setup.Size {
		err = fmt.Errorf("the export has %d bytes now, and the device %d", e.Size, s.setup.Size)
	} else {
		err = s.giveInTurn(fd)
	}
	if err != nil {
		c.close()
		return nil, err
	}
	return c, nil
}

// set notes what is in a slot. What comes too late is sent away again.
func (s *Service) set(slot int, c connection) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.connections[slot] = c
	if c != nil && s.leaving.Load() {
		c.leave()
	}
}

// ours reports whether the device is still the one that we serve, and has not been
// detached and attached again, perhaps to the same backend.
func (s *Service) ours() bool {
	return s.dev.Connected() && s.dev.Attachment() == s.serves && s.dev.Backend() == s.setup.Backend
}

// Server is what serves the device; nil where that is another program. It may be
// another one after a growth, or a hand-over that has failed.
func (s *Service) Server() *nbd.Server {
	if images, ok := s.source.(*imageSource); ok {
		return images.server.Load()
	}
	return nil
}

// Device is the device.
func (s *Service) Device() kernel.Device { return s.dev }

// Run returns when the device is detached, handed over, or, after the end of ctx,
// let go.
func (s *Service) Run(ctx context.Context) error {
	for {
		select {
		case <-s.gone:
			s.o.Log.Info().Str("device", s.dev.Path()).Msg("detached")
			return s.end(true)
		case <-ctx.Done():
			return s.stop()
		case peer := <-s.control.takers:
			handed, err := s.handOver(peer)
			if handed || err != nil {
				return err
			}
		case g := <-s.control.growers:
			if err := s.grow(g); err != nil {
				return err
			}
		}
	}
}

// stop detaches the device, or leaves it waiting for a successor if it is in use.
func (s *Service) stop() error {
	ctx, cancel := context.WithTimeout(context.Background(), detachTimeout)
	defer cancel()
	err := disconnect(ctx, s.dev, false)
	var inUse *InUseError
	if errors.As(err, &inUse) {
		s.o.Log.Warn().Str("device", s.dev.Path()).Strs("users", inUse.Users).
			Msgf("stopping under a device in use: its requests wait %v for the next attach", s.o.DeadTimeout)
		return s.end(false)
	}
	if err != nil {
		return errors.Join(err, s.end(false))
	}
	<-s.gone
	return s.end(true)
}

// end lets everything go. What was received is answered before.
func (s *Service) end(gone bool) error {
	s.quiesce()
	for _, c := range s.connections {
		if c != nil {
			c.close()
		}
	}
	// Else the state is a successor's. Asked in this order: the kernel says goodbye a
	// moment before the device is gone, and it may go in between.
	if gone && (s.ours() || !s.dev.Connected()) {
		removeState(s.dev)
	}
	return errors.Join(s.source.close(), s.control.close())
}

// quiesce returns when every connection is between two requests and none is under
// way. The kernel itself drives those of a remote, and they go on.
func (s *Service) quiesce() {
	s.mu.Lock()
	s.leaving.Store(true)
	for _, c := range s.connections {
		if c != nil {
			c.leave()
		}
	}
	s.mu.Unlock()
	if s.o.Remote == nil {
		s.keeping.Wait()
	}
}
