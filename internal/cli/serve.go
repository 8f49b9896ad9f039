package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"sync"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/google/uuid"
	"github.com/rs/zerolog"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/bttnbd/bttnbd/internal/units"
	"github.com/bttnbd/bttnbd/layout"
	"github.com/bttnbd/bttnbd/nbd"
	"github.com/bttnbd/bttnbd/pmem"
)

type serveOptions struct {
	args       []string // [NAME=]PATH
	listen     []string
	readOnly   bool
	create     sizeFlag
	sectorSize choiceFlag
	durability choiceFlag
	logLevel   choiceFlag

	sectorSizeGiven bool
}

func (o *serveOptions) addFlags(f *pflag.FlagSet) {
	o.sectorSize = newChoice("4096", "512")
	o.durability = newChoice("auto", "process")
	o.logLevel = choiceFlag{"info", []string{"debug", "info", "warn", "error"}}
	f.StringArrayVar(&o.listen, "listen", nil, "listen on `ADDR`: unix:/path, tcp:host:port or tcp:port (localhost); may be repeated")
	f.BoolVar(&o.readOnly, "read-only", false, "refuse writes, and never change the image")
	f.Var(&o.create, "create", "make images that do not exist, of this size; those that do are left as they are")
	f.Var(&o.sectorSize, "sector-size", "with --create: bytes that are written all or not at all")
	f.Var(&o.durability, "durability", "auto: what the medium can; process: survive a kill, but no power failure")
	f.Var(&o.logLevel, "log-level", "what to log on stderr")
}

func newServe() *cobra.Command {
	var o serveOptions
	cmd := &cobra.Command{
		Use:   "serve [flags] [NAME=]PATH…",
		Short: "Serve images over NBD",
		Long: `Serve images over NBD until SIGTERM, SIGINT or SIGHUP. When ready, one URI for each
--listen and export is printed on stdout.

A PATH without NAME is the default export. Without --listen, the sockets passed
by systemd socket activation are used, and no URI is printed. Unix sockets are
for their owner only (mode 0600). On TCP there is neither encryption nor a
password.`,
		Example: `  bttnbd serve --listen unix:/run/disk.sock disk.img
  bttnbd serve --listen tcp:10809 a=/dev/pmem0 b=/mnt/dax/b.img
  bttnbd serve --create 1G --listen unix:scratch.sock scratch.img
  nbdinfo -- [ bttnbd serve disk.img ]`,
		Annotations: map[string]string{exitStatus: serveStatus},
		RunE: func(cmd *cobra.Command, args []string) error {
			o.args, o.sectorSizeGiven = args, cmd.Flags().Changed("sector-size")
			if err := o.validate(); err != nil {
				return err
			}
			return runServe(cmd.Context(), cmd.OutOrStdout(), cmd.ErrOrStderr(), o)
		},
	}
	o.addFlags(cmd.Flags())
	return cmd
}

func (o *serveOptions) validate() error {
	switch {
	case o.sectorSizeGiven && o.create == 0:
		return usagef("--sector-size is for new images: give --create SIZE as well, or leave it out")
	case o.readOnly && o.create != 0:
		return usagef("--read-only and --create contradict each other: leave one out")
	}
	return nil
}

func runServe(ctx context.Context, stdout, stderr io.Writer, o serveOptions) (err error) {
	addrs, err := parseListenAddrs(o.listen)
	if err != nil {
		return err
	}
	exports, err := parseExportArgs(o.args)
	if err != nil {
		return err
	}
	if err := refuseTaken(addrs, exports); err != nil {
		return err
	}
	log, err := newLogger(stderr, o.logLevel.value)
	if err != nil {
		return err
	}
	s := service{log: log}
	defer func() { err = errors.Join(err, s.close()) }()
	// Sockets passed by systemd first: without any there is nothing to do.
	if s.listeners, err = passedSockets(addrs); err != nil {
		return err
	}
	if err := s.openImages(ctx, exports, &o); err != nil {
		return err
	}
	// Images before sockets of our own: who owns the image may replace its socket.
	if len(addrs) > 0 {
		if s.listeners, err = listenAll(ctx, addrs); err != nil {
			return err
		}
	}
	return s.run(ctx, stdout)
}

// passedSockets are those of systemd: either they or addrs are where to listen.
func passedSockets(addrs []listenAddr) (*listeners, error) {
	ls, err := activated()
	switch {
	case err != nil:
		return nil, err
	case len(ls.passed) == 0 && len(addrs) == 0:
		return ls, usagef("nowhere to listen: give --listen unix:/path or --listen tcp:host:port, or start it by a systemd socket unit")
	case len(ls.passed) > 0 && len(addrs) > 0:
		return ls, usagef("--listen %s contradicts the sockets passed by socket activation: leave --listen out", addrs[0].given)
	}
	return ls, nil
}

// service is what runs between the start and the end of serve.
type service struct {
	log       zerolog.Logger
	images    []*image
	listeners *listeners
}

