package monitor

import (
	"context"
	"encoding/json"
	"io"
	"math"
	"net"
	"net/http"
	"net/http/httptest"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/bttnbd/bttnbd/btt"
	"github.com/bttnbd/bttnbd/nbd"
	"github.com/bttnbd/bttnbd/nbd/nbdtest"
	"github.com/bttnbd/bttnbd/pmem"
)

// engine is a device that says what it is told to.
type engine struct {
	stats    btt.Stats
	failures []string
}

func (e *engine) Stats() btt.Stats   { return e.stats }
func (e *engine) Failures() []string { return e.failures }

// busy is an engine of which no count is that of another.
func busy() *engine {
	return &engine{stats: btt.Stats{
		BlocksRead: 101, BlocksWritten: 202, BlocksMarked: 303, PartWrites: 4, Groups: 50, GroupSizes: [btt.GroupSizes]uint64{10, 20, 15, 3, 1, 1},
		Drains: 160, LaneWaits: 7, RTTWaits: 8, LanesRecovered: 9, LanesRetired: 11, ArenasFailed: 12, Medium: pmem.Stats{Rounds: 13, Bytes: 14000},
	}}
}

// hostile is a name that would break every format that does not quote it.
const hostile = "<script>alert(1)</script>\"\\\n\x1b[31m{}"

// bad is where the memory of each export of newMonitor cannot be read.
const bad = 1 << 19

// newMonitor returns a monitor of a server with an export for each engine; the first
// has a hostile name.
func newMonitor(t *testing.T, engines ...*engine) (*Monitor, *nbd.Server) {
	t.Helper()
	var exports []nbd.Export
	var images []Image
	for i, e := range engines {
		name := []string{hostile, "db", "logs"}[i]
		memory := nbdtest.NewMemory(1 << 20)
		memory.MarkBad(bad, 512)
		exports = append(exports, nbd.Export{Name: name, Size: 1 << 20, Backend: memory})
		images = append(images, Image{Name: name, Description: hostile, Path: hostile, Size: 1 << 20, SectorSize: 4096,
			Format: "kernel", Durability: "dax", Arenas: 13, Engine: e})
	}
	server, err := nbd.NewServer(exports, nbd.Options{Latency: true})
	if err != nil {
		t.Fatal(err)
	}
	m := New(Options{
		Server: func() *nbd.Server { return server }, Images: func() []Image { return images },
		MaxBuffers: 1 << 28, Version: "v1", Revision: "abc", PID: 42,
	})
	return m, server
}

// get asks m for a path.
func get(t *testing.T, h http.Handler, path string) (int, string) {
	t.Helper()
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, path, nil))
	return w.Code, w.Body.String()
}

// read has a client read n times from the export, and leaves it connected.
func read(t *testing.T, s *nbd.Server, export string, n int) {
	t.Helper()
	client, server := net.Pipe()
	t.Cleanup(func() { client.Close() })
	go s.ServeConn(context.Background(), server)
	c := &nbdtest.Client{Conn: client}
	if _, err := c.Open(export); err != nil {
		t.Fatal(err)
	}
	for range n {
		if r, err := c.Do(nbdtest.Read(1, 0, 512)); err != nil || r.Err != 0 {
			t.Fatal(r.Err, err)
		}
	}
}

// Goal: who looks after reads have failed with EIO is not told that all is well, on any
// page; the server stays healthy, since to start it again mends nothing.
func TestWarnings(t *testing.T) {
	m, server := newMonitor(t, &engine{}, &engine{})
	if _, body := get(t, m.Handler(), "/"); !strings.Contains(body, "All is well") || !strings.Contains(body, "<title>bttnbd: 2 exports<") {
		t.Errorf("nothing has failed, and the page says:\n%s", body)
	}
	client, end := net.Pipe()
	defer client.Close()
	go server.ServeConn(context.Background(), end)
	c := &nbdtest.Client{Conn: client}
	if _, err := c.Open("db"); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if r, err := c.Do(nbdtest.Read(1, bad, 512)); err != nil || r.Err != nbd.NBD_EIO {
			t.Fatal(r.Err, err)
		}
	}
	const want = "2 requests failed with EIO since the server started; see the log"
	if code, body := get(t, m.Handler(), "/healthz"); code != http.StatusOK || body != "ok: 2 exports\nexport \"db\": "+want+"\n" {
		t.Errorf("reads have failed: %d %q", code, body)
	}
	_, body := get(t, m.Handler(), "/")
	if strings.Contains(body, "All is well") || strings.Count(body, want) != 2 || !strings.Contains(body, "<title>bttnbd: requests failed<") {
		t.Errorf("reads have failed, and the page says:\n%s", body)
	}
}

