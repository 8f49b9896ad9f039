package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/rs/zerolog"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"

	"github.com/bttnbd/bttnbd/internal/attach"
	"github.com/bttnbd/bttnbd/internal/kernel"
	"github.com/bttnbd/bttnbd/pmem"
)

type attachOptions struct {
	device string // /dev/nbdN, /dev/ublkbN or auto
	source string // PATH or URI

	connections int
	readOnly    bool
	foreground  bool
	replace     bool
	ublk        bool
	timeout     time.Duration
	deadTimeout time.Duration
	durability  choiceFlag
	logLevel    choiceFlag
	monitorSettings

	index  int            // from device
	path   string         // from source, absolute; "" with remote
	remote *attach.Remote // from source

	metrics metrics
	image   atomic.Pointer[image] // that is open; nil with remote
	started atomic.Bool           // attached; before, what is said of the image would only hide why not
}

func (o *attachOptions) addFlags(f *pflag.FlagSet) {
	o.durability = newChoice("auto", "process")
	o.logLevel = newSettings().LogLevel
	f.IntVar(&o.connections, "connections", 0, "`N` connections to the kernel, each with a queue of its own (default one for each CPU, up to 4); with --ublk queues, one for each CPU at most")
	f.BoolVar(&o.readOnly, "read-only", false, "a device that takes no writes; the image is never changed")
	f.BoolVar(&o.foreground, "foreground", false, "stay in the foreground, log on stderr, and detach at SIGTERM")
	f.BoolVar(&o.replace, "replace", false, "take the device over from the process that serves it; not with --ublk")
	f.BoolVar(&o.ublk, "ublk", false, "make it /dev/ublkbN, which is faster, and takes Linux 6.4 or later, built with ublk_drv")
	f.DurationVar(&o.timeout, "timeout", 0, "give a connection up after a request took `DURATION` (default 5s on memory, 30s on a disk); not with --ublk")
	f.DurationVar(&o.deadTimeout, "dead-timeout", 10*time.Minute, "let requests wait for a new server for `DURATION` before they fail; not with --ublk")
	f.Var(&o.durability, "durability", "auto: what the medium can; process: survive a kill, but no power failure")
	f.Var(&o.logLevel, "log-level", "what to log")
	o.monitorSettings.addFlags(f)
}

func newAttach() *cobra.Command {
	var o attachOptions
	cmd := &cobra.Command{
		Use:   "attach [flags] DEVICE PATH|URI",
		Short: "Make an image a block device, /dev/nbdN or /dev/ublkbN",
		Long: `Make an image, or an export of an NBD server, a block device of this machine.
DEVICE is /dev/nbdN, or auto for a free one. When the device is usable its name
is printed on stdout, and the server goes on in the background; it logs to
/run/bttnbd-attach/nbdN.log, or ublkbN.log.

If the server dies, requests wait. The same command again finds the device by the
image's UUID and revives it: what is mounted there goes on. Requests that were on
their way when it died wait for --timeout before the kernel sends them again.

With --ublk the kernel's driver ublk_drv takes the place of its NBD client. DEVICE is
/dev/ublkbN or auto. There is no hand-over (--replace), no growing while attached,
and no timeout: requests wait for the next attach --ublk as long as it takes.

Take --ublk if the kernel has ublk_drv (Linux 6.4 or later) and speed counts: it is
faster, and after a kill the next attach goes on at once. Take NBD for everything
else: any kernel, exports of other servers (URI), an upgrade by --replace, growing
under a mounted filesystem, timeouts, a name that stays (/dev/disk/by-bttuuid).

Needs root, and the kernel module nbd or ublk_drv, which is loaded if it is missing.`,
		Example: `  bttnbd attach auto disk.img
  bttnbd attach --foreground /dev/nbd0 /dev/dax0.0
  bttnbd attach --ublk auto /dev/dax0.0
  bttnbd attach --replace auto disk.img     # after an upgrade of bttnbd
  bttnbd attach /dev/nbd1 'nbd+unix:///?socket=/run/disk.sock'`,
		Annotations: map[string]string{exitStatus: attachStatus},
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := o.parse(args); err != nil {
				return err
			}
			if err := o.checkUblk(cmd.Flags()); err != nil {
				return err
			}
			if o.foreground {
				return runAttach(cmd.Context(), cmd.OutOrStdout(), cmd.ErrOrStderr(), &o)
			}
			return attachInBackground(cmd.Context(), cmd.OutOrStdout(), cmd.ErrOrStderr(), &o)
		},
	}
	o.addFlags(cmd.Flags())
	return cmd
}

