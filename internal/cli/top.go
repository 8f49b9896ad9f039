package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unicode"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/bttnbd/bttnbd/internal/monitor"
	"github.com/bttnbd/bttnbd/internal/units"
)

type topOptions struct {
	once     bool
	json     bool
	interval intervalFlag
}

// topDefault is where the units of dist/ have their listener of metrics.
const topDefault = "unix:/run/bttnbd/metrics.sock"

func newTop() *cobra.Command {
	o := topOptions{interval: intervalFlag(2 * time.Second)}
	cmd := &cobra.Command{
		Use:   "top [flags] [ADDR]",
		Short: "Show what a running server does, live",
		Long: `Show what a server does that was started with --metrics-listen: its exports with
requests a second, throughput, latencies, blocks in a group and waits, and its
connections. Press Ctrl-C to end.

ADDR is what the server was given there: tcp:port, tcp:host:port or unix:/path. A port,
host:port, the URL of the status page, or the path of a socket alone will do. Without
one it is ` + topDefault + `.

On a terminal that cannot be painted over (TERM=dumb) it prints one table, as with
--once.

The first figures, and those of --once, are of the server's last 5 to 10 seconds, later
ones of the interval. A percentile lies within a fifth of the truth.`,
		Example: `  bttnbd top 10810
  bttnbd top --once /run/bttnbd/metrics.sock
  bttnbd top --json http://localhost:10810/ | jq .exports[].recent`,
		Annotations: map[string]string{exitStatus: commonStatus},
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 1 {
				return usagef("%d arguments given, %q is one too many: %s", len(args), args[1], cmd.UseLine())
			}
			address := topDefault
			if len(args) == 1 {
				address = args[0]
			}
			ask, err := newStatusClient(address)
			if err != nil {
				return err
			}
			return runTop(cmd.Context(), cmd.OutOrStdout(), ask, o)
		},
	}
	cmd.Flags().BoolVar(&o.once, "once", false, "print one table and exit, as always where stdout is no terminal")
	cmd.Flags().BoolVar(&o.json, "json", false, "print one JSON object and exit")
	cmd.Flags().Var(&o.interval, "interval", "let DURATION pass between two looks: 5s, 500ms …")
	return cmd
}

// intervalFlag is a flag that takes the time between two looks, of at least 100 ms.
type intervalFlag time.Duration

func (i *intervalFlag) Type() string   { return "DURATION" }
func (i *intervalFlag) String() string { return time.Duration(*i).String() }

func (i *intervalFlag) Set(text string) error {
	d, err := time.ParseDuration(text)
	if _, number := strconv.ParseFloat(text, 64); number == nil {
		return fmt.Errorf("a time needs its unit: write %ss for seconds", text)
	}
	switch {
	case err != nil:
		return errors.New("no time: write 5s, or 500ms")
	case d < 100*time.Millisecond:
		return errors.New("choose 100ms or more")
	}
	*i = intervalFlag(d)
	return nil
}

// statusClient asks one server for its status.
type statusClient struct {
	given string
	http  http.Client
}

// newStatusClient understands an ADDR. It does not connect.
func newStatusClient(given string) (*statusClient, error) {
	address, err := statusAddress(given)
	if err != nil {
		return nil, err
	}
	a, err := parseHTTPAddr(given, address)
	if err != nil {
		return nil, err
	}
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, a.network, a.address)
	}
	return &statusClient{given, http.Client{
		Timeout:       statusTimeout,
		Transport:     &http.Transport{DialContext: dial, DisableKeepAlives: true, DisableCompression: true},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}, nil
}

// statusAddress is what somebody calls the listener as --metrics-listen would: a port, a
// host and port, a URL, or the path of a socket.
func statusAddress(given string) (string, error) {
	if rest, ok := strings.CutPrefix(given, "http://"); ok {
		host, _, _ := strings.Cut(rest, "/")
		if _, _, err := net.SplitHostPort(host); err != nil {
			host = net.JoinHostPort(strings.Trim(host, "[]"), "80")
		}
		return "tcp:" + host, nil
	}
	if strings.HasPrefix(given, "https://") {
		return "", usagef("%s: the listener of --metrics-listen has no TLS: write http://", given)
	}
	if digits(given) {
		return "tcp:" + given, nil
	}
	kind, _, colon := strings.Cut(given, ":")
	switch {
	case colon && slices.Contains([]string{"unix", "tcp", "vsock", "fd", "systemd"}, kind):
		return given, nil // all the same to parseHTTPAddr, which refuses some
	case !colon, strings.Contains(given, "/"):
		return "unix:" + given, nil
	case digits(given[strings.LastIndexByte(given, ':')+1:]):
		return "tcp:" + given, nil
	}
	return "unix:" + given, nil
}

