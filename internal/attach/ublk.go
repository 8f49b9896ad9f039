package attach

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"io/fs"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bttnbd/bttnbd/internal/kernel"
	"github.com/bttnbd/bttnbd/internal/ublk"
	"github.com/bttnbd/bttnbd/nbd"
)

// A Ublk is this process behind one device /dev/ublkbN.
//
//	filesystem ── /dev/ublkbN ── ublk_drv ── this process ── image
//
// As with NBD the device outlives the process, and a successor finds it: the driver keeps
// a cookie for us, which is made of the UUID of the BTT, and the state file tells the rest.
// The driver knows whether the server lives, so there is no socket; and it does not let a
// device go before its server has let go of it.
type Ublk struct {
	o       Options
	image   *Image
	export  nbd.Export
	control *ublk.Control
	server  *ublk.Server // nil until the device is served
	dev     kernel.Device
	made    bool      // by this process, not revived
	since   time.Time // of the device
}

// StartUblk is [Start] for a ublk device. Of o it takes Index, Connections (queues, one a
// CPU at most), Path, Open and Log.
func StartUblk(ctx context.Context, o Options) (*Ublk, error) {
	image, err := o.Open()
	if err != nil {
		return nil, err
	}
	u := &Ublk{o: o, image: image, export: image.Export, since: time.Now()}
	u.export.Size -= u.export.Size % uint64(image.BlockSize)
	if err := u.attach(ctx); err != nil {
		return nil, errors.Join(err, u.giveUp())
	}
	return u, nil
}

func (u *Ublk) attach(ctx context.Context) (err error) {
	if u.control, err = openUblk(); err != nil {
		return err
	}
	waiting, err := u.choose()
	if err != nil {
		return err
	}
	if waiting {
		err = u.revive(ctx)
	} else {
		err = u.create(ctx)
	}
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, usableTimeout)
	defer cancel()
	if err := u.dev.AwaitUsable(ctx, u.export.Size); err != nil {
		return err
	}
	return u.writeState()
}

// openUblk opens the driver's control device, and says what to do if there is none.
func openUblk() (*ublk.Control, error) {
	c, err := ublk.OpenControl()
	if errors.Is(err, fs.ErrPermission) {
		err = fmt.Errorf("%w: run as root", err)
	}
	return c, err
}

// cookie is what the driver keeps for us.
func cookie(backend string) uint64 {
	h := fnv.New64a()
	h.Write([]byte(backend))
	return h.Sum64()
}

// choose finds the device that waits for the image. If there is none, and nothing is in
// the way of a new one, waiting is false.
func (u *Ublk) choose() (waiting bool, err error) {
	nbds, err := kernel.Connected()
	if err != nil {
		return false, err
	}
	for _, d := range nbds {
		if d.Backend() == u.image.Backend {
			return false, nbdHolder(d).refuse(u.o.Path, u.image.inode())
		}
	}
	devices, err := kernel.Ublks()
	if err != nil {
		return false, err
	}
	for _, d := range devices {
		in, err := u.control.Info(d.Index)
		if err != nil {
			continue // it has just gone
		}
		same := in.Cookie == cookie(u.image.Backend)
		switch {
		case same && (u.o.Index == kernel.AnyIndex || u.o.Index == d.Index):
			u.dev = d
			return true, u.mayRevive(in)
		case same:
			return false, ublkHolder(d, in).refuse(u.o.Path, u.image.inode())
		case d.Index == u.o.Index:
			return false, fmt.Errorf("%s is in use: %s: choose another one, or auto", d.Path(), describeUblk(d, in))
		}
	}
	return false, nil
}

// mayRevive refuses what the filesystem on the device would notice.
func (u *Ublk) mayRevive(in ublk.Info) error {
	d := u.dev
	h := ublkHolder(d, in)
	switch {
	case h.known && h.Inode != u.image.inode():
		return h.refuse(u.o.Path, u.image.inode())
	case d.Size() != u.export.Size || d.BlockSize() != u.image.BlockSize:
		return fmt.Errorf("%s has %d bytes in blocks of %d, and the image %d in blocks of %d: not what it was attached from: %s first",
			d.Path(), d.Size(), d.BlockSize(), u.export.Size, u.image.BlockSize, release(d))
	case d.ReadOnly() != u.export.ReadOnly:
		return fmt.Errorf("%s: --read-only must be as it was when it was attached; or %s first", d.Path(), release(d))
	}
	if h.known {
		u.since = h.Since
	}
	return nil
}

