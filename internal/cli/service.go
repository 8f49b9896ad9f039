package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/rs/zerolog"

	"github.com/bttnbd/bttnbd/internal/sandbox"
	"github.com/bttnbd/bttnbd/nbd"
)

// service is what runs between the start and the end of serve.
type service struct {
	serveOptions
	log     zerolog.Logger
	stdout  io.Writer
	hangups <-chan os.Signal // nil: SIGHUP ends the server

	as        *sandbox.Account
	tls       credentials
	access    access
	admission admission
	exports   []served
	listeners listeners
	server    *nbd.Server
	private   string   // directory of a socket for one command, to be removed
	pidFile   *os.File // nil: none was written
	metrics   metrics

	confined bool          // to the sandbox
	atStart  sandbox.Files // what may be opened there
}

// served is an export and its image.
type served struct {
	exportSpec
	image *image
}

// nbdExports are the exports as package nbd knows them.
func nbdExports(all []served) []nbd.Export {
	exports := make([]nbd.Export, 0, len(all))
	for _, e := range all {
		exports = append(exports, e.image.export(e.exportSpec))
	}
	return exports
}

// options are the settings as package nbd knows them, for which 0 is a default and
// less is no bound.
func (s *service) options() nbd.Options {
	o := nbd.Options{
		Log:                   s.log,
		TLSRequired:           s.TLS.value == "require",
		Latency:               s.MetricsListen != "",
		Admit:                 s.admission.admit,
		HandshakeTimeout:      time.Duration(s.HandshakeTimeout),
		IdleTimeout:           time.Duration(s.IdleTimeout),
		WriteTimeout:          time.Duration(s.WriteTimeout),
		MaxConnections:        int(s.MaxConnections),
		MaxConnectionsPerPeer: int(s.MaxConnectionsPerPeer),
		MaxMemory:             int64(s.MaxMemory),
		BusyPoll:              time.Duration(s.BusyPoll.durationFlag),
	}
	if s.TLS.value != "off" {
		o.TLS = s.tls.config()
	}
	if o.HandshakeTimeout == 0 {
		o.HandshakeTimeout = -1
	}
	if o.WriteTimeout == 0 {
		o.WriteTimeout = -1
	}
	if o.BusyPoll == 0 {
		o.BusyPoll = -1
	}
	if o.MaxConnections == 0 {
		o.MaxConnections = -1
	}
	return o
}

// shutdownTimeout bounds the wait for clients that do not take their replies.
const shutdownTimeout = 10 * time.Second

// serve serves until ctx ends, a listener breaks, or that for which it serves is over.
func (s *service) serve(ctx context.Context) (err error) {
	s.admission.put(newRules(s.access, s.exports))
	if s.server, err = nbd.NewServer(nbdExports(s.exports), s.options()); err != nil {
		return err
	}
	for _, e := range s.exports {
		s.announce(e.image, e.name)
	}
	s.watchExports()
	if s.single {
		return s.serveStdio(ctx)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	if err := s.givePIDFile(); err != nil {
		return err
	}
	// The command has the rights of the user, and may come before the server: its
	// connections wait in the socket.
	command, err := s.startCommand()
	if err != nil {
		return err
	}
	if err := s.dropRights(); err != nil {
		return errors.Join(err, command.end(s.log))
	}
	defer s.serveMetrics()()
	var serving sync.WaitGroup
	for _, l := range s.listeners.all() {
		serving.Go(func() {
			if err := s.server.Serve(ctx, l); err != nil {
				cancel(err)
			}
		})
	}
	if err := s.ready(); err != nil {
		cancel(err)
	}
	s.wait(ctx, command)
	err = errors.Join(command.end(s.log), s.stop(ctx))
	cancel(nil)
	serving.Wait()
	return err
}

// wait returns when it is time to stop, and reloads until then.
func (s *service) wait(ctx context.Context, command *command) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-command.done():
			return
		case <-s.hangups:
			s.reload(ctx)
		}
	}
}