// Goal: health is that of all arenas, says why not, and ends with the server.
func TestHealth(t *testing.T) {
	well, ill := &engine{}, &engine{failures: []string{"arena 3 takes no writes: because"}}
	m, _ := newMonitor(t, well, well)
	if code, body := get(t, m.Handler(), "/healthz"); code != http.StatusOK || body != "ok: 2 exports\n" {
		t.Errorf("all well: %d %q", code, body)
	}
	m.Stopping("the end")
	if code, body := get(t, m.Handler(), "/healthz"); code != http.StatusServiceUnavailable || body != "the end\n" {
		t.Errorf("at the end: %d %q", code, body)
	}
	m, _ = newMonitor(t, well, ill)
	if code, body := get(t, m.Handler(), "/healthz"); code != http.StatusServiceUnavailable || body != "export \"db\": arena 3 takes no writes: because\n" {
		t.Errorf("an arena has failed: %d %q", code, body)
	}
	for path, want := range map[string]string{"/": "Not well.", "/metrics": "\nbttnbd_healthy 0\n", "/status.json": `"healthy": false`} {
		if code, body := get(t, m.Handler(), path); code != http.StatusOK || !strings.Contains(body, want) {
			t.Errorf("%s: %d, without %q:\n%s", path, code, want, body)
		}
	}
}

// Goal: the registry is consistent and passes the library's own lint rules with names
// from anywhere, and each count arrives under its own name.
func TestMetrics(t *testing.T) {
	m, server := newMonitor(t, &engine{}, busy())
	read(t, server, "db", 5)
	r := prometheus.NewPedanticRegistry()
	if err := r.Register(m); err != nil {
		t.Fatal(err)
	}
	families, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	names := map[string]bool{}
	for _, f := range families {
		names[f.GetName()] = true
	}
	_, body := get(t, m.Handler(), "/metrics")
	for _, want := range []string{
		`bttnbd_blocks_read_total{export="db"} 101`, `bttnbd_blocks_written_total{export="db"} 202`, `bttnbd_blocks_marked_total{export="db"} 303`,
		`bttnbd_part_writes_total{export="db"} 4`, `bttnbd_drains_total{export="db"} 160`, `bttnbd_lane_waits_total{export="db"} 7`,
		`bttnbd_rtt_waits_total{export="db"} 8`, `bttnbd_recovered_lanes{export="db"} 9`, `bttnbd_retired_lanes{export="db"} 11`,
		`bttnbd_failed_arenas{export="db"} 12`, `bttnbd_arenas{export="db"} 13`, `bttnbd_msyncs_total{export="db"} 13`, `bttnbd_msync_bytes_total{export="db"} 14000`,
		`bttnbd_group_blocks_bucket{export="db",le="1"} 10`, `bttnbd_group_blocks_bucket{export="db",le="4"} 45`,
		`bttnbd_group_blocks_bucket{export="db",le="32"} 50`, `bttnbd_group_blocks_sum{export="db"} 202`, `bttnbd_group_blocks_count{export="db"} 50`,
		`bttnbd_requests_total{command="read",export="db"} 5`, `bttnbd_request_bytes_total{command="read",export="db"} 2560`,
		`bttnbd_request_duration_seconds_count{command="read",export="db"} 5`, `bttnbd_request_duration_seconds_bucket{command="read",export="db",le="+Inf"} 5`,
		`bttnbd_request_errors_total{errno="EIO",export="db"} 0`, `bttnbd_export_connections{export="db"} 1`, `bttnbd_export_size_bytes{export="db"} 1.048576e+06`,
		`bttnbd_connections 1`, `bttnbd_connections_accepted_total 1`, `bttnbd_connections_negotiated_total 1`, `bttnbd_buffer_limit_bytes 2.68435456e+08`,
		`go_goroutines `, `process_cpu_seconds_total `,
	} {
		if !strings.Contains(body, "\n"+want) {
			t.Errorf("no %s", want)
		}
	}
	descs := make(chan *prometheus.Desc, 100)
	m.Describe(descs)
	if len(names) != len(descs) {
		t.Errorf("%d metrics are described and %d collected: %v", len(descs), len(names), names)
	}
}

