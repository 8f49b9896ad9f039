package monitor

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/rs/zerolog"
)

// serving has m answer on a new listener until the test ends.
func serving(t *testing.T, m *Monitor, network, address string) net.Addr {
	t.Helper()
	l, err := new(net.ListenConfig).Listen(t.Context(), network, address)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	over := make(chan error, 1)
	go func() { over <- m.Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-over; err != nil {
			t.Error(err)
		}
	})
	return l.Addr()
}

// say connects and says text.
func say(t *testing.T, to net.Addr, text string) net.Conn {
	t.Helper()
	c, err := new(net.Dialer).DialContext(t.Context(), to.Network(), to.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := io.WriteString(c, text); err != nil {
		t.Fatal(err)
	}
	return c
}

// Goal: a path that is not UTF-8 stands in the metrics, and takes none of the others
// away.
func TestPathIsNotUTF8(t *testing.T) {
	m, _ := newMonitor(t, &engine{}, &engine{})
	images := m.o.Images()
	images[1].Path, images[1].Device = "/a/bad\xff.btt", "\xfe"
	m.o.Images = func() []Image { return images }
	code, body := get(t, m.Handler(), "/metrics")
	for _, want := range []string{"path=\"/a/bad\uFFFD.btt\"", "device=\"\uFFFD\"", `bttnbd_drains_total{export="db"} 0`} {
		if code != http.StatusOK || !strings.Contains(body, want) {
			t.Errorf("%d, without %s:\n%s", code, want, body)
		}
	}
}

// failing is a collector that cannot.
type failing struct{}

func (failing) Describe(to chan<- *prometheus.Desc) { to <- healthy }
func (failing) Collect(to chan<- prometheus.Metric) {
	to <- prometheus.NewInvalidMetric(healthy, errors.New("the reason"))
}

// Goal: metrics that cannot be made are no answer 200 with fewer of them, and the log
// says why.
func TestMetricsThatFail(t *testing.T) {
	var log strings.Builder
	m, _ := newMonitor(t, &engine{})
	m.o.Log = zerolog.New(&log)
	r := prometheus.NewRegistry()
	r.MustRegister(failing{}, prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "another"}, func() float64 { return 1 }))
	if code, body := get(t, promhttp.HandlerFor(r, m.scrape()), "/metrics"); code != http.StatusInternalServerError || !strings.Contains(body, "the reason") {
		t.Errorf("%d %s", code, body)
	}
	if !strings.Contains(log.String(), `"level":"error"`) || !strings.Contains(log.String(), "the reason") {
		t.Errorf("log: %q", log.String())
	}
}

// Goal: whoever watches the server is told how it is, whatever others ask.
func TestHealthAlways(t *testing.T) {
	m, _ := newMonitor(t, &engine{})
	h := m.Handler()
	refused := 0
	for n := range 3 * askedAtOnce {
		if code, _ := get(t, h, "/status.json"); code == http.StatusTooManyRequests {
			refused++
		}
		if code, body := get(t, h, "/healthz"); code != http.StatusOK {
			t.Fatalf("request %d: %d %s", n, code, body)
		}
	}
	if refused == 0 {
		t.Error("the others: none refused")
	}
}

// Goal: connections that say half of what they want keep nobody out: the oldest goes.
func TestHalfHeaders(t *testing.T) {
	m, _ := newMonitor(t, &engine{})
	at := serving(t, m, "tcp", "127.0.0.1:0")
	first := say(t, at, "GET / HTTP/1.1\r\nX: ")
	for range 2*maxConnections - 1 {
		say(t, at, "GET / HTTP/1.1\r\nX: ")
	}
	answer, err := io.ReadAll(say(t, at, "GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"))
	if err != nil || !strings.HasPrefix(string(answer), "HTTP/1.1 200") {
		t.Errorf("%q %v", answer, err)
	}
	if answer, _ := io.ReadAll(first); len(answer) > 0 {
		t.Errorf("the first is answered: %q", answer)
	}
}

// held is a listener of pipes that counts those it has handed out.
type held struct {
	net.Listener
	pipes    chan net.Conn
	accepted atomic.Int64
}

func (h *held) Addr() net.Addr { return &net.UnixAddr{Name: "held", Net: "unix"} }
func (h *held) Close() error   { close(h.pipes); return nil }

func (h *held) Accept() (net.Conn, error) {
	c, ok := <-h.pipes
	if !ok {
		return nil, net.ErrClosed
	}
	h.accepted.Add(1)
	return c, nil
}

// Goal: clients that do not take their answers hold so many connections, and no more.
func TestConnections(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, _ := newMonitor(t, &engine{})
		const all, want = 80, 64
		l := &held{pipes: make(chan net.Conn, all)}
		ctx, cancel := context.WithCancel(t.Context())
		over := make(chan error, 1)
		go func() { over <- m.Serve(ctx, l) }()
		for range all {
			here, there := net.Pipe()
			defer here.Close()
			l.pipes <- there
			go io.WriteString(here, "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
			synctest.Wait()
		}
		if n := l.accepted.Load(); n != want {
			t.Errorf("%d connections of %d are open, want %d", n, all, want)
		}
		cancel()
		if err := <-over; err != nil {
			t.Error(err)
		}
	})
}

