package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
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
	interval time.Duration
}

// topDefault is where the units of dist/ have their listener of metrics.
const topDefault = "unix:/run/bttnbd/metrics.sock"

func newTop() *cobra.Command {
	var o topOptions
	cmd := &cobra.Command{
		Use:   "top [flags] [ADDR]",
		Short: "Show what a running server does, live",
		Long: `Show what a server does that was started with --metrics-listen: its exports with
requests a second, throughput, latencies, blocks in a group and waits, and its
connections. Press Ctrl-C to end.

ADDR is what the server was given there: tcp:port, tcp:host:port or unix:/path; a path
alone will do. Without one it is ` + topDefault + `.

The first figures, and those of --once, are of the server's last 5 to 10 seconds, later
ones of the interval. A percentile lies within a fifth of the truth.`,
		Example: `  bttnbd top tcp:10810
  bttnbd top --once /run/bttnbd/metrics.sock
  bttnbd top --json tcp:10810 | jq .exports[].recent`,
		Annotations: map[string]string{exitStatus: commonStatus},
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 1 {
				return usagef("%d arguments given, %q is one too many: %s", len(args), args[1], cmd.UseLine())
			}
			if o.interval < 100*time.Millisecond {
				return usagef("--interval %v: choose 100ms or more", o.interval)
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
	cmd.Flags().DurationVar(&o.interval, "interval", 2*time.Second, "time between two looks")
	return cmd
}

// statusClient asks one server for its status.
type statusClient struct {
	given string
	http  http.Client
}

// newStatusClient understands an ADDR. It does not connect.
func newStatusClient(given string) (*statusClient, error) {
	address := given
	if !strings.HasPrefix(given, "unix:") && !strings.HasPrefix(given, "tcp:") && strings.Contains(given, "/") {
		address = "unix:" + given
	}
	a, err := parseHTTPAddr(given, address)
	if err != nil {
		return nil, err
	}
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, a.network, a.address)
	}
	return &statusClient{given, http.Client{
		Timeout:   statusTimeout,
		Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true},
	}}, nil
}

const (
	statusTimeout = 10 * time.Second
	maxStatus     = 64 << 20 // bytes; a server with a thousand exports sends 3 MB
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
	text, err := io.ReadAll(io.LimitReader(resp.Body, maxStatus))
	if err != nil {
		return nil, nil, c.explain(err)
	}
	if resp.StatusCode != http.StatusOK {
		return nil, nil, fmt.Errorf("%s: the server answers %s: %s", c.given, resp.Status, plain(strings.TrimSpace(string(text[:min(len(text), 200)]))))
	}
	var s monitor.Status
	if err := json.Unmarshal(text, &s); err != nil || s.Schema != schema {
		return nil, nil, fmt.Errorf("%s: that is no status of a bttnbd that this one understands: give the address of its --metrics-listen", c.given)
	}
	return &s, text, nil
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
		_, err := stdout.Write(text)
		return err
	case o.once || !isTerminal(stdout):
		_, err := io.WriteString(stdout, topText(now))
		return err
	}
	screen := stdout.(*os.File)
	io.WriteString(screen, enterScreen)
	defer io.WriteString(screen, leaveScreen)
	ticks := time.NewTicker(o.interval)
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

// topText is the status as tables.
func topText(s *monitor.Status) string {
	t := newTable()
	state := "all is well"
	if !s.Healthy {
		state = "NOT WELL"
	}
	t.text("bttnbd %s, pid %d, up %v: %s\n", plain(s.Version), s.PID, s.Now.Sub(s.Started).Round(time.Second), state)
	for _, p := range s.Problems {
		t.text("  %s\n", plain(p))
	}
	t.text("%d exports, %d connections, %s of large buffers; the last %.1f s\n", len(s.Exports), s.Server.Connections, units.Short(uint64(max(0, s.Server.Buffers))), s.Window)
	t.head("EXPORT\tCONN\tREAD/s\tMiB/s\tp50\tp99\tWRITE/s\tMiB/s\tp50\tp99\tOTHER/s\tERR/s\tGROUP\tLANE/s\tRTT/s")
	for _, e := range s.Exports {
		r := e.Recent
		t.row(exportLabel(e.Name), e.Connections,
			monitor.Rounded(r.Read.Requests), monitor.Speed(r.Read.Bytes), monitor.Seconds(r.Read.P50), monitor.Seconds(r.Read.P99),
			monitor.Rounded(r.Write.Requests), monitor.Speed(r.Write.Bytes), monitor.Seconds(r.Write.P50), monitor.Seconds(r.Write.P99),
			monitor.Rounded(r.Other.Requests), monitor.Rounded(r.Errors), monitor.Rounded(r.GroupBlocks),
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

// exportLabel is a name on a line.
func exportLabel(name string) string {
	if name == "" {
		return "(default)"
	}
	if r := []rune(name); len(r) > 32 {
		name = string(r[:31]) + "…"
	}
	return plain(name)
}