// Goal: names of others do no harm on the page, and every fact is on it.
func TestPage(t *testing.T) {
	m, server := newMonitor(t, busy())
	read(t, server, hostile, 3)
	code, body := get(t, m.Handler(), "/?refresh=7")
	if code != http.StatusOK || strings.Contains(body, "<script") || strings.Contains(body, "ZgotmplZ") {
		t.Errorf("%d\n%s", code, body)
	}
	for _, want := range []string{`http-equiv="refresh" content="7"`, "&lt;script&gt;", "process 42", "v1", "pipe", "<caption>", `scope="row">read`} {
		if !strings.Contains(strings.ReplaceAll(body, "Process", "process"), want) {
			t.Errorf("without %q:\n%s", want, body)
		}
	}
	for _, query := range []string{"", "?refresh=0", "?refresh=99999", "?refresh=%22%3E", "?refresh=-1"} {
		if _, body := get(t, m.Handler(), "/"+query); strings.Contains(body, "http-equiv") {
			t.Errorf("%q refreshes", query)
		}
	}
}

// Goal: what /status.json tells is read back the same.
func TestStatusJSON(t *testing.T) {
	m, server := newMonitor(t, busy(), &engine{})
	read(t, server, "db", 3)
	_, body := get(t, m.Handler(), "/status.json")
	var s Status
	if err := json.Unmarshal([]byte(body), &s); err != nil {
		t.Fatal(err)
	}
	want := m.look()
	for i := range s.Exports {
		want.Exports[i].Engine, want.Exports[i].Recent = nil, s.Exports[i].Recent
	}
	if !reflect.DeepEqual(s.Exports, want.Exports) {
		t.Errorf("%+v\nwant\n%+v", s.Exports, want.Exports)
	}
	if len(s.Clients) != 1 || s.Clients[0].Export != "db" || s.Clients[0].Requests != 3 {
		t.Errorf("clients: %+v", s.Clients)
	}
}

// Goal: rates are what has happened between two looks; an image that was opened again,
// whose counters begin anew, does not make them negative.
func TestCompare(t *testing.T) {
	bounds := []float64{1, 2, 4}
	look := func(at int, requests uint64, buckets ...uint64) *Status {
		return &Status{Now: time.Unix(int64(at), 0), Bounds: bounds, Exports: []Export{{
			Image:    Image{Name: "db"},
			Commands: []Command{{Name: "read", Requests: requests, Bytes: requests * 4096, Buckets: buckets}, {Name: "flush", Requests: 2 * requests, Buckets: []uint64{0, 0, 0, 0}}},
			Errors:   map[string]uint64{"EIO": requests / 10},
			Blocks:   &Blocks{Written: 4 * requests, Groups: [btt.GroupSizes]uint64{0, 0, requests}, LaneWaits: requests / 2, RTTWaits: requests / 5},
		}}}
	}
	for _, c := range []struct {
		name       string
		older, now *Status
		want       Rates
	}{
		{"between", look(100, 1000, 500, 400, 0, 100), look(110, 3000, 500, 2400, 0, 100), Rates{
			Read: Rate{200, 200 * 4096, 1.5, 1.9, 1.99}, Other: Rate{Requests: 400}, Errors: 20, GroupBlocks: 4, LaneWaits: 100, RTTWaits: 40}},
		{"begun anew", look(100, 1000, 500, 400, 0, 100), look(110, 100, 100, 0, 0, 0), Rates{
			Read: Rate{10, 40960, 0.5, 0.9, 0.99}, Other: Rate{Requests: 20}, Errors: 1, GroupBlocks: 4, LaneWaits: 5, RTTWaits: 2}},
		{"new", &Status{Now: time.Unix(100, 0)}, look(110, 100, 0, 0, 0, 100), Rates{
			Read: Rate{10, 40960, 4, 4, 4}, Other: Rate{Requests: 20}, Errors: 1, GroupBlocks: 4, LaneWaits: 5, RTTWaits: 2}},
		{"at once", look(100, 1000, 1, 1, 1, 1), look(100, 1000, 1, 1, 1, 1), Rates{}},
	} {
		c.now.Compare(c.older)
		if got := c.now.Exports[0].Recent; !near(got, c.want) {
			t.Errorf("%s: %+v, want %+v", c.name, got, c.want)
		}
	}
}

