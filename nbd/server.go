package nbd

import (
	"context"
	"errors"
	"fmt"
	"net"
	"runtime/debug"
	"slices"
	"sync"
	"time"

	"github.com/rs/zerolog"
)

// DefaultHandshakeTimeout is how long a client may take from connecting to
// transmission where [Options] do not say.
const DefaultHandshakeTimeout = 30 * time.Second

// Options of a [Server]. The zero value is good.
type Options struct {
	// Log receives connections at debug level, and what went wrong with them
	// and with accepting at warn level. The zero Logger is silent.
	Log zerolog.Logger

	// HandshakeTimeout bounds the time from connecting to transmission. 0
	// means DefaultHandshakeTimeout; a negative one is no bound.
	HandshakeTimeout time.Duration
}

// Server serves exports to any number of clients.
type Server struct {
	o       Options
	exports map[string]*export
	names   []string // of exports, sorted, as LIST gives them

	up      context.Context // ends with Shutdown
	stop    context.CancelFunc
	running sync.WaitGroup // one a connection, one a Serve; grows only while up

	buffers sync.Pool // *[bufferSize]byte
	pieces  sync.Pool // *[maxHeadSize + pieceSize]byte

	mu       sync.Mutex // guards what follows, and the end of up
	conns    map[*conn]struct{}
	accepted uint64 // connections ever
	served   uint64 // of those that ended, how many had reached transmission
}

// export is an Export in service.
type export struct {
	Export
	gone counters // of the connections that have ended; Server.mu guards it
}

// NewServer returns a server of exports, of which it keeps copies. The error
// tells everything that is wrong with them.
func NewServer(exports []Export, o Options) (*Server, error) {
	if o.HandshakeTimeout == 0 {
		o.HandshakeTimeout = DefaultHandshakeTimeout
	}
	s := &Server{
		o:       o,
		exports: make(map[string]*export, len(exports)),
		conns:   make(map[*conn]struct{}),
		buffers: sync.Pool{New: func() any { return new([bufferSize]byte) }},
		pieces:  sync.Pool{New: func() any { return new([maxHeadSize + pieceSize]byte) }},
	}
	s.up, s.stop = context.WithCancel(context.Background())
	var errs []error
	for _, e := range exports {
		e = e.withDefaults()
		if err := e.check(); err != nil {
			errs = append(errs, err)
		}
		if s.exports[e.Name] != nil {
			errs = append(errs, fmt.Errorf("export %.80q: there are two of that name", e.Name))
		}
		s.exports[e.Name] = &export{Export: e}
		s.names = append(s.names, e.Name)
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	slices.Sort(s.names)
	return s, nil
}

// Serve accepts connections from l and serves each on a goroutine of its own,
// until ctx ends or [Server.Shutdown] is called (nil) or someone else closes l
// (an error). It closes l. The end of ctx stops the accepting alone;
// connections stay until their clients leave or Shutdown ends them. Errors of
// accepting, as when the process is out of file descriptors, are logged and
// waited out.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	defer l.Close()
	if !s.enter() {
		return nil
	}
	defer s.running.Done()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(s.up, cancel)()
	defer context.AfterFunc(ctx, func() { l.Close() })()

	pause := minAcceptPause
	for {
		nc, err := l.Accept()
		if err == nil {
			pause = minAcceptPause
			s.start(nc)
			continue
		}
		if ctx.Err() != nil || s.up.Err() != nil {
			return nil
		}
		if errors.Is(err, net.ErrClosed) {
			return fmt.Errorf("accept on %v: %w", l.Addr(), err)
		}
		if pause == minAcceptPause {
			s.o.Log.Warn().Err(err).Stringer("listener", l.Addr()).Msg("cannot accept a connection; trying again")
		}
		if !wait(ctx, pause) {
			return nil
		}
		pause = min(2*pause, maxAcceptPause)
	}
}