// stop ends the connections, and returns why if that was not for a signal.
func (s *service) stop(ctx context.Context) error {
	s.metrics.stopping()
	s.notify(daemon.SdNotifyStopping)
	s.log.Info().Msg("stopping")
	stopBy, release := context.WithTimeout(context.WithoutCancel(ctx), shutdownTimeout)
	defer release()
	if err := s.server.Shutdown(stopBy); err != nil {
		s.log.Warn().Err(err).Msg("clients cut off")
	}
	if cause := context.Cause(ctx); !errors.Is(cause, errInterrupted) {
		return cause
	}
	return nil
}

// givePIDFile writes the pid file, and gives it to the user that the server is to
// become, who then can remove it where the directory lets it.
func (s *service) givePIDFile() error {
	if s.PIDFile == "" {
		return nil
	}
	var err error
	s.pidFile, err = writePIDFile(s.PIDFile, s.as)
	return err
}

// dropRights becomes the user of --user and enters the sandbox.
func (s *service) dropRights() error {
	_, _ = time.Now().Zone() // reads its file while that can be read
	if err := s.as.Become(); err != nil {
		return fmt.Errorf("--user: %w", err)
	}
	if s.Sandbox.value == "off" {
		return nil
	}
	s.atStart = s.files()
	err := sandbox.Restrict(s.atStart)
	s.confined = err == nil
	switch {
	case err != nil && s.Sandbox.value == "require":
		return fmt.Errorf("--sandbox require: %w", err)
	case err != nil:
		s.log.Info().Err(err).Msg("no sandbox")
	default:
		s.log.Debug().Int("landlock", sandbox.Level()).Msg("sandbox entered")
	}
	return nil
}

// files are what a reload, and the end, need: the directories in which images and
// settings are now.
func (s *service) files() sandbox.Files {
	var f sandbox.Files
	if s.config != "" {
		f.Read = append(f.Read, filepath.Dir(s.config))
	}
	if s.TLSCertificates != "" {
		f.Read = append(f.Read, s.TLSCertificates)
	}
	if s.reloadable() {
		for _, e := range s.exports {
			dir := filepath.Dir(e.path)
			switch {
			case e.readOnly:
				f.Read = append(f.Read, dir)
			case e.create != 0:
				f.Create = append(f.Create, dir)
			default:
				f.Write = append(f.Write, dir)
			}
		}
		f.Write = append(f.Write, s.ExportsDir...)
	}
	for _, path := range slices.Concat(s.listeners.sockets(), []string{s.PIDFile}) {
		if path != "" {
			f.Remove = append(f.Remove, filepath.Dir(path))
		}
	}
	s.metrics.files(&f)
	if s.private != "" {
		f.RemoveDirs = append(f.RemoveDirs, filepath.Dir(s.private))
	}
	return f
}

// ready tells everybody who waits that clients may come. Who has passed a socket
// knows its address, and may use stdout for something else; who has given a command
// does.
func (s *service) ready() error {
	if s.run == "" {
		for _, l := range s.listeners.made {
			for _, e := range s.exports {
				if _, err := fmt.Fprintln(s.stdout, s.uri(l.at, e.name)); err != nil {
					return fmt.Errorf("printing the URI: %w", err)
				}
			}
		}
	}
	s.notify(daemon.SdNotifyReady)
	return nil
}

func (s *service) uri(at endpoint, export string) string {
	return at.uri(export, s.TLS.value == "require")
}

func (s *service) notify(state string) {
	if _, err := daemon.SdNotify(false, state); err != nil {
		s.log.Warn().Err(err).Str("state", state).Msg("cannot notify systemd")
	}
}

// close closes the images and the sockets, and removes what was made here. It is
// right at every stage of the start.
func (s *service) close() error {
	var errs []error
	for _, e := range s.exports {
		errs = append(errs, e.image.close())
	}
	errs = append(errs, s.listeners.close(), s.metrics.close())
	if s.pidFile != nil {
		if err := removePIDFile(s.PIDFile, s.pidFile); err != nil {
			s.log.Warn().Err(err).Msg("the pid file stays")
		}
	}
	if s.private != "" {
		errs = append(errs, os.Remove(s.private))
	}
	return errors.Join(errs...)
}