// Goal: of those that wait the oldest makes room.
func TestOldestGoes(t *testing.T) {
	var s waiting
	var first net.Conn
	for i := range maxWaiting + 1 {
		here, there := net.Pipe()
		defer here.Close()
		defer there.Close()
		if i == 0 {
			first = there
		}
		s.add(t.Context(), here)
	}
	first.SetReadDeadline(time.Now().Add(20 * time.Second))
	if _, err := first.Read(make([]byte, 1)); err != io.EOF || len(s.conns) != maxWaiting || maxWaiting > 32 {
		t.Errorf("%d wait; the first: %v", len(s.conns), err)
	}
}

// Goal: a request that is being answered is not taken for one that waits.
func TestAnsweredIsNotWaiting(t *testing.T) {
	var s waiting
	h := s.until(http.NotFoundHandler())
	for range 2 * maxWaiting {
		here, there := net.Pipe()
		defer here.Close()
		defer there.Close()
		r := httptest.NewRequestWithContext(s.add(t.Context(), here), http.MethodGet, "/", nil)
		h.ServeHTTP(httptest.NewRecorder(), r)
	}
	if len(s.conns) != 0 {
		t.Errorf("%d wait", len(s.conns))
	}
	here, there := net.Pipe()
	defer there.Close()
	s.add(t.Context(), here)
	if s.state(here, http.StateActive); len(s.conns) != 1 {
		t.Error("one that has said a byte does not wait any more")
	}
	if s.state(here, http.StateClosed); len(s.conns) != 0 {
		t.Error("one that is closed waits")
	}
}

// Goal: no profile takes a while but a CPU profile and a trace, and of those one.
func TestProfiles(t *testing.T) {
	m, _ := newMonitor(t, &engine{})
	m.o.Profiles = true
	h := m.Handler()
	for _, path := range []string{"heap", "goroutine", "mutex", "cmdline", "symbol", ""} {
		if code, body := get(t, h, "/debug/pprof/"+path+"?seconds=1"); code != http.StatusBadRequest || !strings.Contains(body, "leave it out") {
			t.Errorf("%s: %d %s", path, code, body)
		}
	}
	if code, _ := get(t, h, "/debug/pprof/heap"); code != http.StatusOK {
		t.Errorf("heap: %d", code)
	}
	hold, inside := make(chan struct{}), make(chan struct{}, 2)
	one := oneAtATime(make(chan struct{}, 1), func(http.ResponseWriter, *http.Request) { inside <- struct{}{}; <-hold })
	done := make(chan int, 1)
	go func() { code, _ := get(t, one, "/"); done <- code }()
	<-inside
	second := make(chan int, 1)
	go func() { code, _ := get(t, one, "/"); second <- code }()
	select {
	case code := <-second:
		if code != http.StatusServiceUnavailable {
			t.Errorf("a second one: %d", code)
		}
	case <-inside:
		t.Error("a second one gets in")
	}
	close(hold)
	if code := <-done; code != http.StatusOK {
		t.Errorf("the first: %d", code)
	}
}

// Goal: on TCP only who means this server is answered, which a page of somebody else's
// in a browser does not; a unix socket no browser reaches.
func TestHosts(t *testing.T) {
	m, _ := newMonitor(t, &engine{})
	m.o.Host = "db.example.net"
	tcp := serving(t, m, "tcp", "127.0.0.1:0")
	unix := serving(t, m, "unix", filepath.Join(t.TempDir(), "m.sock"))
	ask := func(at net.Addr, host string) string {
		answer, err := io.ReadAll(say(t, at, "GET /healthz HTTP/1.1\r\nHost: "+host+"\r\n\r\n"))
		if err != nil {
			t.Fatal(err)
		}
		status, _, _ := strings.Cut(strings.TrimPrefix(string(answer), "HTTP/1.1 "), " ")
		return status
	}
	for _, host := range []string{"localhost", "LOCALHOST:10810", "localhost.:1", "127.0.0.1", "10.1.2.3:80", "[::1]", "[::1]:10810", "[fe80::1%25eth0]:1", "db.example.net:10810", "DB.example.net.", ""} {
		if got := ask(tcp, host); got != "200" {
			t.Errorf("Host: %s: %s", host, got)
		}
	}
	for _, host := range []string{"evil.example", "evil.example:10810", "127.0.0.1.evil.example", "localhost.evil.example", "example.net", "xdb.example.net", "127.1"} {
		if got := ask(tcp, host); got != "421" {
			t.Errorf("Host: %s: %s", host, got)
		}
		if got := ask(unix, host); got != "200" {
			t.Errorf("unix, Host: %s: %s", host, got)
		}
	}
}
