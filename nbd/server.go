package nbd

import (
	"context"
	"errors"
	"fmt"
	"net"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"
)

// Server serves exports to any number of clients.
type Server struct {
	o       Options
	catalog atomic.Pointer[catalog] // SetExports changes it, under changing and mu

	up      context.Context // ends with Shutdown
	stop    context.CancelFunc
	running sync.WaitGroup // one a connection, one a Serve; grows only while up

	busyPoll *busyPoll // nil: nobody polls

	memory      atomic.Int64 // bytes that are out of the large pools
	longOptions atomic.Int64 // see maxLongOptions

	complaints *rate.Limiter // of lines about clients; see complain
	unlogged   atomic.Uint64 // how many were not logged since

	changing sync.Mutex // one SetExports at a time

	mu       sync.Mutex // guards what follows, and the end of up
	conns    map[*conn]struct{}
	peers    map[string]int // connections by conn.from, where that is limited
	accepted uint64         // connections ever
	refused  uint64         // of those, how many found no place or lost it again
	served   uint64         // of those that ended, how many had reached transmission
}

// NewServer returns a server of exports, of which it keeps copies. The error
// tells everything that is wrong with them.
func NewServer(exports []Export, o Options) (*Server, error) {
	s := &Server{
		o:     o.withDefaults(),
		conns: make(map[*conn]struct{}),
		peers: make(map[string]int),

		complaints: rate.NewLimiter(complaintsPerSecond, complaintsAtOnce),
	}
	s.busyPoll = newBusyPoll(s.o.BusyPoll)
	s.up, s.stop = context.WithCancel(context.Background())
	if o.TLSRequired && o.TLS == nil {
		return nil, errors.New("TLS is required, and there is no TLS configuration")
	}
	cat, err := newCatalog(exports, &catalog{})
	if err != nil {
		return nil, err
	}
	cat.begin()
	s.catalog.Store(cat)
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
	prepare(nc)
	c := s.addConn(nc)
	if c == nil {
		nc.Close()
		return
	}
	go func() {
		if err := s.serve(c); err != nil {
			s.complain(err, nc, "connection broken off")
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
		s.o.Log.Debug().Str("client", peer(c.wire.Conn)).Str("export", c.exp.Name).Msg("transmission begins")
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
		c.cut()
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

// removeConn moves the counters of c to its export and closes it. Its memory and
// its place are free before its client can see the end and come again.
func (s *Server) removeConn(c *conn) {
	c.release()
	s.forget(c)
	c.close()
	if e := c.chosen.Load(); e != nil {
		e.users.Done()
	}
	s.running.Done()
}

// forget makes the place of c free.
func (s *Server) forget(c *conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.conns, c)
	if n := s.peers[c.from]; n > 1 {
		s.peers[c.from] = n - 1
	} else {
		delete(s.peers, c.from)
	}
	if e := c.serving.Load(); e != nil {
		s.served++
		e.gone.add(&c.n)
	}
}

// Stats returns what the server has counted so far.
func (s *Server) Stats() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := Stats{Connections: len(s.conns), Accepted: s.accepted, Refused: s.refused, Negotiated: s.served, Memory: s.memory.Load()}
	cat := s.catalog.Load()
	for _, name := range cat.names {
		e := cat.byName[name]
		var total counters
		total.add(e.gone)
		open := 0
		for c := range s.conns {
			if now := c.serving.Load(); now != nil && now.gone == e.gone {
				open++
				total.add(&c.n)
			}
		}
		st.Negotiated += uint64(open)
		st.Exports = append(st.Exports, ExportStats{Name: name, Connections: open, Counters: total.snapshot()})
	}
	return st
}