func (s *service) openImages(ctx context.Context, exports []exportArg, o *serveOptions) error {
	mode := pmem.Auto
	if o.durability.value == "process" {
		mode = pmem.ForceProcess
	}
	for _, e := range exports {
		made, err := o.createMissing(ctx, e.path)
		if err != nil {
			return err
		}
		im, err := openImage(e, pmem.Options{ReadOnly: o.readOnly, Durability: mode})
		if err != nil {
			return err
		}
		s.images = append(s.images, im)
		if !made {
			s.warnIfOther(im, o)
		}
	}
	return nil
}

// createMissing makes the image at path if --create is given and nothing is there.
func (o *serveOptions) createMissing(ctx context.Context, path string) (made bool, err error) {
	if _, err := os.Stat(path); o.create == 0 || !errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	id, err := uuid.NewRandom()
	if err != nil {
		return false, fmt.Errorf("making a random uuid: %w", err)
	}
	spec := imageSpec{path: path, size: uint64(o.create), sectorSize: sectorBytes(o.sectorSize), flavour: layout.Kernel, uuid: id}
	_, err = spec.makeNew(ctx)
	return err == nil, err
}

// warnIfOther warns of an image that was there already and is not what --create
// would have made.
func (s *service) warnIfOther(im *image, o *serveOptions) {
	otherSize := o.create != 0 && uint64(o.create) != im.fileSize
	otherSector := o.sectorSizeGiven && sectorBytes(o.sectorSize) != im.dev.SectorSize()
	if otherSize || otherSector {
		s.log.Warn().Str("path", im.path).Msgf("the image was there already and stays as it is: %s, sector size %d",
			units.Human(im.fileSize), im.dev.SectorSize())
	}
}

// announce logs what was opened, and what the operator must know about it.
func (s *service) announce(im *image) {
	durability := im.durability.String()
	if im.dev.ReadOnly() {
		durability = "none needed"
	}
	s.log.Info().Str("path", im.path).Str("export", im.name).Uint64("size", im.dev.Size()).
		Uint32("sector_size", im.dev.SectorSize()).Str("durability", durability).
		Bool("read_only", im.dev.ReadOnly()).Msg("image opened")
	for _, w := range im.dev.Warnings() {
		s.log.Warn().Str("path", im.path).Msg(w)
	}
	if im.durability == pmem.Process && !im.dev.ReadOnly() {
		s.log.Warn().Str("path", im.path).
			Msg("NOT SAFE AGAINST POWER FAILURE: data survives a kill of this server only (the file is in memory, or --durability=process was given)")
	}
}

// shutdownTimeout bounds the wait for clients that do not take their replies.
const shutdownTimeout = 10 * time.Second

// run serves until ctx ends or a listener breaks.
func (s *service) run(ctx context.Context, stdout io.Writer) error {
	var exports []nbd.Export
	for _, im := range s.images {
		s.announce(im)
		exports = append(exports, im.export())
	}
	server, err := nbd.NewServer(exports, nbd.Options{Log: s.log})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var serving sync.WaitGroup
	for _, l := range s.listeners.all() {
		serving.Go(func() {
			if err := server.Serve(ctx, l); err != nil {
				cancel(err)
			}
		})
	}
	if err := s.ready(stdout); err != nil {
		cancel(err)
	}
	<-ctx.Done()
	notify(s.log, daemon.SdNotifyStopping)
	s.log.Info().Msg("stopping")

	stopBy, release := context.WithTimeout(context.WithoutCancel(ctx), shutdownTimeout)
	defer release()
	if err := server.Shutdown(stopBy); err != nil {
		s.log.Warn().Err(err).Msg("clients cut off")
	}
	serving.Wait()
	if cause := context.Cause(ctx); !errors.Is(cause, errInterrupted) {
		return cause
	}
	return nil
}

// ready tells everybody who waits that clients may come. Who has passed a socket
// knows its address, and may use stdout for something else.
func (s *service) ready(stdout io.Writer) error {
	for _, l := range s.listeners.made {
		for _, im := range s.images {
			if _, err := fmt.Fprintln(stdout, exportURI(l.Addr(), im.name)); err != nil {
				return fmt.Errorf("printing the URI: %w", err)
			}
		}
	}
	notify(s.log, daemon.SdNotifyReady)
	return nil
}

func notify(log zerolog.Logger, state string) {
	if _, err := daemon.SdNotify(false, state); err != nil {
		log.Warn().Err(err).Str("state", state).Msg("cannot notify systemd")
	}
}

// close flushes and closes the images and removes the sockets made here. It is
// right at every stage of the start.
func (s *service) close() error {
	var errs []error
	for _, im := range s.images {
		if err := im.dev.Flush(); err != nil && !im.dev.ReadOnly() {
			errs = append(errs, withPath(im.path, err))
		}
		errs = append(errs, im.dev.Close())
	}
	if s.listeners != nil {
		errs = append(errs, s.listeners.close())
	}
	return errors.Join(errs...)
}
