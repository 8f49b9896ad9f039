package attach

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"

	"github.com/bttnbd/bttnbd/internal/kernel"
	"github.com/bttnbd/bttnbd/nbd"
)

// An Image is an open one.
type Image struct {
	Export    nbd.Export    // with the name ""
	BlockSize uint32        // bytes of what the kernel is to see as a sector
	Backend   string        // the UUID of the BTT
	File      fs.FileInfo   // what is open, whatever its path names by now
	Timeout   time.Duration // far above what a request takes on this medium
	Latency   bool          // somebody wants to know how long requests take
	io.Closer               // makes everything durable and lets the image go
}

// inode is that of the file that is open, as [State] has it; "" if it is not known.
func (im *Image) inode() string {
	if im.File == nil {
		return ""
	}
	return inode(im.File)
}

// imageSource serves an image to the kernel over socket pairs.
type imageSource struct {
	open   func() (*Image, error)
	log    zerolog.Logger
	image  *Image
	server atomic.Pointer[nbd.Server]
	links  links
	mu     sync.Mutex // of those that change links
}

// newImageSource opens the image. Whoever opens it again gets the same one, or an error.
func newImageSource(open func() (*Image, error), log zerolog.Logger) (*imageSource, error) {
	s := &imageSource{open: open, log: log}
	s.links.all.Store(new([]*link))
	return s, s.reopen()
}

func (s *imageSource) reopen() error {
	image, err := s.open()
	if err != nil {
		return err
	}
	if s.image != nil {
		if err := image.replaces(s.image); err != nil {
			return errors.Join(err, image.Close())
		}
	}
	server, err := nbd.NewServer([]nbd.Export{image.Export}, nbd.Options{Log: s.log, WriteTimeout: -1, Latency: image.Latency})
	if err != nil {
		return errors.Join(err, image.Close())
	}
	s.image = image
	s.server.Store(server)
	return nil
}

// replaces refuses an image that is not the one that was open: the path may name
// another one by now, and that is not what the filesystem on the device knows.
func (im *Image) replaces(was *Image) error {
	switch {
	case im.Backend != was.Backend:
		return fmt.Errorf("the path names another image now, with the UUID %s, and attached was that with %s", im.Backend, was.Backend)
	case im.File != nil && was.File != nil && !os.SameFile(im.File, was.File):
		return fmt.Errorf("the path %s names another file now, with a copy of the image: put that back which was attached, and attach it again", was.File.Name())
	case im.BlockSize != was.BlockSize || im.Export.ReadOnly != was.Export.ReadOnly:
		return errors.New("the image has other blocks, or another mode, than the one that was attached")
	}
	return nil
}

// connect makes a link that is served, and ready for transmission.
func (s *imageSource) connect() (connection, int, error) {
	ours, theirs, err := socketPair()
	if err != nil {
		return nil, -1, err
	}
	c, err := s.serve(ours)
	if err != nil {
		unix.Close(theirs)
		return nil, -1, err
	}
	return c, theirs, nil
}

// serve makes a link of the socket, which is at the beginning of a request.
func (s *imageSource) serve(socket *net.UnixConn) (*imageConn, error) {
	l, err := newLink(socket, &s.links)
	if err != nil {
		return nil, err
	}
	s.change(func(all []*link) []*link { return append(all, l) })
	c := &imageConn{l, s, kernel.Export{}}
	go func() {
		l.err = s.server.Load().ServeConn(context.Background(), l)
		close(l.done)
	}()
	if c.export, err = l.negotiate(); err != nil {
		c.close()
		return nil, err
	}
	return c, nil
}

// change replaces the list of links, which is read without a lock.
func (s *imageSource) change(f func([]*link) []*link) {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := f(slices.Clone(*s.links.all.Load()))
	s.links.all.Store(&all)
}

// imageConn is a link that belongs to a device.
type imageConn struct {
	*link
	source *imageSource
	export kernel.Export
}

func (c *imageConn) offered() (kernel.Export, uint32) { return c.export, c.source.image.BlockSize }

// await returns when nothing of the link is under way any more.
func (c *imageConn) await() (goodbye bool, err error) {
	<-c.done
	return c.requests.disc, c.err
}

// close gives the socket up. What is under way is completed all the same.
func (c *imageConn) close() {
	c.socket.Close()
	<-c.done
	c.source.forget(c.link)
}

// cut is close: the kernel finds the end of the stream.
func (c *imageConn) cut() { c.close() }

// forget takes a link that has ended off the list.
func (s *imageSource) forget(gone *link) {
	s.change(func(all []*link) []*link {
		return slices.DeleteFunc(all, func(l *link) bool { return l == gone })
	})
}

func (s *imageSource) backend() string { return s.image.Backend }

// close logs what was served, and lets the image go.
func (s *imageSource) close() error {
	e := s.server.Load().Stats().Exports[0]
	entry := s.log.Info()
	for i, n := range e.Requests {
		if n > 0 {
			entry = entry.Uint64(nbd.CommandName(i), n)
		}
	}
	var failed uint64
	for _, n := range e.Errors {
		failed += n
	}
	entry.Uint64("fua", s.links.fua.Load()).Uint64("failures", failed).Msg("requests served")
	if err := s.image.Close(); err != nil {
		return fmt.Errorf("closing the image: %w", err)
	}
	return nil
}
