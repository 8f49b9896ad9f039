package cli

import (
	"bytes"
	"encoding/json"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// badName is a file that a terminal would obey: ESC, U+009B, U+202E, and a byte that is
// no UTF-8.
const badName = "a\x1b[31m\u009b2J\u202e\xff.btt"

// obeyed reports whether there is anything in text that a terminal would obey.
func obeyed(text string) bool { return strings.ContainsAny(text, "\x1b\u009b\u202e\x07\r") }

// Goal: what cannot be printed is seen instead, and all else stays as it is.
func TestVisible(t *testing.T) {
	for _, c := range []struct{ text, want string }{
		{badName, `a\x1b[31m\u009b2J\u202e\xff.btt`},
		{"", ""},
		{`Ünï\x "quoted".btt`, `Ünï\x "quoted".btt`},
		{"a\nb", `a\nb`},
		{"\uFFFD", "\uFFFD"},
	} {
		if got := visible(c.text); got != c.want {
			t.Errorf("%q: %s, want %s", c.text, got, c.want)
		}
	}
	want := map[string]string{"a\u009b": "\u202e\x7f\U000e0001ü\uFFFD"}
	var b bytes.Buffer
	if err := writeJSON(&b, want); err != nil {
		t.Fatal(err)
	}
	var got map[string]string
	if err := json.Unmarshal(b.Bytes(), &got); err != nil || len(got) != 1 || got["a\u009b"] != want["a\u009b"] || obeyed(b.String()) || strings.Contains(b.String(), "\x7f") {
		t.Errorf("%q %v", b.String(), err)
	}
	if got, want := shellWord("it's\x1b\\"), `$'it\'s\033\\'`; got != want {
		t.Errorf("%s, want %s", got, want)
	}
}

// Goal: the path of an image reaches no terminal as it is, in no report and no error.
func TestPathsAreVisible(t *testing.T) {
	path := filepath.Join(t.TempDir(), badName)
	undo := path + ".undo"
	for _, args := range [][]string{
		{"info", path}, // there is none yet
		{"create", "--size", "32M", "--progress", "always", path},
		{"create", "--size", "32M", path},
		{"info", path}, {"info", "--json", path}, {"info", "--fast", path},
		{"check", path}, {"check", "--json", path}, {"check", "--progress", "always", path},
		{"check", "--html", path, path},
		{"damage"},
		{"info", path}, {"check", path}, {"check", "--dry-run", path},
		{"check", "--repair", "--backup", undo, path},
		{"check", "--restore", undo, path},
		{"check", "--restore", undo, path},
		{"convert", "--padding", "64", path}, {"convert", "--parent-uuid", "random", path}, {"grow", "--size", "64M", path}, {"grow", "--size", "64M", path},
		{path}, {"serve", path, path}, {"top", path},
	} {
		if args[0] == "damage" {
			damage(t, path)
			continue
		}
		var out, errs bytes.Buffer
		Main(NewRoot(), args, &out, &errs)
		text := strings.ReplaceAll(out.String()+errs.String(), "\r"+visible(path)+": ", "") // of progress
		if obeyed(text) || strings.Contains(text, "\xff") || text == "" {
			t.Errorf("%q: %q", args, text)
		}
	}
}

// damage has map entry 0 of a new image of 32 MiB name a block that is not there.
func damage(t *testing.T, path string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt([]byte{0xff, 0xff, 0xff, 0xff}, 33501184); err != nil {
		t.Fatal(err)
	}
}

// hostileServer answers each connection with text.
func hostileServer(t *testing.T, text string) string {
	t.Helper()
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			c.Read(make([]byte, 4096))
			c.Write([]byte(text))
			c.Close()
		}
	}()
	return "tcp:" + l.Addr().String()
}

