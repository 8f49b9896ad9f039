package clienttest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/bttnbd/bttnbd/nbd/nbdtest"
)

// shipped holds what is installed beside the binaries.
const shipped = "../dist"

// metricsOf waits until the server has said where its metrics are, and returns the URL.
func metricsOf(t *testing.T, s *server) string {
	t.Helper()
	said := regexp.MustCompile(`"listener":"([^"]+)".*"message":"metrics"`)
	var m []string
	eventually(t, "the address of the metrics", func() bool {
		m = said.FindStringSubmatch(s.stderr.String())
		return m != nil
	})
	if page := `"status_page":"http://` + m[1] + `/"`; !strings.Contains(s.stderr.String(), page) {
		t.Errorf("no %s in the log:\n%s", page, s.stderr.String())
	}
	return "http://" + m[1]
}

// fetch gets a URL.
func fetch(t *testing.T, url string) (status int, body string) {
	t.Helper()
	resp, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(text)
}

// watched starts a server that tells what it does.
func watched(t *testing.T, flags ...string) (s *server, url string) {
	t.Helper()
	img := create(t, tmpfs(t), 64*mib, 4096)
	s = serve(t, img, append([]string{"--metrics-listen", "tcp:127.0.0.1:0"}, flags...)...)
	return s, metricsOf(t, s)
}

// load has two clients read and write until the test ends.
func load(t *testing.T, s *server) {
	t.Helper()
	stop := make(chan struct{})
	var running sync.WaitGroup
	t.Cleanup(func() { close(stop); running.Wait() })
	for i := range 2 {
		c, _, err := nbdtest.Dial("unix", s.socket, "")
		if err != nil {
			t.Fatal(err)
		}
		running.Go(func() {
			defer c.Close()
			for n := uint64(0); ; n++ {
				select {
				case <-stop:
					return
				default:
				}
				off := (2*(n%1000) + uint64(i)) * 4096
				for _, r := range []nbdtest.Request{nbdtest.Write(1, off, make([]byte, 4096)), nbdtest.Read(2, off, 4096)} {
					if reply, err := c.Do(r); err != nil || reply.Err != 0 {
						t.Errorf("client %d: %v %v", i, reply.Err, err)
						return
					}
				}
			}
		})
	}
}

// promtool runs promtool with input on its stdin, and fails the test unless it is
// content and has nothing to say but what it has checked.
func promtool(t *testing.T, input string, args ...string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "promtool", args...)
	cmd.Stdin = strings.NewReader(input)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Errorf("promtool %q: %v\n%s", args, err, out)
	} else if args[1] == "metrics" && len(bytes.TrimSpace(out)) > 0 {
		t.Errorf("promtool %q: %s", args, out)
	}
}

