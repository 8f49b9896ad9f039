package nbd

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"sync"
	"sync/atomic"
)

// catalog is the exports of a server. It never changes; SetExports puts
// another in its place.
type catalog struct {
	byName map[string]*export
	names  []string // sorted, as LIST gives them
}

// export is an Export in service. A catalog that keeps an export has another
// *export for it with the same *service.
type export struct {
	Export
	*service
}

// service is what connections in transmission share of an export, and what
// outlives a change of the catalog.
type service struct {
	size   atomic.Uint64 // bytes; only grows
	limits atomic.Pointer[limits]
	users  sync.WaitGroup // one a connection that has chosen it; grows only while in the catalog
	gone   *counters      // of the connections that have ended; Server.mu guards it
}

// newCatalog returns the catalog of exports. What old has too is kept in
// service. The error tells everything that is wrong with them.
func newCatalog(exports []Export, old *catalog) (*catalog, error) {
	cat := &catalog{byName: make(map[string]*export, len(exports))}
	var errs []error
	for _, e := range exports {
		e = e.withDefaults()
		if err := e.check(); err != nil {
			errs = append(errs, err)
		}
		if cat.byName[e.Name] != nil {
			errs = append(errs, fmt.Errorf("export %.80q: there are two of that name", e.Name))
		}
		cat.byName[e.Name] = &export{Export: e}
		cat.names = append(cat.names, e.Name)
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	slices.Sort(cat.names)
	for name, e := range cat.byName {
		was := old.byName[name]
		switch {
		case was == nil:
			e.service = &service{gone: new(counters)}
		case was.keeps(e):
			e.service = was.service
		default:
			e.service = &service{gone: was.gone} // counters never go back
		}
	}
	return cat, nil
}

// keeps says whether clients of e can go on when e becomes next: all that they
// were told still holds, but that the export has grown.
func (e *export) keeps(next *export) bool {
	if !sameBackend(e.Backend, next.Backend) || next.Size < e.Size {
		return false
	}
	was, is := e.Export, next.Export
	for _, x := range []*Export{&was, &is} {
		x.Backend, x.Size, x.Description, x.BytesPerSecond, x.OpsPerSecond = nil, 0, "", 0, 0
	}
	return was == is
}

// sameBackend is a == b, false where that cannot be asked.
func sameBackend(a, b Backend) bool {
	return reflect.ValueOf(a).Comparable() && reflect.ValueOf(b).Comparable() && a == b
}

// SetExports replaces the exports of the server.
//
//   - One that is new is served from now on.
//   - One that stays (name, Backend by ==, and promises) goes on, its clients
//     undisturbed. Description and rates may change, and Size may grow: new
//     connections are told, and those that are open may use what was added.
//   - One that is missing, or comes with another Backend, other promises or a
//     smaller Size, ends for its clients, as at Shutdown: what they have sent
//     is executed and answered, then the connection is closed. A client that
//     comes back gets what is served under that name then.
//
// It returns when no backend call of an export that has ended is under way, and
// none will follow, so that the caller may close its Backend. When ctx ends
// first, connections to such exports are cut off, whatever they are doing; it
// still waits for their backend calls, and that is no error.
//
// With an error, which tells all that is wrong with exports or that the server
// is shut down, nothing has changed.
func (s *Server) SetExports(ctx context.Context, exports []Export) error {
	s.changing.Lock()
	defer s.changing.Unlock()
	old := s.catalog.Load()
	cat, err := newCatalog(exports, old)
	if err != nil {
		return err
	}

	s.mu.Lock()
	if s.up.Err() != nil {
		s.mu.Unlock()
		return errors.New("the server is shut down")
	}
	cat.begin()
	s.catalog.Store(cat)
	ended := make(map[*service]bool)
	for name, e := range old.byName {
		if now := cat.byName[name]; now == nil || now.service != e.service {
			ended[e.service] = true
		}
	}
	for c := range s.conns {
		if e := c.chosen.Load(); e != nil && ended[e.service] {
			c.interrupt()
		}
	}
	s.mu.Unlock()

	defer context.AfterFunc(ctx, func() { s.cut(ended) })()
	for e := range ended {
		e.users.Wait()
	}
	return nil
}

// begin puts sizes and limits of all exports into force.
func (cat *catalog) begin() {
	for _, e := range cat.byName {
		e.service.size.Store(e.Size)
		e.service.limits.Store(newLimits(&e.Export))
	}
}

// cut closes the connections to ended exports.
func (s *Server) cut(ended map[*service]bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.conns {
		if e := c.chosen.Load(); e != nil && ended[e.service] {
			c.cut()
		}
	}
}

// choose makes the export of that name c's, so that SetExports waits for c. It
// returns nil when there is none for c.
func (s *Server) choose(c *conn, name []byte) *export {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.catalog.Load().byName[string(name)]
	if e == nil || !c.admitted(e.Name) {
		return nil
	}
	if c.chosen.CompareAndSwap(nil, e) {
		e.users.Add(1)
	}
	return e
}

// lookup returns the export of that name, nil when there is none for c.
func (s *Server) lookup(c *conn, name []byte) *export {
	e := s.catalog.Load().byName[string(name)]
	if e == nil || !c.admitted(e.Name) {
		return nil
	}
	return e
}

// admitted says whether c may know of the export of that name.
func (c *conn) admitted(name string) bool {
	if c.s.o.Admit == nil {
		return true
	}
	if c.tls == nil {
		return c.s.o.Admit(name, nil)
	}
	st := c.tls.ConnectionState()
	return c.s.o.Admit(name, &st)
}