// Goal: a server that is hostile to top has no way to the terminal, not by the status
// line, a redirection, broken HTTP or the JSON itself.
func TestTopHostile(t *testing.T) {
	const status = `{"schema":1,"version":"v` + "\u009b2J" + `","pid":1,"extra":["` + "\u202e" + `"]` + "\r\t}"
	for _, text := range []string{
		"HTTP/1.1 500 \u009b31m BAD \x1b[2J\r\n\r\n\x1b[2J",
		"HTTP/1.1 302 \x1b[2JF\r\nLocation: http://a/\x1b[2J\r\nContent-Length: 0\r\n\r\n",
		"HTTP/1.1 302 F\r\nLocation: \x1b[2J://x\r\nContent-Length: 0\r\n\r\n",
		"\x1b[2J\u009b31m\r\n\r\n",
		"HTTP/1.1 200 OK\r\n\x1b[31mA: b\r\nTransfer-Encoding: \x1b[2Jx\r\n\r\n",
		"HTTP/1.1 200 OK\r\n\r\n" + status,
	} {
		at := hostileServer(t, text)
		for _, flag := range []string{"--once", "--json"} {
			var out, errs bytes.Buffer
			Main(NewRoot(), []string{"top", flag, at}, &out, &errs)
			if all := out.String() + errs.String(); obeyed(all) || all == "" {
				t.Errorf("%q, %s: %q", text, flag, all)
			}
			if flag == "--json" && out.Len() > 0 && !strings.Contains(out.String(), `"version":"v\u009b2J"`) {
				t.Errorf("not the same JSON: %q", out.String())
			}
		}
	}
}

// Goal: a status that would take all memory is refused, and one of as many exports as a
// server may well have is not.
func TestTopTooMuch(t *testing.T) {
	body := ""
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.Write([]byte(body)) }))
	defer server.Close()
	client, err := newStatusClient(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	list := func(one string, n int) string { return strings.TrimSuffix(strings.Repeat(one+",", n), ",") }
	for _, c := range []struct{ body, want string }{
		{`{"schema":1,"exports":[` + list("{}", maxListed) + `]}`, ""},
		{`{"schema":1,"exports":[` + list("{}", maxListed+1) + `]}`, "too many exports"},
		{`{"schema":1,"exports":[` + list("null", maxListed+1) + `]}`, "too many exports"},
		{`{"schema":1,"clients":[` + list("{}", maxListed+1) + `]}`, "too many exports or connections"},
		{`{"schema":1,"exports":null,"clients":null}`, ""},
		{`{"schema":1,"exports":3}`, "no status of a bttnbd"},
		{`{"schema":1,"exports":[3]}`, "no status of a bttnbd"},
		{`{"schema":1}` + strings.Repeat(" ", maxStatus), "longer than 16 MiB"},
	} {
		body = c.body
		s, _, err := client.ask(t.Context())
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%d bytes, %.40s…: %v, want %q", len(c.body), c.body, err, c.want)
		}
		if err == nil && strings.Contains(c.body, "{}") && len(s.Exports) != maxListed {
			t.Errorf("%d exports", len(s.Exports))
		}
	}
}

// Goal: the socket of attach is for its owner alone.
func TestMetricsMode(t *testing.T) {
	path := filepath.Join(t.TempDir(), "m.sock")
	var o attachOptions
	o.MetricsListen = "unix:" + path
	if err := o.listenWhenFree(t.Context()); err != nil {
		t.Fatal(err)
	}
	defer o.metrics.close()
	st, err := os.Stat(path)
	if err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("%v %v", st.Mode(), err)
	}
}

// Goal: a file that has come to be since the check began is not overwritten, and is
// named once.
func TestPictureIsThere(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a")
	if err := os.WriteFile(path, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	f := pictureFile{flag: "--svg", path: path}
	err := f.save([]byte("<svg>"))
	if err == nil || !strings.HasPrefix(err.Error(), "--svg "+path+": is there already") || strings.Count(err.Error(), "--svg") != 1 {
		t.Errorf("%v", err)
	}
	if b, err := os.ReadFile(path); err != nil || string(b) != "mine" {
		t.Errorf("%q %v", b, err)
	}
}
