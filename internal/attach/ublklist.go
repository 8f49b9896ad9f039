package attach

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"golang.org/x/sys/unix"

	"github.com/bttnbd/bttnbd/internal/kernel"
	"github.com/bttnbd/bttnbd/internal/ublk"
)

// ublkOf is the ublk device that has the backend, or a copy of it.
func ublkOf(backend string) (h holder, found bool) {
	_ = eachUblk(func(other kernel.Device, in ublk.Info) error { // none found is none found
		if in.Cookie == cookie(backend) {
			h, found = ublkHolder(other, in), true
		}
		return nil
	})
	return h, found
}

func ublkHolder(d kernel.Device, in ublk.Info) holder {
	st, ok := readUblk(d, in)
	return holder{dev: d, known: ok, State: st, alive: in.State == ublk.Live}
}

// FindUblk returns the ublk device whose state says that it was attached from the file,
// and whether its server is there.
func FindUblk(path string) (d kernel.Device, st State, alive, found bool) {
	_ = eachUblk(func(other kernel.Device, in ublk.Info) error { // none found is none found
		if known, ok := readUblk(other, in); ok && known.Inode != "" && known.Inode == inodeOf(path) {
			d, st, alive, found = other, known, in.State == ublk.Live, true
		}
		return nil
	})
	return d, st, alive, found
}

// eachUblk calls f for each ublk device, with all that is known of it as a user that may
// not ask the driver.
func eachUblk(f func(kernel.Device, ublk.Info) error) error {
	devices, err := kernel.Ublks()
	if err != nil || len(devices) == 0 {
		return err
	}
	c, err := ublk.OpenControl()
	if err == nil {
		defer c.Close()
	}
	for _, d := range devices {
		var in ublk.Info
		if c != nil {
			if in, err = c.Info(d.Index); err != nil {
				continue // it has just gone
			}
		}
		if err := f(d, in); err != nil {
			return err
		}
	}
	return nil
}

// listUblk returns all ublk devices that have a disk.
func listUblk() (list []Listed, err error) {
	err = eachUblk(func(d kernel.Device, in ublk.Info) error {
		l := Listed{
			Device: d.Path(), Size: d.Size(), BlockSize: d.BlockSize(), ReadOnly: d.ReadOnly(), Connections: d.Connections(),
			PID: max(0, int(in.PID)), State: Foreign,
		}
		users, err := d.Users()
		if err != nil {
			return err
		}
		l.Users = append([]string{}, users...)
		if st, ok := readUblk(d, in); ok {
			l.Source, l.Backend, l.PID, l.Since, l.State = st.Source, st.Backend, st.PID, &st.Since, Dead
			if in.State == ublk.Live {
				l.State = Alive
			}
		}
		list = append(list, l)
		return nil
	})
	return list, err
}

// DetachUblk is [Detach] for a ublk device. When it gives up waiting, the driver goes on.
func DetachUblk(ctx context.Context, d kernel.Device, force bool) error {
	ctx, cancel := context.WithTimeout(ctx, detachTimeout)
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- detachUblk(ctx, d, force) }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done(): // no command of the driver ends for a signal
		return fmt.Errorf("%s: its server does not answer: %w", d.Path(), context.Cause(ctx))
	}
}

func detachUblk(ctx context.Context, d kernel.Device, force bool) error {
	c, err := openUblk()
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("no ublk device is attached: %w", err)
	}
	if err != nil {
		return err
	}
	defer c.Close()
	stays, err := disconnectUblk(c, d, force)
	if err != nil || stays {
		return err
	}
	return c.AwaitGone(ctx, d.Index)
}

// disconnectUblk writes back what is cached, takes the disk away and has the device go as
// soon as its server has let go of it. It stays as long as it has users.
func disconnectUblk(c *ublk.Control, d kernel.Device, force bool) (stays bool, err error) {
	in, err := c.Info(d.Index)
	if errors.Is(err, unix.ENODEV) {
		return false, fmt.Errorf("%s: nothing is attached there: bttnbd list shows what is", d.Path())
	}
	if err != nil {
		return false, err
	}
	if !d.Exists() { // a server has died before it had a disk
		return false, c.Delete(d.Index)
	}
	users, err := d.Users()
	if err != nil {
		return false, err
	}
	if len(users) > 0 && !force {
		return true, &InUseError{d, users}
	}
	claim, err := d.Claim()
	switch {
	case err == nil:
		defer claim.Close() // whatever comes
		if in.State == ublk.Live {
			err = claim.Sync() // else nobody would take it
		}
		if err != nil {
			err = fmt.Errorf("%s: cannot write what is cached: %w: give --force to detach it all the same", d.Path(), err)
		}
	case errors.Is(err, unix.EBUSY):
		err = &InUseError{Device: d}
	}
	if err != nil && !force {
		return true, err
	}
	if err := c.Stop(d.Index); err != nil {
		return false, err
	}
	if in.State != ublk.Live {
		removeState(d) // nobody else does
	}
	claim.Close() // or it would stay
	return len(users) > 0, c.Delete(d.Index)
}
