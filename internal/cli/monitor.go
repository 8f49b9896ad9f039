package cli

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"
	"github.com/spf13/pflag"

	"github.com/bttnbd/bttnbd/internal/monitor"
	"github.com/bttnbd/bttnbd/internal/sandbox"
	"github.com/bttnbd/bttnbd/nbd"
)

// monitorSettings say where to tell what a server does.
type monitorSettings struct {
	MetricsListen string `toml:"metrics-listen"` // "" for nowhere
	PProf         bool   `toml:"pprof"`
}

func (s *monitorSettings) addFlags(f *pflag.FlagSet) {
	f.StringVar(&s.MetricsListen, "metrics-listen", s.MetricsListen, "tell over HTTP what the server does, on `ADDR`: tcp:port (localhost), tcp:host:port or unix:/path")
	f.BoolVar(&s.PProf, "pprof", s.PProf, "with --metrics-listen: serve profiles of the server as well")
}

func (s *monitorSettings) validate() error {
	if s.PProf && s.MetricsListen == "" {
		return usagef("--pprof is for the listener of --metrics-listen: give one, or leave it out")
	}
	_, err := s.addr()
	return err
}

// addr is where to listen; its network is "" for nowhere.
func (s *monitorSettings) addr() (a listenAddr, err error) {
	if s.MetricsListen == "" {
		return a, nil
	}
	return parseHTTPAddr("--metrics-listen "+s.MetricsListen, s.MetricsListen)
}

// metrics is the listener of --metrics-listen, and what answers there. Its zero value
// is that of none.
type metrics struct {
	listener madeListener
	self     *os.File // keeps /proc/self what the sandbox knows, see files
	monitor  *monitor.Monitor
	images   atomic.Pointer[[]monitor.Image]
}

// listen opens the listener, if there is to be one.
func (m *metrics) listen(ctx context.Context, s *monitorSettings, mode os.FileMode, as *sandbox.Account) error {
	a, err := s.addr()
	if err != nil || a.network == "" {
		return err
	}
	if a.network == "unix" {
		if a.address, err = filepath.Abs(a.address); err != nil { // who attaches leaves its directory
			return err
		}
		m.listener, err = listenUnix(a, mode, as)
	} else {
		m.listener, err = listenTCP(ctx, a)
	}
	if err != nil {
		return err
	}
	m.self, err = os.Open("/proc/self")
	return err
}

func (m *metrics) on() bool { return m.listener.Listener != nil }

// files are what the answers need: figures of the process, and for the end the
// directory of the socket. Landlock knows /proc/self by its inode, which the kernel
// would forget and make anew if nobody held it open.
func (m *metrics) files(f *sandbox.Files) {
	if !m.on() {
		return
	}
	f.Read = append(f.Read, "/proc/self")
	if m.listener.socket != nil {
		f.Remove = append(f.Remove, filepath.Dir(m.listener.at.addr.String()))
	}
}

// watch takes what is served from now on.
func (m *metrics) watch(images []monitor.Image) { m.images.Store(&images) }

// serve begins to answer, and returns what ends that. The counters are those of server.
func (m *metrics) serve(s *monitorSettings, log zerolog.Logger, o monitor.Options) (end func()) {
	if !m.on() {
		return func() {}
	}
	b := thisBuild()
	o.Host = m.listener.at.host
	o.Version, o.Revision, o.PID, o.Log, o.Profiles = b.Version, b.Revision, os.Getpid(), log, s.PProf
	if o.Images == nil {
		o.Images = func() []monitor.Image { return *m.images.Load() }
	}
	m.monitor = monitor.New(o)
	ctx, cancel := context.WithCancel(context.Background())
	var serving sync.WaitGroup
	serving.Go(func() { m.monitor.Sample(ctx) })
	for _, l := range append(m.listener.more, m.listener.Listener) {
		serving.Go(func() {
			if err := m.monitor.Serve(ctx, l); err != nil {
				log.Error().Err(err).Stringer("listener", l.Addr()).Msg("no more metrics")
			}
		})
	}
	m.tell(s, log)
	return func() { cancel(); serving.Wait() }
}

