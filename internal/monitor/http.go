package monitor

import (
	"context"
	"encoding/json"
	"fmt"
	stdlog "log"
	"net"
	"net/http"
	"net/http/pprof"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/rs/zerolog"
	"golang.org/x/net/netutil"
	"golang.org/x/time/rate"
)

// What a client may cost. Whoever reaches the listener may ask, and must not be able
// to take from those who read and write.
const (
	maxConnections = 32 // open, each listener
	maxAtOnce      = 4  // requests being answered
	askedPerSecond = 20
	askedAtOnce    = 60
	maxHeader      = 8 << 10
	headerTimeout  = 5 * time.Second
	answerTimeout  = 30 * time.Second
)

// Handler answers /, /metrics, /healthz, /status.json and perhaps /debug/pprof/, and
// only so many of them at a time and in a second.
func (m *Monitor) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", m.page)
	mux.HandleFunc("GET /status.json", m.statusJSON)
	mux.HandleFunc("GET /healthz", m.healthz)
	mux.Handle("GET /metrics", promhttp.HandlerFor(m.registry(), promhttp.HandlerOpts{ErrorHandling: promhttp.ContinueOnError}))
	if m.o.Profiles {
		mux.HandleFunc("GET /debug/pprof/", pprof.Index)
		mux.HandleFunc("GET /debug/pprof/cmdline", pprof.Cmdline)
		mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
		mux.HandleFunc("GET /debug/pprof/symbol", pprof.Symbol)
		mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	}
	return limited(mux)
}

// limited refuses what is too much, without looking at it.
func limited(next http.Handler) http.Handler {
	places := make(chan struct{}, maxAtOnce)
	often := rate.NewLimiter(askedPerSecond, askedAtOnce)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Referrer-Policy", "no-referrer")
		h.Set("Cache-Control", "no-store")
		h.Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'")
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

func (m *Monitor) statusJSON(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	e := json.NewEncoder(w)
	e.SetIndent("", " ")
	e.Encode(m.Status()) // an error is that of a client that has gone
}

func (m *Monitor) healthz(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	s := m.look()
	if !s.Healthy {
		w.WriteHeader(http.StatusServiceUnavailable)
		fmt.Fprintln(w, strings.Join(s.Problems, "\n"))
		return
	}
	fmt.Fprintf(w, "ok: %d exports\n", len(s.Exports))
}

// Serve answers on l, which it closes, until ctx ends.
func (m *Monitor) Serve(ctx context.Context, l net.Listener) error {
	s := &http.Server{
		Handler:           m.Handler(),
		ReadHeaderTimeout: headerTimeout,
		ReadTimeout:       headerTimeout,
		WriteTimeout:      answerTimeout,
		MaxHeaderBytes:    maxHeader,
		ErrorLog:          stdlog.New(debugLog{m.o.Log}, "", 0),
	}
	s.SetKeepAlivesEnabled(false) // an idle client holds nothing
	defer context.AfterFunc(ctx, func() { s.Close() })()
	if err := s.Serve(netutil.LimitListener(l, maxConnections)); err != http.ErrServerClosed {
		return err
	}
	return nil
}

// debugLog takes what net/http says about its clients, who must not fill the log.
type debugLog struct{ zerolog.Logger }

// Write logs a line.
func (d debugLog) Write(p []byte) (int, error) {
	d.Debug().Str("error", strings.TrimSpace(string(p))).Msg("metrics: a client")
	return len(p), nil
}
