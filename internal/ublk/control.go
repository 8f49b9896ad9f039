package ublk

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// ControlPath is where devices are made; the module ublk_drv makes it.
const ControlPath = "/dev/ublk-control"

// AnyIndex lets the driver choose the number of a new device.
const AnyIndex = -1

// A Control is a connection to the driver. One goroutine at a time may use it.
type Control struct {
	fd     int
	ring   *ring
	buffer []byte // a page for arguments that stays where it is
}

// OpenControl opens the driver's control device, which takes root and the module.
func OpenControl() (*Control, error) {
	fd, err := unix.Open(ControlPath, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: ControlPath, Err: err}
	}
	c := &Control{fd: fd}
	if c.ring, err = newRing(4, setupSQE128); err == nil {
		c.buffer, err = anonymous(os.Getpagesize())
	}
	if err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}

// Close leaves the devices as they are.
func (c *Control) Close() error {
	var errs []error
	if c.ring != nil {
		errs = append(errs, c.ring.close())
	}
	if c.buffer != nil {
		errs = append(errs, unix.Munmap(c.buffer))
	}
	return errors.Join(append(errs, unix.Close(c.fd))...)
}

// do has the driver execute a command, with the first size bytes of the buffer.
func (c *Control) do(name string, op uint32, index int, size uint16, data uint64) error {
	cmd := control{index: uint32(index), size: size, data: data}
	if size > 0 {
		cmd.addr = address(c.buffer)
	}
	cmd.encode(c.ring.command(op, c.fd, 0))
	if err := c.ring.enter(1); err != nil {
		return err
	}
	_, res, _ := c.ring.completion()
	if res < 0 {
		return fmt.Errorf("%s of ublk device %d: %w", name, index, syscall.Errno(-res))
	}
	return nil
}

// A Spec says what a device is to be.
type Spec struct {
	Index     int // N of /dev/ublkbN, or AnyIndex
	Queues    int // the driver takes one a CPU at most
	Size      uint64
	BlockSize uint32 // bytes: a power of two from 512 to a page
	ReadOnly  bool
	Cookie    uint64 // what a later server is to know the device by
}

// Of each queue: how many requests it holds, and bytes of one. The product is memory
// that the process has and keeps.
const (
	depth = 64
	maxIO = 256 << 10
)

const wanted = flagRecovery | flagRecoveryReissue | flagIoctl

// Add makes a device, which has no disk yet.
func (c *Control) Add(s Spec) (Info, error) {
	in := Info{
		Queues: uint16(s.Queues), Depth: depth, MaxIO: maxIO, Index: uint32(s.Index), PID: -1,
		Flags: wanted, Cookie: s.Cookie,
	}
	in.encode(c.buffer)
	if err := c.do("making", cmdAdd, s.Index, infoSize, 0); err != nil {
		return Info{}, err
	}
	in = decodeInfo(c.buffer)
	if in.Flags&wanted != wanted {
		return Info{}, errors.Join(fmt.Errorf("the driver lacks what is needed (its flags: %#x): it takes Linux 6.4", in.Flags), c.Delete(int(in.Index)))
	}
	p := s.params()
	p.encode(c.buffer)
	if err := c.do("setting up", cmdSetParams, int(in.Index), paramsLen, 0); err != nil {
		return Info{}, errors.Join(err, c.Delete(int(in.Index)))
	}
	return in, nil
}

func (s *Spec) params() params {
	p := params{
		attrs: attrVolatileCache | attrFUA, logicalShift: log2(s.BlockSize), physicalShift: log2(s.BlockSize),
		maxSectors: maxIO >> sectorShift, sectors: s.Size >> sectorShift, granularity: s.BlockSize,
		maxDiscard: uint32(maxClear >> sectorShift), maxWriteZeroes: uint32(maxClear >> sectorShift),
	}
	if s.ReadOnly {
		p.attrs |= attrReadOnly
	}
	return p
}

// Info tells what a device is.
func (c *Control) Info(index int) (Info, error) {
	if err := c.do("asking", cmdInfo, index, infoSize, 0); err != nil {
		return Info{}, err
	}
	return decodeInfo(c.buffer), nil
}

// Start gives the device a disk, /dev/ublkbN. Its queues must have been served since
// before, or this waits for them.
func (c *Control) Start(index int) error {
	return c.do("starting", cmdStart, index, 0, uint64(os.Getpid()))
}

// Stop takes the disk away. What is not written yet is lost.
func (c *Control) Stop(index int) error { return c.do("stopping", cmdStop, index, 0, 0) }

// Delete makes the device go, as soon as its server and all who have it open have let go.
func (c *Control) Delete(index int) error {
	err := c.do("deleting", cmdDeleteAsync, index, 0, 0)
	if errors.Is(err, unix.EOPNOTSUPP) { // older drivers have only one that waits
		err = c.do("deleting", cmdDelete, index, 0, 0)
	}
	return err
}

// deletePause is how often AwaitGone asks the driver, which tells nobody.
const deletePause = 5 * time.Millisecond

// IsOpen reports whether a process has the device open as its server, or is about to be:
// the driver lets only one.
func IsOpen(index int) bool {
	fd, err := unix.Open(charPath(index), unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return errors.Is(err, unix.EBUSY)
	}
	unix.Close(fd)
	return false
}

// AwaitGone returns when a device that was deleted is gone.
func (c *Control) AwaitGone(ctx context.Context, index int) error {
	tick := time.NewTicker(deletePause)
	defer tick.Stop()
	for {
		_, err := c.Info(index)
		switch {
		case errors.Is(err, unix.ENODEV):
			return nil
		case err != nil:
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("/dev/ublkb%d: still there, somebody has it open: %w", index, context.Cause(ctx))
		}
	}
}

// BeginRecovery makes a device whose server is gone ready for another one. The error is
// unix.EBUSY as long as it is not quite gone.
func (c *Control) BeginRecovery(index int) error {
	return c.do("reviving", cmdStartRecovery, index, 0, 0)
}

// EndRecovery lets requests go on, and those that were under way be sent again. Its
// queues must have been served since before, or this waits for them.
func (c *Control) EndRecovery(index int) error {
	return c.do("reviving", cmdEndRecovery, index, 0, uint64(os.Getpid()))
}

// anonymous returns memory that is never moved, nor looked at by the collector, and all
// there: a request may come when there is none to be had.
func anonymous(size int) ([]byte, error) {
	b, err := unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_POPULATE)
	if err != nil {
		return nil, fmt.Errorf("memory for %d bytes: %w", size, err)
	}
	return b, nil
}

func pages(size int) int {
	page := os.Getpagesize()
	return (size + page - 1) / page * page
}

func log2(n uint32) (shift byte) {
	for n > 1 {
		n, shift = n>>1, shift+1
	}
	return shift
}