// tell logs where, and warns of a listener that others than this machine reach.
func (m *metrics) tell(s *monitorSettings, log zerolog.Logger) {
	e := log.Info().Stringer("listener", m.listener.Addr())
	if page := m.page(); page != "" {
		e.Str("status_page", page)
	}
	e.Bool("pprof", s.PProf).Msg("metrics")
	if a, ok := m.listener.Addr().(*net.TCPAddr); ok && !a.IP.IsLoopback() {
		log.Warn().Stringer("listener", a).Msg("metrics are for everybody who reaches this address, in clear: names, paths and peers are among them")
	}
}

// page is the URL of the status page, as a browser on this machine takes it; "" on a
// unix socket, for which there is none.
func (m *metrics) page() string {
	a, ok := m.listener.Addr().(*net.TCPAddr)
	if !ok {
		return ""
	}
	at := endpoint{addr: a, host: m.listener.at.host}
	return "http://" + net.JoinHostPort(at.hostOf(a), at.port()) + "/"
}

// stopping has /healthz say that the server ends.
func (m *metrics) stopping() {
	if m.monitor != nil {
		m.monitor.Stopping("the server is shutting down")
	}
}

func (m *metrics) close() error {
	if !m.on() {
		return nil
	}
	if m.self != nil {
		m.self.Close()
	}
	return m.listener.close()
}

// watched describes an open image to those who watch it.
func (im *image) watched(name, description, device string) monitor.Image {
	durability := im.durability.String()
	if im.dev.ReadOnly() {
		durability = "none needed"
	}
	path, err := filepath.Abs(im.path)
	if err != nil {
		path = im.path
	}
	return monitor.Image{
		Name: name, Description: description, Path: path, Device: device,
		Size: im.dev.Size(), SectorSize: im.dev.SectorSize(), Format: im.dev.Flavour().Name,
		Durability: durability, ReadOnly: im.dev.ReadOnly(), Arenas: len(im.dev.Arenas()), Engine: im.dev,
	}
}

// watchExports tells the monitor what is served now.
func (s *service) watchExports() {
	var images []monitor.Image
	for _, e := range s.exports {
		images = append(images, e.image.watched(e.name, e.description, ""))
	}
	s.metrics.watch(images)
}

// serveMetrics answers from now on, until it is ended.
func (s *service) serveMetrics() (end func()) {
	return s.metrics.serve(&s.monitorSettings, s.log, monitor.Options{
		Server:     func() *nbd.Server { return s.server },
		MaxBuffers: int64(s.MaxMemory),
	})
}

// metricsMode is that of a unix socket of attach.
const metricsMode = 0o600

// serveMetrics answers from now on, until it is ended. A process that has taken the
// device over gets the address when the other one has ended, and goes on without if
// it does not.
func (o *attachOptions) serveMetrics(ctx context.Context, s attached, log zerolog.Logger) (end func()) {
	if o.replace {
		until, release := context.WithTimeout(ctx, addressTimeout)
		defer release()
		if err := o.listenWhenFree(until); err != nil {
			log.Error().Err(err).Msg("no metrics")
			return func() {}
		}
	}
	is := monitor.Options{
		Server:     s.Server,
		Images:     func() []monitor.Image { return []monitor.Image{o.watched(s.Device().Path())} },
		MaxBuffers: nbd.DefaultMaxMemory,
	}
	end = o.metrics.serve(&o.monitorSettings, log, is)
	context.AfterFunc(ctx, o.metrics.stopping)
	return end
}

// addressTimeout is how long a process that is replaced may take to end.
const addressTimeout = 5 * time.Second

func (o *attachOptions) listenWhenFree(ctx context.Context) error {
	for {
		err := o.metrics.listen(ctx, &o.monitorSettings, metricsMode, nil)
		if err == nil {
			return nil
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
			return err
		}
	}
}

// watched describes what is attached.
func (o *attachOptions) watched(device string) monitor.Image {
	if im := o.image.Load(); im != nil {
		return im.watched("", "", device)
	}
	return monitor.Image{Path: o.source, Device: device}
}