// near compares all figures to nine digits.
func near(a, b Rates) bool {
	va, vb := figures(reflect.ValueOf(a)), figures(reflect.ValueOf(b))
	return slices.EqualFunc(va, vb, func(x, y float64) bool { return math.Abs(x-y) <= 1e-9*math.Abs(y) })
}

func figures(v reflect.Value) (all []float64) {
	if v.Kind() == reflect.Float64 {
		return []float64{v.Float()}
	}
	for i := range v.NumField() {
		all = append(all, figures(v.Field(i))...)
	}
	return all
}

// Goal: the monitor shows what was in a while before, not since the start.
func TestWindow(t *testing.T) {
	e := &engine{}
	m, _ := newMonitor(t, e)
	at := m.started
	m.now = func() time.Time { return at }
	m.history = nil
	for range 5 {
		m.sample()
		at = at.Add(samplePause)
		e.stats.LaneWaits += 10
	}
	s := m.Status()
	if s.Window != 10 || s.Exports[0].Recent.LaneWaits != 2 {
		t.Errorf("%v lane waits a second in %v seconds, want 2 in 10", s.Exports[0].Recent.LaneWaits, s.Window)
	}
}

// Goal: whoever asks too much is refused, and those after a while are not.
func TestLimits(t *testing.T) {
	hold, inside := make(chan struct{}), make(chan struct{}, maxAtOnce)
	h := limited(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { inside <- struct{}{}; <-hold }))
	done := make(chan int, maxAtOnce)
	for range maxAtOnce {
		go func() { code, _ := get(t, h, "/"); done <- code }()
		<-inside
	}
	more := make(chan int, 1)
	go func() { code, _ := get(t, h, "/"); more <- code }()
	select {
	case code := <-more:
		if code != http.StatusServiceUnavailable {
			t.Errorf("one more than may be at once: %d", code)
		}
	case <-inside:
		t.Error("one more than may be at once gets in")
	}
	close(hold)
	for range maxAtOnce {
		if code := <-done; code != http.StatusOK {
			t.Errorf("one of those that may: %d", code)
		}
	}
	refused := 0
	for range 10 * askedAtOnce {
		if code, _ := get(t, h, "/"); code == http.StatusTooManyRequests {
			refused++
		} else {
			<-inside
		}
	}
	if refused == 0 {
		t.Errorf("none of %d requests was too many", 10*askedAtOnce)
	}
}

// Goal: only reading, only what there is, and profiles only on request.
func TestPaths(t *testing.T) {
	m, _ := newMonitor(t, busy())
	h := m.Handler()
	for path, want := range map[string]int{"/": 200, "/metrics": 200, "/debug/pprof/": 404, "/debug/pprof/cmdline": 404, "/debug/vars": 404, "/x": 404, "/../etc/passwd": 404} {
		if code, body := get(t, h, path); code != want && (want != 404 || code/100 == 2) {
			t.Errorf("GET %s: %d, want %d\n%s", path, code, want, body)
		}
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/", nil))
	if w.Code != http.StatusMethodNotAllowed {
		t.Errorf("POST: %d", w.Code)
	}
	m.o.Profiles = true
	if code, body := get(t, m.Handler(), "/debug/pprof/"); code != 200 || !strings.Contains(body, "goroutine") {
		t.Errorf("profiles: %d\n%s", code, body)
	}
}

// Goal: clients that open connections and say nothing, or too much, are sent away, and
// the end of the server does not wait for them.
func TestServe(t *testing.T) {
	m, _ := newMonitor(t, busy())
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	over := make(chan error, 1)
	go func() { over <- m.Serve(ctx, l) }()
	resp, err := http.Get("http://" + l.Addr().String() + "/healthz")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != 200 || !resp.Close {
		t.Errorf("%s, closed: %v", resp.Status, resp.Close)
	}
	long, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer long.Close()
	io.WriteString(long, "GET / HTTP/1.1\r\nHost: x\r\nX: "+strings.Repeat("x", 2*maxHeader)+"\r\n\r\n")
	long.SetReadDeadline(time.Now().Add(20 * time.Second))
	if answer, _ := io.ReadAll(long); !strings.HasPrefix(string(answer), "HTTP/1.1 431") {
		t.Errorf("a header of %d bytes: %q", 2*maxHeader, answer)
	}
	silent, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	cancel()
	if err := <-over; err != nil {
		t.Error(err)
	}
}
