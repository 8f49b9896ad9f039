package monitor

import (
	"context"
	"net"
	"net/http"
	"net/http/pprof"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// What a client may cost. Whoever reaches the listener may ask, and must not be able
// to take from those who read and write.
const (
	maxConnections = 64 // open, each listener
	maxWaiting     = 32 // of those, that have not said yet what they want
	maxAtOnce      = 4  // requests being answered
	askedPerSecond = 20
	askedAtOnce    = 60
	freshPerSecond = 100 // looks for /healthz
	maxHeader      = 8 << 10
	headerTimeout  = 5 * time.Second
	answerTimeout  = 30 * time.Second
)

// Those that wait can never take all connections.
const _ = uint(maxConnections - maxWaiting - maxAtOnce - 1)

// limited refuses what is too much, without looking at it.
func limited(next http.Handler) http.Handler {
	places := make(chan struct{}, maxAtOnce)
	often := rate.NewLimiter(askedPerSecond, askedAtOnce)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		if !often.Allow() {
			h.Set("Retry-After", "1")
			http.Error(w, "too many requests a second: ask less often", http.StatusTooManyRequests)
			return
		}
		select {
		case places <- struct{}{}:
			defer func() { <-places }()
		default:
			h.Set("Retry-After", "1")
			http.Error(w, "too many requests at once: ask again later", http.StatusServiceUnavailable)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// addProfiles serves profiles: those of the moment, and one at a time of those that
// take a while.
func addProfiles(mux *http.ServeMux) {
	mux.Handle("GET /debug/pprof/", ofTheMoment(pprof.Index))
	mux.Handle("GET /debug/pprof/cmdline", ofTheMoment(pprof.Cmdline))
	mux.Handle("GET /debug/pprof/symbol", ofTheMoment(pprof.Symbol))
	place := make(chan struct{}, 1)
	mux.Handle("GET /debug/pprof/profile", oneAtATime(place, pprof.Profile))
	mux.Handle("GET /debug/pprof/trace", oneAtATime(place, pprof.Trace))
}

// ofTheMoment refuses ?seconds=, with which a heap profile too takes a while.
func ofTheMoment(next http.HandlerFunc) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.FormValue("seconds") != "" {
			http.Error(w, "seconds= is for /debug/pprof/profile and /debug/pprof/trace: leave it out, or take two profiles and compare them with go tool pprof -base", http.StatusBadRequest)
			return
		}
		next(w, r)
	})
}

// oneAtATime refuses a second one.
func oneAtATime(place chan struct{}, next http.HandlerFunc) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		select {
		case place <- struct{}{}:
			defer func() { <-place }()
			next(w, r)
		default:
			w.Header().Set("Retry-After", "30")
			http.Error(w, "a profile or trace is being taken: ask again when it is done", http.StatusServiceUnavailable)
		}
	})
}

// recent is the last Status that /healthz looked at. Its zero value is ready.
type recent struct {
	mu    sync.Mutex
	often *rate.Limiter
	last  *Status
}

// look is a Status of now or, for those who ask very often, of a hundredth of a second
// ago.
func (h *recent) look(m *Monitor) *Status {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.often == nil {
		h.often = rate.NewLimiter(freshPerSecond, freshPerSecond)
	}
	if h.often.Allow() || h.last == nil {
		h.last = m.look()
	}
	return h.last
}

// ownHosts answers those who mean this server. A page of somebody else's in a browser
// on this machine can have its own name lead here (DNS rebinding), and would read the
// answer; such a request has that name in Host. Without a Host no browser asks.
func ownHosts(own string, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !isOwnHost(r.Host, own) {
			http.Error(w, "this server is not known by the host name of the request: use localhost, an IP address, or the host name that --metrics-listen was given", http.StatusMisdirectedRequest)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// isOwnHost looks at a Host header: "", localhost, an address or own, with a port or
// without.
func isOwnHost(header, own string) bool {
	host := header
	if h, _, err := net.SplitHostPort(header); err == nil {
		host = h
	}
	host = strings.TrimSuffix(strings.Trim(host, "[]"), ".")
	if host == "" || strings.EqualFold(host, "localhost") || strings.EqualFold(host, strings.TrimSuffix(own, ".")) {
		return true
	}
	_, err := netip.ParseAddr(host)
	return err == nil
}

// waiting are the connections that have not said yet what they want, oldest first.
// Where there are too many the oldest is closed for a new one: who is honest sends its
// request at once.
type waiting struct {
	mu    sync.Mutex
	conns []net.Conn
}

type connKey struct{}

// add is a ConnContext of [http.Server].
func (s *waiting) add(ctx context.Context, c net.Conn) context.Context {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.conns) == maxWaiting {
		s.conns[0].Close()
		s.conns = slices.Delete(s.conns, 0, 1)
	}
	s.conns = append(s.conns, c)
	return context.WithValue(ctx, connKey{}, c)
}

// state is a ConnState of [http.Server].
func (s *waiting) state(c net.Conn, to http.ConnState) {
	if to == http.StateClosed {
		s.remove(c)
	}
}

// until ends the wait of a connection whose request is there.
func (s *waiting) until(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if c, ok := r.Context().Value(connKey{}).(net.Conn); ok {
			s.remove(c)
		}
		next.ServeHTTP(w, r)
	})
}

func (s *waiting) remove(c net.Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if i := slices.Index(s.conns, c); i >= 0 {
		s.conns = slices.Delete(s.conns, i, i+1)
	}
}
