package monitor

import (
	"context"
	"encoding/json"
	"fmt"
	stdlog "log"
	"net"
	"net/http"
	"strings"

	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/rs/zerolog"
	"golang.org/x/net/netutil"

	"github.com/bttnbd/bttnbd/internal/units"
)

// Handler answers /, /metrics, /healthz, /status.json and perhaps /debug/pprof/, and
// only so many of them at a time and in a second. /healthz is not among those: whoever
// watches the server must not be told that it is ill because others ask too much.
func (m *Monitor) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", m.page)
	mux.HandleFunc("GET /status.json", m.statusJSON)
	mux.Handle("GET /metrics", promhttp.HandlerFor(m.registry(), m.scrape()))
	if m.o.Profiles {
		addProfiles(mux)
	}
	all := http.NewServeMux()
	all.HandleFunc("GET /healthz", m.healthz)
	all.Handle("/", limited(mux))
	return withHeaders(all)
}

// scrape has /metrics fail where some metrics cannot be made: that none come is noticed,
// by the scraper's up; that some are missing is not.
func (m *Monitor) scrape() promhttp.HandlerOpts {
	return promhttp.HandlerOpts{ErrorHandling: promhttp.HTTPErrorOnError, ErrorLog: gatherLog{m.o.Log}}
}

// withHeaders keeps browsers from doing more with an answer than showing it.
func withHeaders(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Referrer-Policy", "no-referrer")
		h.Set("Cache-Control", "no-store")
		h.Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'")
		next.ServeHTTP(w, r)
	})
}

func (m *Monitor) statusJSON(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	e := json.NewEncoder(w)
	e.SetIndent("", " ")
	e.Encode(m.Status()) // an error is that of a client that has gone
}

// healthz is 200 also where requests have failed with EIO, and says so: whoever starts a
// server again because of a bad block mends nothing, and takes the other exports away.
func (m *Monitor) healthz(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	s := m.health.look(m)
	if !s.Healthy {
		w.WriteHeader(http.StatusServiceUnavailable)
		fmt.Fprintln(w, strings.Join(s.Problems, "\n"))
		return
	}
	fmt.Fprintf(w, "ok: %s\n", units.Plural(uint64(len(s.Exports)), "export"))
	for _, warning := range s.Warnings() {
		fmt.Fprintln(w, warning)
	}
}

// Serve answers on l, which it closes, until ctx ends.
func (m *Monitor) Serve(ctx context.Context, l net.Listener) error {
	var silent waiting
	handler := m.Handler()
	if l.Addr().Network() != "unix" {
		handler = ownHosts(m.o.Host, handler)
	}
	s := &http.Server{
		Handler:           silent.until(handler),
		ConnContext:       silent.add,
		ConnState:         silent.state,
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

// gatherLog takes what promhttp says when metrics cannot be made.
type gatherLog struct{ zerolog.Logger }

// Println logs a line.
func (g gatherLog) Println(v ...any) {
	g.Error().Str("error", strings.TrimSpace(fmt.Sprintln(v...))).Msg("no metrics")
}

// debugLog takes what net/http says about its clients, who must not fill the log.
type debugLog struct{ zerolog.Logger }

// Write logs a line.
func (d debugLog) Write(p []byte) (int, error) {
	d.Debug().Str("error", strings.TrimSpace(string(p))).Msg("metrics: a client")
	return len(p), nil
}