// describeUblk says what is behind a device.
func describeUblk(d kernel.Device, in ublk.Info) string {
	if known, ok := readUblk(d, in); ok {
		return fmt.Sprintf("%s is attached there (pid %d)", known.Source, known.PID)
	}
	return fmt.Sprintf("attached by pid %d", in.PID)
}

// create makes a device and serves it.
func (u *Ublk) create(ctx context.Context) error {
	spec := ublk.Spec{
		Index: u.o.Index, Queues: u.o.Connections, Size: u.export.Size, BlockSize: u.image.BlockSize,
		ReadOnly: u.export.ReadOnly, Cookie: cookie(u.image.Backend),
	}
	in, err := u.control.Add(spec)
	if errors.Is(err, unix.EEXIST) && u.removeLeftover(ctx) {
		in, err = u.control.Add(spec)
	}
	if errors.Is(err, unix.EEXIST) {
		d := kernel.UblkOf(u.o.Index)
		if d.Exists() {
			return fmt.Errorf("%s is in use: choose another one, or auto", d.Path())
		}
		return fmt.Errorf("%s is being made by somebody, or is what was left of that: choose another one, or auto, or %s", d.Path(), release(d))
	}
	if err != nil {
		return err
	}
	u.made, u.dev = true, kernel.UblkOf(int(in.Index))
	if queues := int(in.Queues); queues < u.o.Connections {
		u.o.Log.Warn().Str("device", u.dev.Path()).
			Msgf("--connections %d: %s has %d, as the kernel takes one a CPU at most", u.o.Connections, u.dev.Path(), queues)
	}
	if u.server, err = ublk.NewServer(in, &u.export); err != nil {
		return err
	}
	return u.whileServed(u.control.Start)
}

// removeLeftover removes the device of the wanted number, if it is one that a predecessor
// of ours was killed over before there was a disk: the cookie is that of the image, and no
// process has it open.
func (u *Ublk) removeLeftover(ctx context.Context) bool {
	in, err := u.control.Info(u.o.Index)
	if err != nil || in.State != ublk.Dead || in.Cookie != cookie(u.image.Backend) ||
		kernel.UblkOf(u.o.Index).Exists() || ublk.IsOpen(u.o.Index) || u.control.Delete(u.o.Index) != nil {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, usableTimeout)
	defer cancel()
	return u.control.AwaitGone(ctx, u.o.Index) == nil
}

// whileServed has the driver do what waits for all queues. If one fails it waits for ever,
// and does not end before this process.
func (u *Ublk) whileServed(do func(index int) error) error {
	done := make(chan error, 1)
	go func() { done <- do(u.dev.Index) }()
	select {
	case err := <-done:
		return err
	case <-u.server.Done():
		var err error
		u.control, err = openUblk() // that one is taken
		return errors.Join(fmt.Errorf("%s: a queue has failed: bttnbd detach --force %s gives the device up", u.dev.Path(), u.dev.Path()), err)
	}
}

// revive serves a device that waits.
func (u *Ublk) revive(ctx context.Context) error {
	in, err := u.beginRecovery(ctx)
	if err != nil {
		return err
	}
	if u.server, err = ublk.NewServer(in, &u.export); err != nil {
		return err
	}
	if err := u.whileServed(u.control.EndRecovery); err != nil {
		return err
	}
	u.o.Log.Info().Str("device", u.dev.Path()).Msg("the device was waiting, and goes on")
	return nil
}

// beginRecovery returns when the device can be served anew. We have the image, so its
// server is gone; but the driver may not have cleaned up behind it yet.
func (u *Ublk) beginRecovery(ctx context.Context) (in ublk.Info, err error) {
	ctx, cancel := context.WithTimeout(ctx, usableTimeout)
	defer cancel()
	tick := time.NewTicker(pollPause)
	defer tick.Stop()
	for {
		err = u.control.BeginRecovery(u.dev.Index)
		in, failed := u.control.Info(u.dev.Index)
		switch {
		case failed != nil:
			return in, failed
		case errors.Is(err, unix.EINVAL) && in.State == ublk.Quiesced:
			return in, nil // begun by a server that ended before it served
		case !errors.Is(err, unix.EBUSY):
			return in, err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return in, fmt.Errorf("%s: its last server, pid %d, does not end: %w", u.dev.Path(), in.PID, context.Cause(ctx))
		}
	}
}

