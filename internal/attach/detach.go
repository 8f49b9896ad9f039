package attach

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bttnbd/bttnbd/internal/kernel"
)

// InUseError says why a device cannot be detached.
type InUseError struct {
	Device kernel.Device
	Users  []string // in words; none if a program has it open for itself alone
}

func (e *InUseError) Error() string {
	users := "a program has it for itself alone"
	if len(e.Users) > 0 {
		users = strings.Join(e.Users, "; ")
	}
	return fmt.Sprintf("%s is in use: %s: end that first, or give --force and lose what is not written yet", e.Device.Path(), users)
}

// detachTimeout bounds the wait until the device is gone and its server has closed
// the image.
const detachTimeout = 30 * time.Second

// Detach ends the device, and returns when its image is closed. It refuses a device
// in use with an [InUseError], unless forced to.
func Detach(ctx context.Context, d kernel.Device, force bool) error {
	server, err := dial(d) // who is still there when all is over
	if err != nil {
		server = nil
	}
	ctx, cancel := context.WithTimeout(ctx, detachTimeout)
	defer cancel()
	if err := disconnect(ctx, d, force); err != nil {
		return err
	}
	if server == nil {
		removeState(d)
		return nil
	}
	return awaitEnd(ctx, d, server)
}

// disconnect writes back what is cached, and returns when the kernel has let go of
// the device. Nobody can mount it meanwhile.
func disconnect(ctx context.Context, d kernel.Device, force bool) error {
	if !d.Connected() {
		return fmt.Errorf("%s: nothing is attached there: bttnbd list shows what is", d.Path())
	}
	users, err := d.Users()
	if err != nil {
		return err
	}
	if len(users) > 0 && !force {
		return &InUseError{d, users}
	}
	claim, err := d.Claim()
	switch {
	case err == nil:
		defer claim.Close() // whatever comes
		err = writeBack(d, claim)
	case errors.Is(err, unix.EBUSY):
		err = &InUseError{Device: d}
	}
	if err != nil && !force {
		return err
	}
	if err := kernel.Disconnect(d.Index); err != nil {
		return err
	}
	if len(users) > 0 {
		return nil // it stays until they are gone
	}
	claim.Close()
	return d.AwaitGone(ctx)
}

// writeBack writes what the page cache has of the device. Where nobody would take it
// there is no use in waiting.
func writeBack(d kernel.Device, claim *os.File) error {
	if _, ours := readState(d); ours && !IsAlive(d) {
		return nil
	}
	if err := claim.Sync(); err != nil {
		return fmt.Errorf("%s: cannot write what is cached: %w: give --force to detach it all the same", d.Path(), err)
	}
	return nil
}

// awaitEnd returns when the process at the other end of c is gone, and with it its
// hold of the image.
func awaitEnd(ctx context.Context, d kernel.Device, c *net.UnixConn) error {
	defer c.Close()
	defer context.AfterFunc(ctx, func() { c.Close() })()
	for {
		if _, _, err := receive(c); err != nil {
			break
		}
	}
	if ctx.Err() != nil {
		return fmt.Errorf("%s is detached, but its server does not end: %w", d.Path(), context.Cause(ctx))
	}
	return nil
}
