package cli

import (
	"bytes"
	"encoding/json"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/bttnbd/bttnbd/internal/monitor"
)

// look is a status with names that are not friendly.
func look(at time.Time, reads uint64) *monitor.Status {
	bounds := []float64{0.001, 0.002}
	return &monitor.Status{
		Schema: 1, Version: "v1", PID: 42, Started: at.Add(-time.Hour), Now: at, Window: 5, Bounds: bounds,
		Problems: []string{"arena 3 \x1b[2J"},
		Exports: []monitor.Export{{
			Image:    monitor.Image{Name: "db\x1b]0;owned\x07"},
			Commands: []monitor.Command{{Name: "read", Requests: reads, Bytes: reads << 20, Buckets: []uint64{0, reads, 0}}},
		}},
		Clients: []monitor.Client{{Peer: "10.0.0.1:5\n", Chosen: true, Export: "", TLS: "TLS 1.3", Since: at.Add(-time.Minute)}, {Peer: "unix"}},
	}
}

// Goal: everything stands in the tables, and nothing from outside reaches the terminal.
func TestTopText(t *testing.T) {
	now := time.Now()
	s := look(now, 300)
	s.Compare(look(now.Add(-3*time.Second), 0))
	text := topText(s)
	for _, want := range []string{"bttnbd v1, pid 42, up 1h0m0s\n1 export, 0 connections, ", "arena 3 ?[2J", "db?]0;owned?", "100", "1.5 ms", "2.0 ms", "10.0.0.1:5?", "(default)", "TLS 1.3", "1m0s", "(handshake)"} {
		if !strings.Contains(text, want) {
			t.Errorf("without %q:\n%s", want, text)
		}
	}
	if strings.ContainsAny(text, "\x1b\x07") {
		t.Errorf("escapes: %q", text)
	}
	if !strings.HasPrefix(text, "NOT WELL\n") {
		t.Errorf("not the verdict first:\n%s", text)
	}
}

// Goal: who has a narrow terminal sees the verdict, the errors, and the end of a long
// name; requests that failed are said, and all is well only where there are none.
func TestTopNarrow(t *testing.T) {
	s := look(time.Now(), 1)
	s.Healthy, s.Problems = true, nil
	s.Exports[0].Name = "a/very/long/path/to/one/of/many/images-7.btt"
	if text := topText(s); !strings.HasPrefix(text, "all is well\n") {
		t.Errorf("all is well, and it says\n%s", text)
	}
	s.Exports[0].Errors = map[string]uint64{"EIO": 3, "EINVAL": 4}
	s.Exports[0].Recent.Errors = 1.5
	text := topText(s)
	if !strings.HasPrefix(text, "REQUESTS HAVE FAILED\n") || !strings.Contains(text, "images-7.btt\": 3 requests failed with EIO") {
		t.Errorf("requests have failed, and it says\n%s", text)
	}
	narrow := strings.ReplaceAll(fit(text, 40, 24), clearLine, "")
	for _, want := range []string{"REQUESTS HAVE FAILED\r\n", "many/images-7.btt ", " ERR/s", "  1.50"} {
		if !strings.Contains(narrow, want) {
			t.Errorf("40 columns are without %q:\n%s", want, narrow)
		}
	}
}