const attachStatus = `  0    attached; with --foreground: stopped, everything flushed
  1    failure
  64   usage error
  130  interrupted`

// maxConnections is far above what gains anything; each takes memory for 128 requests.
const maxConnections = 32

// parse understands the command line. It touches nothing.
func (o *attachOptions) parse(args []string) error {
	switch {
	case len(args) < 2:
		return usagef("attach takes a device and an image: bttnbd attach auto disk.img")
	case len(args) == 2 && namesDevice(args[1]) && !namesDevice(args[0]):
		return usagef("the device comes first: bttnbd attach %s %s", shellWord(args[1]), shellWord(args[0]))
	case len(args) > 2:
		return usagef("%d arguments given, %q is one too many: bttnbd attach [flags] DEVICE PATH|URI", len(args), args[2])
	case o.connections < 0 || o.connections > maxConnections:
		return usagef("--connections %d: choose from 1 to %d", o.connections, maxConnections)
	case o.timeout < 0 || o.timeout%time.Second != 0:
		return usagef("--timeout %v: the kernel counts whole seconds: write --timeout 10s", o.timeout)
	case o.deadTimeout < 0 || o.deadTimeout%time.Second != 0:
		return usagef("--dead-timeout %v: the kernel counts whole seconds: write --dead-timeout 10m", o.deadTimeout)
	}
	if err := o.monitorSettings.validate(); err != nil {
		return err
	}
	if o.connections == 0 {
		o.connections = min(4, runtime.NumCPU())
	}
	o.device, o.source = args[0], args[1]
	o.index = kernel.AnyIndex
	if o.device != "auto" {
		d, err := kernel.ParseDevice(o.device)
		switch {
		case errors.Is(err, kernel.ErrNoDevice) && o.ublk:
			return usagef("%s: no ublk device: with --ublk write /dev/ublkb0, or auto", o.device)
		case errors.Is(err, kernel.ErrNoDevice):
			return usagef("%s: no NBD device: write /dev/nbd0, or auto; with --ublk it is /dev/ublkb0", o.device)
		case err != nil:
			return usagef("%v, or auto", err)
		case d.IsUblk() && !o.ublk:
			return usagef("%s is a ublk device: give --ublk, too", o.device)
		case o.ublk && !d.IsUblk():
			return usagef("%s is no ublk device: with --ublk write /dev/ublkb0, or auto", o.device)
		}
		o.index = d.Index
	}
	if attach.IsURI(o.source) {
		r, err := attach.ParseURI(o.source)
		if err != nil {
			return usagef("%v", err)
		}
		o.remote = &r
		if o.replace || o.readOnly {
			return usagef("--replace and --read-only are for images: what is behind %s is the business of its server", o.source)
		}
		return nil
	}
	var err error
	o.path, err = filepath.Abs(o.source)
	return err
}

// namesDevice says whether word was meant as DEVICE.
func namesDevice(word string) bool {
	return word == "auto" || strings.HasPrefix(word, "/dev/nbd") || strings.HasPrefix(word, "/dev/ublkb")
}

// runAttach serves the device until it is detached, handed over, or let go.
func runAttach(ctx context.Context, stdout, stderr io.Writer, o *attachOptions) (err error) {
	log, err := newLogger(stderr, o.logLevel.value)
	if err != nil {
		return err
	}
	if err := o.prepare(); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, o.metrics.close()) }()
	if !o.replace { // else it is the other process's still
		if err := o.metrics.listen(ctx, &o.monitorSettings, metricsMode, nil); err != nil {
			return err
		}
	}
	if o.remote == nil { // else the kernel does it all
		if err := kernel.ReserveMemory(); err != nil {
			log.Warn().Err(err).Msg(unprotected)
		}
	}
	s, note, err := o.start(ctx, log)
	if err != nil {
		return err
	}
	o.started.Store(true)
	if im := o.image.Load(); im != nil {
		(&service{log: log}).announce(im, "")
	}
	defer o.serveMetrics(ctx, s, log)()
	log.Info().Str("device", s.Device().Path()).Str("image", o.source).Msg("attached")
	if err := o.ready(stdout, log, s.Device(), note); err != nil {
		log.Warn().Err(err).Msg("cannot tell that the device is ready")
	}
	return s.Run(ctx)
}

// prepare makes sure that there is an image, that the kernel can, and that we may. A
// wrong path is the mistake that is made most, so it is told first.
func (o *attachOptions) prepare() error {
	var missing *fs.PathError
	if _, err := os.Stat(o.path); o.remote == nil && errors.As(err, &missing) {
		return advise(fmt.Errorf("%s: %w", o.path, missing.Err), o.path, o.readOnly, "")
	}
	if err := attach.MakeRuntime(); err != nil {
		if errors.Is(err, fs.ErrPermission) {
			return fmt.Errorf("%w: run as root", err)
		}
		return err
	}
	if o.ublk {
		return kernel.LoadUblk()
	}
	return kernel.LoadModule()
}