// digits reports whether there is nothing else.
func digits(s string) bool { return s != "" && strings.Trim(s, "0123456789") == "" }

const (
	statusTimeout = 10 * time.Second
	maxStatus     = 16 << 20 // bytes: some 5,000 exports, of 3 KB each
	maxListed     = 1 << 16  // exports, and connections, of 256 bytes or more each
)

// ask returns the status, also as it came.
func (c *statusClient) ask(ctx context.Context) (*monitor.Status, []byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://localhost/status.json", nil)
	if err != nil {
		return nil, nil, err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, nil, c.explain(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, maxStatus+1))
	if err != nil {
		return nil, nil, c.explain(err)
	}
	if resp.StatusCode != http.StatusOK {
		return nil, nil, fmt.Errorf("%s: the server answers %s: %s", c.given, plain(resp.Status), plain(strings.TrimSpace(string(text[:min(len(text), 200)]))))
	}
	if len(text) > maxStatus {
		return nil, nil, fmt.Errorf("%s: the status is longer than %s: read /metrics of a server with so many exports", c.given, units.Short(maxStatus))
	}
	s, err := parseStatus(text)
	if errors.Is(err, errTooMany) {
		return nil, nil, fmt.Errorf("%s: %w: read /metrics of a server with so many", c.given, err)
	}
	if err != nil || s.Schema != schema {
		return nil, nil, fmt.Errorf("%s: that is no status of a bttnbd that this one understands: give the address of its --metrics-listen", c.given)
	}
	return s, text, nil
}

// parseStatus is for a status of anybody's. A few bytes of it can be a struct of a
// hundred times as many, so that length alone is no bound on memory.
func parseStatus(text []byte) (*monitor.Status, error) {
	var s struct {
		monitor.Status
		Exports few[monitor.Export] `json:"exports"`
		Clients few[monitor.Client] `json:"clients"`
	}
	err := json.Unmarshal(text, &s)
	s.Status.Exports, s.Status.Clients = s.Exports, s.Clients
	return &s.Status, err
}

var errTooMany = errors.New("the status has too many exports or connections")

// few is a list of at most maxListed.
type few[T any] []T

// UnmarshalJSON is that of a [json.Unmarshaler].
func (f *few[T]) UnmarshalJSON(text []byte) error {
	d := json.NewDecoder(bytes.NewReader(text))
	if t, err := d.Token(); err != nil || t == nil {
		return err // null
	} else if t != json.Delim('[') {
		return errors.New("no list")
	}
	for d.More() {
		if len(*f) == maxListed {
			return errTooMany
		}
		var one T
		if err := d.Decode(&one); err != nil {
			return err
		}
		*f = append(*f, one)
	}
	return nil
}

func (c *statusClient) explain(err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("%s: no server answers there: start one with --metrics-listen, and give the same address here", c.given)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%s: no permission to connect: use the account of the server", c.given)
	}
	var op *net.OpError
	if errors.As(err, &op) {
		err = op
	}
	return fmt.Errorf("%s: %w", c.given, err)
}

func runTop(ctx context.Context, stdout io.Writer, client *statusClient, o topOptions) error {
	now, text, err := client.ask(ctx)
	if err != nil {
		return err
	}
	switch {
	case o.json:
		_, err := stdout.Write(visibleJSON(text))
		return err
	case o.once || !isTerminal(stdout) || os.Getenv("TERM") == "dumb":
		_, err := io.WriteString(stdout, topText(now))
		return err
	}
	screen := stdout.(*os.File)
	io.WriteString(screen, enterScreen)
	defer io.WriteString(screen, leaveScreen)
	ticks := time.NewTicker(time.Duration(o.interval))
	defer ticks.Stop()
	for was := now; ; {
		if err != nil {
			fmt.Fprintf(screen, "%s%s\r\n", home, plain(err.Error())+clearLine)
		} else if err := paint(screen, topText(now)); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil // that is how one leaves
		case <-ticks.C:
		}
		if now, _, err = client.ask(ctx); err == nil {
			if now.PID == was.PID {
				now.Compare(was)
			}
			was = now
		}
	}
}