// Goal: text is cut to the screen, in both directions, and says that it was.
func TestFit(t *testing.T) {
	got := strings.ReplaceAll(fit("0123456789\nü\nc\nd\n", 5, 3), clearLine, "")
	if want := "0123…\r\nü\r\n… 2 …"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

// Goal: top asks over TCP and unix sockets, by every spelling of their addresses, and
// says what is wrong where nobody answers, or somebody else.
func TestTop(t *testing.T) {
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/status.json" {
			http.NotFound(w, r)
			return
		}
		json.NewEncoder(w).Encode(look(time.Now(), 1))
	})
	overTCP := httptest.NewServer(handler)
	defer overTCP.Close()
	socket := filepath.Join(t.TempDir(), "m.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	overUnix := &httptest.Server{Listener: l, Config: &http.Server{Handler: handler}}
	overUnix.Start()
	defer overUnix.Close()
	other := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.Write([]byte(`{"schema": 2}`)) }))
	defer other.Close()
	strange := httptest.NewServer(http.NotFoundHandler())
	defer strange.Close()
	t.Chdir(filepath.Dir(socket))
	if err := os.Symlink(socket, "near.sock"); err != nil {
		t.Fatal(err)
	}
	port := func(s *httptest.Server) string { return strconv.Itoa(s.Listener.Addr().(*net.TCPAddr).Port) }
	tcp := func(s *httptest.Server) string { return "tcp:" + s.Listener.Addr().String() }

	for _, c := range []struct {
		args   []string
		status int
		want   string // in what is printed
	}{
		{[]string{tcp(overTCP)}, 0, "EXPORT"},
		{[]string{"--once", "unix:" + socket}, 0, "EXPORT"},
		{[]string{socket}, 0, "EXPORT"},
		{[]string{"near.sock"}, 0, "EXPORT"},
		{[]string{"./near.sock"}, 0, "EXPORT"},
		{[]string{port(overTCP)}, 0, "EXPORT"},
		{[]string{"localhost:" + port(overTCP)}, 0, "EXPORT"},
		{[]string{overTCP.URL}, 0, "EXPORT"},
		{[]string{overTCP.URL + "/status.json"}, 0, "EXPORT"},
		{[]string{"https://localhost:1/"}, exitUsage, "has no TLS"},
		{[]string{"localhost:99999"}, exitUsage, "port"},
		{[]string{"--interval", "5", socket}, exitUsage, "5s"},
		{[]string{"--interval", "soon", socket}, exitUsage, "write 5s"},
		{[]string{"--json", socket}, 0, `"pid":42`},
		{[]string{socket + "x"}, 1, "no server answers there"},
		{[]string{"tcp:127.0.0.1:1"}, 1, "no server answers there"},
		{[]string{tcp(other)}, 1, "no status of a bttnbd"},
		{[]string{tcp(strange)}, 1, "404"},
		{[]string{"vsock:1"}, exitUsage, "unknown kind of address"},
		{[]string{socket, socket}, exitUsage, "one too many"},
		{[]string{"--interval", "1ms", socket}, exitUsage, "choose 100ms or more"},
	} {
		var out, errs bytes.Buffer
		status := Main(NewRoot(), append([]string{"top"}, c.args...), &out, &errs)
		if text := out.String() + errs.String(); status != c.status || !strings.Contains(text, c.want) {
			t.Errorf("top %q: status %d, want %d with %q:\n%s", c.args, status, c.status, c.want, text)
		}
	}
}

// Goal: wrong settings of the listener are refused before anything is touched.
func TestMetricsSettings(t *testing.T) {
	for _, c := range []struct {
		s    monitorSettings
		want string // "" for none
	}{
		{monitorSettings{}, ""},
		{monitorSettings{MetricsListen: "tcp:9000"}, ""},
		{monitorSettings{MetricsListen: "unix:m.sock", PProf: true}, ""},
		{monitorSettings{PProf: true}, "--pprof is for the listener"},
		{monitorSettings{MetricsListen: "vsock:1"}, "--metrics-listen vsock:1: unknown kind"},
		{monitorSettings{MetricsListen: "9000"}, "--metrics-listen 9000: unknown kind"},
		{monitorSettings{MetricsListen: "tcp:99999"}, "--metrics-listen tcp:99999: port"},
		{monitorSettings{MetricsListen: "unix:"}, "--metrics-listen unix:: no path"},
	} {
		err := c.s.validate()
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: %v, want %q", c.s, err, c.want)
		}
	}
	a, err := (&monitorSettings{MetricsListen: "tcp:9000"}).addr()
	if err != nil || a.address != "localhost:9000" {
		t.Errorf("a port alone is one of %s (%v)", a.address, err)
	}
}