// start attaches, or takes over. note is what the user may want to know.
func (o *attachOptions) start(ctx context.Context, log zerolog.Logger) (s attached, note string, err error) {
	if o.ublk {
		s, err := o.startUblk(ctx, log)
		return s, "", err
	}
	options := attach.Options{
		Index: o.index, Connections: o.connections, Path: o.path, Remote: o.remote,
		Timeout: o.timeout, DeadTimeout: o.deadTimeout, Log: log,
		Open: func() (*attach.Image, error) { return o.open(log) },
		Grow: func(want attach.Growth, is os.FileInfo) (attach.Growth, error) {
			return growUnder(ctx, o.path, want, is)
		},
	}
	if o.replace {
		d, err := o.served()
		if err != nil {
			return nil, "", err
		}
		if attach.IsAlive(d) {
			s, pause, err := attach.TakeOver(ctx, d, options)
			note = fmt.Sprintf("taken over; nobody served it for %v", pause.Round(10*time.Microsecond))
			return s, note, err
		}
	}
	s, err = attach.Start(ctx, options)
	return s, "", o.explainInUse(err)
}

// served is the device to take over: the one that the image is attached as.
func (o *attachOptions) served() (kernel.Device, error) {
	d, _, found := attach.FindImage(o.path)
	switch {
	case !found:
		return kernel.DeviceOf(o.index), nil // none, if that is auto
	case o.index != kernel.AnyIndex && o.index != d.Index:
		return d, fmt.Errorf("%s is attached as %s, not as %s: name that one, or auto", o.source, d.Path(), o.device)
	}
	return d, nil
}

// How long a request may take before its connection is given up, where the user does
// not say: a lot on memory, and what disks get on anything else.
const (
	memoryTimeout = 5 * time.Second
	diskTimeout   = 30 * time.Second
)

const unprotected = "not protected when memory is short"

// open opens the image as the kernel is to see it. What the process maps before and
// after is locked, the image is not.
func (o *attachOptions) open(log zerolog.Logger) (*attach.Image, error) {
	if err := kernel.ProtectMemory(); err != nil {
		log.Warn().Err(err).Msg(unprotected)
	}
	mode := pmem.Auto
	if o.durability.value == "process" {
		mode = pmem.ForceProcess
	}
	im, err := openImage(o.path, pmem.Options{ReadOnly: o.readOnly, Durability: mode})
	if err != nil {
		return nil, err
	}
	if err := kernel.LockNewMemory(); err != nil {
		log.Warn().Err(err).Msg(unprotected)
	}
	o.image.Store(im)
	if o.started.Load() {
		(&service{log: log}).announce(im, "")
	}
	timeout := memoryTimeout
	if im.durability == pmem.Msync {
		timeout = diskTimeout
	}
	return &attach.Image{
		Export: im.export(exportSpec{}), BlockSize: kernelBlock(im.dev.SectorSize()),
		Backend: im.dev.UUID().String(), File: im.file, Timeout: timeout, Latency: o.MetricsListen != "", Closer: imageCloser{im},
	}, nil
}

// imageCloser closes an image for good.
type imageCloser struct{ *image }

func (c imageCloser) Close() error {
	var err error
	if !c.dev.ReadOnly() {
		err = c.dev.Flush()
	}
	return errors.Join(err, c.dev.Close())
}

// kernelBlock is the logical block size for an image: its sector size, where Linux
// has such blocks. Requests for parts of larger sectors are atomic all the same.
func kernelBlock(sector uint32) uint32 {
	switch {
	case sector < 512 || sector&(sector-1) != 0:
		return 512
	case sector > uint32(os.Getpagesize()):
		return uint32(os.Getpagesize())
	}
	return sector
}

// ready tells everybody who waits for the device.
func (o *attachOptions) ready(stdout io.Writer, log zerolog.Logger, d kernel.Device, note string) error {
	if note != "" {
		log.Info().Str("device", d.Path()).Msg(note)
	}
	state := fmt.Sprintf("%s\nMAINPID=%d", daemon.SdNotifyReady, os.Getpid())
	_, err := daemon.SdNotify(false, state)
	if parent := waitingParent(); parent != nil {
		return errors.Join(err, unix.Chdir("/"), tellParent(parent, d, note))
	}
	_, printed := fmt.Fprintln(stdout, d.Path())
	return errors.Join(err, printed)
}