// What a terminal is told (ECMA-48, and the alternate screen of xterm).
const (
	enterScreen = "\x1b[?1049h\x1b[?25l\x1b[2J"
	leaveScreen = "\x1b[?25h\x1b[?1049l"
	home        = "\x1b[H"
	clearLine   = "\x1b[K"
	clearBelow  = "\x1b[J"
)

// paint puts text over what is on the screen, cut off where that ends. Nothing is
// cleared before, so that it does not flicker.
func paint(screen *os.File, text string) error {
	width, height := 80, 24
	if size, err := unix.IoctlGetWinsize(int(screen.Fd()), unix.TIOCGWINSZ); err == nil && size.Col > 0 && size.Row > 0 {
		width, height = int(size.Col), int(size.Row)
	}
	_, err := io.WriteString(screen, home+fit(text, width, height)+clearBelow)
	return err
}

// fit cuts text to a screen, and ends each line but the last with what a terminal
// needs there.
func fit(text string, width, height int) string {
	lines := strings.Split(strings.TrimRight(text, "\n"), "\n")
	if len(lines) > height {
		lines = append(lines[:height-1], fmt.Sprintf("… %d more lines: make the window larger, or use --once", len(lines)-height+1))
	}
	for i, l := range lines {
		if r := []rune(l); len(r) > width {
			l = string(r[:width-1]) + "…"
		}
		lines[i] = l + clearLine
	}
	return strings.Join(lines, "\r\n")
}

// plain is s without anything that a terminal might obey: names come from others.
func plain(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return '?'
	}, s)
}

// topText is the status as tables. What matters stands first on a line, and on the first
// lines: a terminal may be narrow.
func topText(s *monitor.Status) string {
	t := newTable()
	state := "all is well"
	warnings := s.Warnings()
	switch {
	case !s.Healthy:
		state = "NOT WELL"
	case len(warnings) > 0:
		state = "REQUESTS HAVE FAILED"
	}
	t.text("%s\n", state)
	for _, p := range slices.Concat(s.Problems, warnings) {
		t.text("  %s\n", plain(p))
	}
	t.text("bttnbd %s, pid %d, up %v\n", plain(s.Version), s.PID, s.Now.Sub(s.Started).Round(time.Second))
	t.text("%s, %s, %s of large buffers; the last %.1f s\n", units.Plural(uint64(len(s.Exports)), "export"), units.Plural(uint64(max(0, s.Server.Connections)), "connection"), units.Short(uint64(max(0, s.Server.Buffers))), s.Window)
	t.head("EXPORT\tERR/s\tREAD/s\tMiB/s\tp50\tp99\tWRITE/s\tMiB/s\tp50\tp99\tOTHER/s\tCONN\tGROUP\tLANE/s\tRTT/s")
	for _, e := range s.Exports {
		r := e.Recent
		t.row(exportLabel(e.Name), monitor.Rounded(r.Errors),
			monitor.Rounded(r.Read.Requests), monitor.Speed(r.Read.Bytes), monitor.Seconds(r.Read.P50), monitor.Seconds(r.Read.P99),
			monitor.Rounded(r.Write.Requests), monitor.Speed(r.Write.Bytes), monitor.Seconds(r.Write.P50), monitor.Seconds(r.Write.P99),
			monitor.Rounded(r.Other.Requests), e.Connections, monitor.Rounded(r.GroupBlocks),
			monitor.Rounded(r.LaneWaits), monitor.Rounded(r.RTTWaits))
	}
	t.head("PEER\tEXPORT\tTLS\tOPEN FOR\tREQUESTS\tBYTES\tERRORS")
	for _, c := range s.Clients {
		export := "(handshake)"
		if c.Chosen {
			export = exportLabel(c.Export)
		}
		t.row(plain(c.Peer), export, orDash(plain(c.TLS)), s.Now.Sub(c.Since).Round(time.Second),
			units.Count(c.Requests), units.Short(c.Bytes), units.Count(c.Errors))
	}
	t.gap()
	return t.b.String()
}

// maxLabel is how much of a name is shown, in characters.
const maxLabel = 24

// exportLabel is a name on a line. Of a long one it is the end, in which names that are
// paths differ.
func exportLabel(name string) string {
	if name == "" {
		return "(default)"
	}
	if r := []rune(name); len(r) > maxLabel {
		name = "…" + string(r[len(r)-maxLabel+1:])
	}
	return plain(name)
}
