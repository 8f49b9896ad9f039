package cli

import (
	"context"
	"errors"
	"fmt"

	"github.com/rs/zerolog"
	"github.com/spf13/pflag"

	"github.com/bttnbd/bttnbd/internal/attach"
	"github.com/bttnbd/bttnbd/internal/kernel"
	"github.com/bttnbd/bttnbd/nbd"
	"github.com/bttnbd/bttnbd/pmem"
)

// attached is this process behind a device, whichever driver of the kernel is in front.
type attached interface {
	Device() kernel.Device
	Server() *nbd.Server // nil if there is none
	Run(context.Context) error
}

// checkUblk refuses what a ublk device does not do. It touches nothing.
func (o *attachOptions) checkUblk(f *pflag.FlagSet) error {
	switch {
	case !o.ublk:
		return nil
	case o.remote != nil:
		return usagef("--ublk is for images: for %s leave it out", o.source)
	case o.replace:
		return usagef("--ublk knows no hand-over: leave --replace out; after the end of the old server bttnbd attach --ublk goes on with the device")
	case f.Changed("timeout"), f.Changed("dead-timeout"):
		return usagef("--ublk knows no timeouts: leave --timeout and --dead-timeout out; requests wait for the next attach --ublk")
	}
	return nil
}

// startUblk attaches the image as a ublk device.
func (o *attachOptions) startUblk(ctx context.Context, log zerolog.Logger) (attached, error) {
	s, err := attach.StartUblk(ctx, attach.Options{
		Index: o.index, Connections: o.connections, Path: o.path, Log: log,
		Open: func() (*attach.Image, error) { return o.open(log) },
	})
	if err != nil {
		return nil, o.explainInUse(err)
	}
	return s, nil
}

// explainInUse says of an image that is in use as which device it is attached, and by
// whom, if it is. Who has the image may be another: if the device waits for a server.
func (o *attachOptions) explainInUse(err error) error {
	var inUse *pmem.InUseError
	if !errors.As(err, &inUse) {
		return err
	}
	d, st, found := attach.FindImage(o.path)
	alive, advice := found && attach.IsAlive(d), ""
	if !found {
		d, st, alive, found = attach.FindUblk(o.path)
	} else if !o.ublk {
		advice = ": give --replace to take it over"
	}
	switch {
	case !found:
		return err
	case !alive:
		return fmt.Errorf("%w; then attach it again: %s waits for it", err, d.Path())
	}
	return fmt.Errorf("%s is attached as %s already, by pid %d%s", o.source, d.Path(), st.PID, advice)
}