// Goal: what a server tells is what its clients did, to the request; Prometheus's own
// linter has nothing against it; and the sandbox does not hide the process.
func TestMetrics(t *testing.T) {
	need(t, "promtool")
	s, url := watched(t)
	c, _, err := nbdtest.Dial("unix", s.socket, "")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for i := range uint64(7) {
		if _, err := c.Do(nbdtest.Write(1, i*4096, make([]byte, 4096))); err != nil {
			t.Fatal(err)
		}
	}
	for range 5 {
		if _, err := c.Do(nbdtest.Read(1, 0, 8192)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := c.Do(nbdtest.Read(1, 1<<40, 4096)); err != nil {
		t.Fatal(err)
	}
	_, body := fetch(t, url+"/metrics")
	for _, want := range []string{
		`bttnbd_requests_total{command="write",export=""} 7`, `bttnbd_request_bytes_total{command="write",export=""} 28672`,
		`bttnbd_requests_total{command="read",export=""} 6`, `bttnbd_request_bytes_total{command="read",export=""} 40960`,
		`bttnbd_request_duration_seconds_count{command="read",export=""} 6`, `bttnbd_request_duration_seconds_count{command="write",export=""} 7`,
		`bttnbd_request_errors_total{errno="EINVAL",export=""} 1`, `bttnbd_blocks_written_total{export=""} 7`, `bttnbd_blocks_read_total{export=""} 10`,
		`bttnbd_group_blocks_bucket{export="",le="1"} 7`, `bttnbd_drains_total{export=""} 21`, `bttnbd_connections 1`, `bttnbd_healthy 1`,
	} {
		if !strings.Contains(body, "\n"+want+"\n") {
			t.Errorf("no %s in\n%s", want, body)
		}
	}
	if !regexp.MustCompile(`\nprocess_resident_memory_bytes [1-9]`).MatchString(body) {
		t.Error("nothing of the memory of the process")
	}
	promtool(t, body, "check", "metrics")
}

// metric finds the names of metrics in an expression.
var metric = regexp.MustCompile(`\b(?:bttnbd|process|go)_[a-z_]+`)

// Goal: the alert rules do what their tests say, the dashboard's expressions are right,
// and neither names a metric that a server does not have.
func TestAlertsAndDashboard(t *testing.T) {
	need(t, "promtool")
	promtool(t, "", "check", "rules", filepath.Join(shipped, "alerts.yml"))
	promtool(t, "", "test", "rules", filepath.Join(shipped, "alerts_test.yml"))

	_, url := watched(t)
	_, body := fetch(t, url+"/metrics")
	alerts, err := os.ReadFile(filepath.Join(shipped, "alerts.yml"))
	if err != nil {
		t.Fatal(err)
	}
	expressions := dashboard(t)
	for _, text := range append(expressions, string(alerts)) {
		for _, name := range metric.FindAllString(text, -1) {
			if !strings.Contains(body, "\n"+name+"{") && !strings.Contains(body, "\n"+name+" ") {
				t.Errorf("no server has %s", name)
			}
		}
	}
	for _, m := range regexp.MustCompile(`(?m)^bttnbd_[a-z_]+`).FindAllString(body, -1) {
		base := regexp.MustCompile(`_(bucket|count|sum)$`).ReplaceAllString(m, "")
		if base != "bttnbd_arenas" && !strings.Contains(strings.Join(expressions, "\n"), base) {
			t.Errorf("%s is on no panel of the dashboard", m)
		}
	}
	var rules strings.Builder
	rules.WriteString("groups: [{name: dashboard, rules: [")
	for i, e := range expressions {
		quoted, _ := json.Marshal(strings.ReplaceAll(e, "$__rate_interval", "5m"))
		fmt.Fprintf(&rules, "{record: 'panel:%d', expr: %s},", i, quoted)
	}
	rules.WriteString("]}]\n")
	file := filepath.Join(t.TempDir(), "rules.yml")
	if err := os.WriteFile(file, []byte(rules.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	promtool(t, "", "check", "rules", file)
}

// dashboard returns the expressions of the dashboard, whose panels must have what
// Grafana wants of them, and not lie over each other.
func dashboard(t *testing.T) (expressions []string) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(shipped, "grafana-dashboard.json"))
	if err != nil {
		t.Fatal(err)
	}
	var d struct {
		Title, UID    string
		SchemaVersion int
		Templating    struct{ List []struct{ Name string } }
		Panels        []struct {
			ID          int
			Type, Title string
			GridPos     struct{ X, Y, W, H int }
			Datasource  struct{ Type, UID string }
			Targets     []struct{ Expr, RefID string }
		}
	}
	if err := json.Unmarshal(text, &d); err != nil {
		t.Fatal(err)
	}
	if d.Title == "" || d.UID == "" || d.SchemaVersion < 30 {
		t.Errorf("title %q, uid %q, schema %d", d.Title, d.UID, d.SchemaVersion)
	}
	variables := []string{"__rate_interval"}
	for _, v := range d.Templating.List {
		variables = append(variables, v.Name)
	}
	ids, cells := map[int]bool{}, map[[2]int]string{}
	for _, p := range d.Panels {
		if ids[p.ID] || p.Title == "" || p.Type != "row" && (len(p.Targets) == 0 || p.Datasource.UID != "${datasource}") {
			t.Errorf("panel %d %q: id taken: %v, %d targets, data source %q", p.ID, p.Title, ids[p.ID], len(p.Targets), p.Datasource.UID)
		}
		ids[p.ID] = true
		for x := p.GridPos.X; x < p.GridPos.X+p.GridPos.W; x++ {
			for y := p.GridPos.Y; y < p.GridPos.Y+p.GridPos.H; y++ {
				if other := cells[[2]int{x, y}]; other != "" || x >= 24 {
					t.Fatalf("panel %q lies over %q at %d, %d", p.Title, other, x, y)
				}
				cells[[2]int{x, y}] = p.Title
			}
		}
		for _, q := range p.Targets {
			for _, m := range regexp.MustCompile(`\$\{?(\w+)`).FindAllStringSubmatch(q.Expr, -1) {
				if !slices.Contains(variables, m[1]) {
					t.Errorf("panel %q: no variable %s", p.Title, m[1])
				}
			}
			expressions = append(expressions, q.Expr)
		}
	}
	return expressions
}

// chromium runs a browser that has nobody in front of it.
func chromium(t *testing.T, args ...string) string {
	t.Helper()
	return run(t, "chromium", append([]string{
		"--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-sync",
		"--disable-dev-shm-usage", "--user-data-dir=" + t.TempDir(),
	}, args...)...)
}

// Goal: a browser shows the facts of a server under load, without any script. The
// pictures stay where BTTNBD_SCREENSHOTS says, for people to look at.
func TestStatusPage(t *testing.T) {
	need(t, "chromium")
	s, url := watched(t)
	load(t, s)
	eventually(t, "rates of a server under load", func() bool {
		var st struct {
			Exports []struct {
				Recent struct {
					Write struct {
						P99 float64 `json:"p99_seconds"`
					}
				}
			}
		}
		_, body := fetch(t, url+"/status.json")
		return json.Unmarshal([]byte(body), &st) == nil && st.Exports[0].Recent.Write.P99 > 0
	})
	dom := chromium(t, "--dump-dom", url+"/")
	text := regexp.MustCompile(`<[^>]*>|\s+`).ReplaceAllString(dom, " ")
	text = regexp.MustCompile(` +`).ReplaceAllString(text, " ")
	for _, want := range []string{
		`All is well\.`, `Exports 1 `, `Connections 2 open`, `\(default export\)`, `Atomic block 4096 bytes`, `Format kernel`, `Durability process`,
		` read [1-9][0-9.]* [0-9.]+ [0-9.]+ [µm]?s `, ` write [1-9][0-9.]* [0-9.]+ [0-9.]+ [µm]?s `, `Blocks written together`, ` 1 [0-9.]+ ?k? 100 %`, `unix \(default\) no `,
	} {
		if !regexp.MustCompile(want).MatchString(text) {
			t.Errorf("without %s:\n%s", want, text)
		}
	}
	if strings.Contains(dom, "<script") {
		t.Error("a script on the page")
	}
	pictures := os.Getenv("BTTNBD_SCREENSHOTS")
	if pictures == "" {
		pictures = t.TempDir()
	}
	for name, flags := range map[string][]string{
		"light":  {"--window-size=1100,1200"},
		"dark":   {"--window-size=1100,1200", "--force-dark-mode"},
		"narrow": {"--window-size=500,1800"},
	} {
		file := filepath.Join(pictures, "status-"+name+".png")
		chromium(t, append(flags, "--hide-scrollbars", "--screenshot="+file, url+"/")...)
		if st, err := os.Stat(file); err != nil || st.Size() < 20<<10 {
			t.Errorf("the picture %s: %v, %v", name, st, err)
		}
	}
}

// Goal: a server of which an arena has failed says so, and why, everywhere; and one
// that is well does not.
func TestHealthOfFailedArena(t *testing.T) {
	img := create(t, tmpfs(t), 64*mib, 4096)
	s := serve(t, img, "--metrics-listen", "tcp:127.0.0.1:0")
	url := metricsOf(t, s)
	if status, body := fetch(t, url+"/healthz"); status != http.StatusOK || body != "ok: 1 export\n" {
		t.Errorf("well: %d %s", status, body)
	}
	c, _, err := nbdtest.Dial("unix", s.socket, "")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	// The flog is at the end: the data goes where it belongs, its record does not.
	if err := os.Truncate(img.path, 64*mib-80<<10); err != nil {
		t.Fatal(err)
	}
	reply, err := c.Do(nbdtest.Write(1, 0, make([]byte, 4096)))
	if err != nil || reply.Err == 0 {
		t.Fatalf("a write without a flog: %v %v", reply.Err, err)
	}
	if status, body := fetch(t, url+"/healthz"); status != http.StatusServiceUnavailable || !strings.Contains(body, "arena 0 takes no writes") {
		t.Errorf("failed: %d %s", status, body)
	}
	for path, want := range map[string]string{"/": "Not well.", "/metrics": `bttnbd_failed_arenas{export=""} 1`} {
		if _, body := fetch(t, url+path); !strings.Contains(body, want) {
			t.Errorf("%s: no %s in\n%s", path, want, body)
		}
	}
	if out := try(t, bttnbd, "top", "tcp:"+strings.TrimPrefix(url, "http://")).stdout; !strings.Contains(out, "NOT WELL") {
		t.Errorf("top: %s", out)
	}
	s.kill(t) // it could not close the image
}

// Goal: of a server whose file was cut short under it nobody says that all is well.
func TestHealthOfTruncatedFile(t *testing.T) {
	img := create(t, tmpfs(t), 64*mib, 4096)
	s := serve(t, img, "--metrics-listen", "tcp:127.0.0.1:0")
	url := metricsOf(t, s)
	c, _, err := nbdtest.Dial("unix", s.socket, "")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if out := run(t, bttnbd, "top", url); !strings.HasPrefix(out, "all is well\n") {
		t.Errorf("top: %s", out)
	}
	if r, err := c.Do(nbdtest.Write(1, 0, make([]byte, 4096))); err != nil || r.Err != 0 {
		t.Fatal(r.Err, err)
	}
	if err := os.Truncate(img.path, 32<<10); err != nil {
		t.Fatal(err)
	}
	if r, err := c.Do(nbdtest.Read(1, 0, 4096)); err != nil || r.Err == 0 {
		t.Fatalf("a read of what is gone: %v %v", r.Err, err)
	}
	for path, want := range map[string]string{"/": "Requests have failed.", "/healthz": "1 request failed with EIO"} {
		if _, body := fetch(t, url+path); !strings.Contains(body, want) || strings.Contains(body, "All is well") {
			t.Errorf("%s: no %s in\n%s", path, want, body)
		}
	}
	if out := run(t, bttnbd, "top", strings.TrimPrefix(url, "http://")); !strings.HasPrefix(out, "REQUESTS HAVE FAILED\n") {
		t.Errorf("top: %s", out)
	}
	s.kill(t) // it could not close the image
}

// Goal: who asks without end takes nothing from those who read and write: they get an
// answer, and the server a refusal's worth of work.
func TestMetricsUnderAttack(t *testing.T) {
	s, url := watched(t)
	load(t, s)
	address := strings.TrimPrefix(url, "http://")
	var asking sync.WaitGroup
	var mu sync.Mutex
	codes := map[int]int{}
	for range 8 {
		asking.Go(func() {
			for range 50 {
				resp, err := http.Get(url + "/metrics")
				if err != nil {
					continue
				}
				io.Copy(io.Discard, resp.Body)
				resp.Body.Close()
				mu.Lock()
				codes[resp.StatusCode]++
				mu.Unlock()
			}
		})
	}
	for _, rubbish := range []string{"", "\x00\xff\r\n\r\n", "GET /" + strings.Repeat("a", 1<<16) + " HTTP/1.1\r\n\r\n", "GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\n"} {
		c, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		io.WriteString(c, rubbish)
	}
	asking.Wait()
	if codes[http.StatusOK] == 0 || codes[http.StatusTooManyRequests]+codes[http.StatusServiceUnavailable] == 0 {
		t.Errorf("answers to 400 requests at once: %v", codes)
	}
	eventually(t, "an answer after the attack", func() bool { status, _ := fetch(t, url+"/healthz"); return status == http.StatusOK })
}

// Goal: a terminal that understands no escapes gets none, and one table.
func TestTopOnDumbTerminal(t *testing.T) {
	need(t, "script")
	_, url := watched(t)
	out := run(t, "env", "TERM=dumb", "script", "-qec", bttnbd+" top "+url, "/dev/null")
	if strings.Contains(out, "\x1b") || !strings.HasPrefix(out, "all is well") || !strings.Contains(out, "EXPORT") {
		t.Errorf("%q", out)
	}
}

// Goal: top repaints a terminal until Ctrl-C, and leaves it as it was.
func TestTopOnTerminal(t *testing.T) {
	need(t, "script")
	s, url := watched(t)
	load(t, s)
	// exec: without it Ctrl-C ends the shell between as well, and some shells tell so.
	command := fmt.Sprintf("stty cols 100 rows 20; exec %s top --interval 100ms tcp:%s", bttnbd, strings.TrimPrefix(url, "http://"))
	cmd := exec.CommandContext(t.Context(), "script", "-qec", command, "/dev/null")
	cmd.Env = append(os.Environ(), "TERM=xterm")
	keys, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	screen := new(lockedBuffer)
	cmd.Stdout, cmd.Stderr = screen, screen
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	const picture = "\x1b[H"
	eventually(t, "the third picture", func() bool { return strings.Count(screen.String(), picture) >= 3 })
	io.WriteString(keys, "\x03")
	if err := cmd.Wait(); err != nil {
		t.Errorf("top ended with %v", err)
	}
	out := strings.NewReplacer("^C", "", "\r", "", "\n", "").Replace(screen.String())
	if !strings.HasPrefix(out, "\x1b[?1049h") || !strings.HasSuffix(out, "\x1b[?1049l") {
		t.Errorf("the screen is not taken and given back: %q", out)
	}
	if !strings.Contains(out, "EXPORT") || !strings.Contains(out, "…\x1b[K") {
		t.Errorf("not what was to be seen: %q", out)
	}
}