// pollPause is how often the driver, which tells nobody, is asked.
const pollPause = 5 * time.Millisecond

// giveUp undoes a start that has failed. A device that was made goes; one that had been
// waiting waits on.
func (u *Ublk) giveUp() error {
	var errs []error
	gone := u.made && u.control != nil
	if gone {
		errs = append(errs, u.control.Stop(u.dev.Index)) // while its requests are served
	}
	if u.server != nil {
		errs = append(errs, u.server.Leave())
	}
	errs = append(errs, u.end(gone))
	if gone {
		errs = append(errs, u.control.Delete(u.dev.Index))
	}
	if u.control != nil {
		errs = append(errs, u.control.Close())
	}
	return errors.Join(errs...)
}

// Device is the device.
func (u *Ublk) Device() kernel.Device { return u.dev }

// Server is nil: no NBD server is behind the device.
func (u *Ublk) Server() *nbd.Server { return nil }

// Run returns when the device is detached, or, after the end of ctx, let go.
func (u *Ublk) Run(ctx context.Context) (err error) {
	defer func() { err = errors.Join(err, u.control.Close()) }()
	select {
	case <-u.server.Done():
		return u.detached()
	case <-ctx.Done():
		return u.stop()
	}
}

// detached is the end when the device was stopped, or cannot be served any more: then it
// waits.
func (u *Ublk) detached() error {
	in, err := u.control.Info(u.dev.Index)
	gone := errors.Is(err, unix.ENODEV) || err == nil && in.State == ublk.Dead
	if gone {
		u.o.Log.Info().Str("device", u.dev.Path()).Msg("detached")
	}
	return u.end(gone)
}

// stop detaches the device, or leaves it waiting for a successor if it is in use.
func (u *Ublk) stop() error {
	ctx, cancel := context.WithTimeout(context.Background(), detachTimeout)
	defer cancel()
	_, err := disconnectUblk(u.control, u.dev, false)
	var inUse *InUseError
	switch {
	case errors.As(err, &inUse):
		u.o.Log.Warn().Str("device", u.dev.Path()).Strs("users", inUse.Users).
			Msg("stopping under a device in use: its requests wait for the next attach --ublk")
		return errors.Join(u.server.Leave(), u.end(false))
	case err != nil:
		return errors.Join(err, u.server.Leave(), u.end(false))
	}
	<-u.server.Done()
	return errors.Join(u.end(true), u.control.AwaitGone(ctx, u.dev.Index))
}

// end lets the image and the device go, in this order: when the device is gone the image
// is closed.
func (u *Ublk) end(gone bool) error {
	err := u.image.Close()
	if err != nil {
		err = fmt.Errorf("closing the image: %w", err)
	}
	if gone {
		removeState(u.dev)
	}
	if u.server != nil {
		n := u.server.Stats()
		u.o.Log.Info().Uint64("read", n.Reads).Uint64("write", n.Writes).Uint64("flush", n.Flushes).Uint64("trim", n.Discards).
			Uint64("write_zeroes", n.WriteZeroes).Uint64("fua", n.FUA).Uint64("failures", n.Failures).Msg("requests served")
		err = errors.Join(err, u.server.Close())
	}
	return err
}

func (u *Ublk) writeState() error {
	st := State{Schema: 1, Source: u.o.Path, Inode: u.image.inode(), Backend: u.image.Backend, PID: os.Getpid(), Since: u.since}
	text, err := json.Marshal(st)
	if err != nil {
		return err
	}
	return replaceFile(runtimeFile(u.dev, ".json"), append(text, '\n'))
}

// readUblk returns what is known of the device, if it is about what the driver has there.
func readUblk(d kernel.Device, in ublk.Info) (State, bool) {
	var st State
	text, err := os.ReadFile(runtimeFile(d, ".json"))
	if err != nil || json.Unmarshal(text, &st) != nil {
		return State{}, false
	}
	return st, cookie(st.Backend) == in.Cookie
}
