package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"

	"github.com/rs/zerolog"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/bttnbd/bttnbd/internal/sandbox"
)

type serveOptions struct {
	settings
	args   []string // [NAME=]PATH
	config string   // file of further settings
	run    string   // command to serve for
	single bool     // one client, on stdin and stdout

	given *pflag.FlagSet
}

func newServe() *cobra.Command {
	o := serveOptions{settings: newSettings()}
	cmd := &cobra.Command{
		Use:   "serve [flags] [NAME=]PATH…",
		Short: "Serve images over NBD",
		Long: `Serve images over NBD until SIGTERM or SIGINT. When ready, one URI for each --listen
and export is printed on stdout.

A PATH without NAME is the default export. Whoever can connect can read and
write, unless --tls-verify-peer asks who it is; without --tls nothing is encrypted.

ADDR is one of

    unix:/path     a unix socket, for its owner only unless --unix-mode says so
    tcp:port       TCP on localhost
    tcp:host:port  TCP on all addresses of the host; tcp::port on all of this one
    vsock:port     for the virtual machines of this host, or for the host of this one
    systemd:name   a socket passed by systemd; without a name, all of them
    fd:number      a listening socket that the parent process has left open

Sockets passed by systemd are used if there is no --listen. No URI is printed for
them.

SIGHUP ends the server too, unless there is something to read again: the file of
--config, the directories of --exports-dir, the certificates. Exports are then
added, removed and replaced without a stop for the clients of the others.

The file of --config is TOML. Its keys are the flags below, but --config, --run and
--single; durations and modes are in quotes ("30s", "0660"), flags that may be
repeated are lists. Each export has a table

    [[export]]
    name = "db"
    path = "/mnt/pmem/db.btt"

with, if it differs from the rest, also description, read-only, create, sector-size,
durability, limit-rate, limit-iops and tls-allow.`,
		Example: `  bttnbd serve --listen unix:/run/disk.sock disk.img
  bttnbd serve --listen tcp:10809 a=/dev/pmem0 b=/mnt/dax/b.img
  bttnbd serve --create 1G --listen unix:scratch.sock scratch.img
  bttnbd serve --run 'qemu-img convert -O qcow2 "$uri" out.qcow2' disk.img
  bttnbd serve --listen tcp::10809 --tls require --tls-certificates /etc/pki/nbd disk.img
  nbdinfo -- [ bttnbd serve disk.img ]`,
		Annotations: map[string]string{exitStatus: serveStatus},
		RunE: func(cmd *cobra.Command, args []string) error {
			o.args = args
			if o.config != "" {
				s, err := readConfig(o.config, cmd.Flags())
				if err != nil {
					return err
				}
				o.settings = s
			}
			o.given = cmd.Flags()
			if err := o.validate(); err != nil {
				return err
			}
			return runServe(cmd.Context(), cmd.OutOrStdout(), cmd.ErrOrStderr(), o)
		},
	}
	groups := o.groups()
	sources := newGroup(groups[0].title)
	sources.flags.StringVar(&o.config, "config", "", "read settings and exports from `FILE` (TOML); flags beat it")
	sources.flags.AddFlagSet(groups[0].flags)
	groups[0] = sources
	groups[1].flags.StringVar(&o.run, "run", "", "serve for `COMMAND` alone, run by sh with $uri, and end with its status")
	groups[1].flags.BoolVarP(&o.single, "single", "s", false, "serve one client, which is on stdin and stdout, and end with it")
	groupedUsage(cmd, groups)
	return cmd
}

func (o *serveOptions) validate() error {
	switch {
	case o.single && o.run != "":
		return usagef("--single and --run contradict each other: leave one out")
	case o.single && len(o.Listen) > 0:
		return usagef("--single serves stdin and stdout: leave --listen %s out", o.Listen[0])
	case o.run != "" && o.User != "":
		return usagef("--run and --user contradict each other: run the whole as user %s", o.User)
	}
	return o.settings.validate()
}

// runServe starts in this order: what can be refused without touching anything,
// images, sockets, and then, with everything open, the loss of rights.
func runServe(ctx context.Context, stdout, stderr io.Writer, o serveOptions) (err error) {
	s := service{serveOptions: o, stdout: stdout}
	if s.reloadable() {
		s.hangups = takeHangups(ctx)
	}
	if s.log, err = newLogger(stderr, o.LogLevel.value); err != nil {
		return err
	}
	addrs, specs, err := o.look(ctx, s.log)
	if err != nil {
		return err
	}
	if o.User != "" {
		if s.as, err = sandbox.Lookup(o.User, o.Group); err != nil {
			return fmt.Errorf("--user: %w", err)
		}
	}
	config, err := o.loadTLS(s.log, nil)
	if err != nil {
		return err
	}
	s.tls.current.Store(config)
	s.access = o.access(config)
	defer func() { err = errors.Join(err, s.close()) }()

	// Sockets passed by systemd first: without any there is nothing to do.
	if !o.single {
		if addrs, err = s.passedSockets(addrs); err != nil {
			return err
		}
	}
	if err := s.openAll(ctx, specs); err != nil {
		return err
	}
	// Images before sockets of our own: who owns the image may replace its socket.
	if err := s.listeners.listenAll(ctx, addrs, os.FileMode(o.UnixMode), s.as); err != nil {
		return err
	}
	if err := s.metrics.listen(ctx, &s.monitorSettings, os.FileMode(o.UnixMode), s.as); err != nil {
		return err
	}
	return s.serve(ctx)
}

// look parses where to listen and what to serve, and refuses what cannot be.
func (o *serveOptions) look(ctx context.Context, log zerolog.Logger) (addrs []listenAddr, specs []exportSpec, err error) {
	if addrs, err = parseListenAddrs(o.Listen); err != nil {
		return nil, nil, err
	}
	if specs, err = o.exportSpecs(ctx, log, o.args); err != nil {
		return nil, nil, err
	}
	taken := addrs
	if a, _ := o.monitorSettings.addr(); a.network != "" { // validate has seen it
		taken = append(slices.Clone(addrs), a)
	}
	return addrs, specs, errors.Join(refuseTaken(taken, specs), o.refusePIDFile(specs))
}

// passedSockets takes what systemd has passed. A server for one command that is
// told nothing else has a socket of its own.
func (s *service) passedSockets(addrs []listenAddr) ([]listenAddr, error) {
	ls, err := activated()
	s.listeners = *ls
	if err != nil {
		return nil, err
	}
	if s.run != "" && len(addrs) == 0 && len(ls.passed) == 0 {
		a, err := s.privateSocket()
		return []listenAddr{a}, err
	}
	return addrs, s.listeners.choosePassed(addrs)
}

// openAll opens the images.
func (s *service) openAll(ctx context.Context, specs []exportSpec) error {
	for _, spec := range specs {
		im, err := s.open(ctx, spec)
		if err != nil {
			return err
		}
		if im != nil {
			s.exports = append(s.exports, served{spec, im})
		}
	}
	return nil
}

// reloadable says whether there is anything to read again.
func (o *serveOptions) reloadable() bool {
	return !o.single && (o.config != "" || len(o.ExportsDir) > 0 || o.TLS.value != "off")
}