// How long Serve waits after an error of Accept, doubling from the first to
// the second while errors follow one another.
const (
	minAcceptPause = 5 * time.Millisecond
	maxAcceptPause = time.Second
)

// wait returns true after d, false as soon as ctx ends.
func wait(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// start serves nc on a goroutine of its own and logs how that ended.
func (s *Server) start(nc net.Conn) {
	c := s.addConn(nc)
	if c == nil {
		nc.Close()
		return
	}
	go func() {
		if err := s.serve(c); err != nil {
			s.o.Log.Warn().Err(err).Str("client", peer(nc)).Msg("connection broken off")
		}
	}()
}

// ServeConn serves the one connection nc and closes it. It returns nil when
// the client left in an orderly way, or when ctx ended or [Server.Shutdown]
// was called and everything received until then was answered. A client that
// does not take its answers holds ServeConn until Shutdown cuts it off.
func (s *Server) ServeConn(ctx context.Context, nc net.Conn) error {
	c := s.addConn(nc)
	if c == nil {
		nc.Close()
		return nil
	}
	defer context.AfterFunc(ctx, c.interrupt)()
	return s.serve(c)
}

// serve runs c from greeting to close.
func (s *Server) serve(c *conn) error {
	// Backends may lie on mapped memory and turn its faults into errors.
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer s.removeConn(c)

	err := c.handshake()
	if err == nil {
		s.o.Log.Debug().Str("client", peer(c.nc)).Str("export", c.exp.Name).Msg("transmission begins")
		err = c.transmission()
	}
	return c.end(err)
}

// Shutdown stops accepting, lets every connection finish and answer the
// requests it has received, and closes it. When ctx ends first, connections
// are closed as they are, and the error is that of ctx. In both cases no
// backend call is under way when Shutdown returns, and none will follow.
func (s *Server) Shutdown(ctx context.Context) error {
	s.mu.Lock()
	s.stop()
	for c := range s.conns {
		c.interrupt()
	}
	s.mu.Unlock()

	over := make(chan struct{})
	go func() {
		s.running.Wait()
		close(over)
	}()
	select {
	case <-over:
		return nil
	case <-ctx.Done():
	}
	s.mu.Lock()
	for c := range s.conns {
		c.nc.Close()
	}
	s.mu.Unlock()
	<-over
	return fmt.Errorf("shutdown with clients still connected: %w", context.Cause(ctx))
}

// enter counts one more that Shutdown has to wait for. It returns false when
// the server is shut down.
func (s *Server) enter() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.up.Err() != nil {
		return false
	}
	s.running.Add(1)
	return true
}

// addConn returns a connection over nc, nil when the server is shut down.
func (s *Server) addConn(nc net.Conn) *conn {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.up.Err() != nil {
		return nil
	}
	s.running.Add(1)
	c := newConn(s, nc)
	s.conns[c] = struct{}{}
	s.accepted++
	return c
}

// removeConn closes c and moves its counters to its export.
func (s *Server) removeConn(c *conn) {
	c.close()
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.conns, c)
	if e := c.serving.Load(); e != nil {
		s.served++
		e.gone.add(&c.n)
	}
	s.running.Done()
}

// Stats returns what the server has counted so far.
func (s *Server) Stats() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := Stats{Connections: len(s.conns), Accepted: s.accepted, Negotiated: s.served}
	for _, name := range s.names {
		e := s.exports[name]
		var total counters
		total.add(&e.gone)
		open := 0
		for c := range s.conns {
			if c.serving.Load() == e {
				open++
				total.add(&c.n)
			}
		}
		st.Negotiated += uint64(open)
		st.Exports = append(st.Exports, ExportStats{Name: name, Connections: open, Counters: total.snapshot()})
	}
	return st
}

// peer names the client's end of nc for the log.
func peer(nc net.Conn) string {
	if a := nc.RemoteAddr(); a != nil {
		if s := a.String(); s != "" && s != "@" {
			return s
		}
		return a.Network()
	}
	return "?"
}
