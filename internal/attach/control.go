package attach

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bttnbd/bttnbd/internal/kernel"
	"github.com/bttnbd/bttnbd/nbd"
)

// A hand-over, over the socket of the old process (/run/bttnbd-attach/nbdN.sock, one
// message a packet):
//
//	new                       old
//	 |  --- {"take":true} ----->|   ends its connections between two requests,
//	 |                          |   closes the image
//	 |  <-- {"paused":…} -------|   and with it the sockets
//	 |                          |
//	 |  opens the image         |
//	 |  --- {"opened":true} --->|   does nothing on its own any more
//	 |  <-- {"yours":true} -----|
//	 |  serves on the sockets   |
//	 |  --- {"taken":true} ---->|   ends
//
// If the connection breaks before the last message, or the new one has not opened the
// image in time, the old one opens it again and goes on. Nobody touches the sockets
// but who has been told, or has told, that they are its own: with "yours" the old one
// gives up its right to lose patience, and the new one that does not get it lets go.
type message struct {
	Take   bool      `json:"take,omitempty"`
	Grow   *Growth   `json:"grow,omitempty"` // see grow.go
	Opened bool      `json:"opened,omitempty"`
	Yours  bool      `json:"yours,omitempty"`
	Taken  bool      `json:"taken,omitempty"`
	Paused int64     `json:"paused,omitempty"` // ns of CLOCK_MONOTONIC
	Since  time.Time `json:"since,omitzero"`
	Setup  *passed   `json:"setup,omitempty"`
	Error  string    `json:"error,omitempty"`
}

// passed is what the new process must know of the device.
type passed struct {
	Size      uint64 `json:"size"`
	BlockSize uint32 `json:"block_size"`
	Flags     uint16 `json:"flags"`
	Backend   string `json:"backend"`
	Path      string `json:"path,omitempty"`  // of the image
	Inode     string `json:"inode,omitempty"` // of the file that was open; older versions do not tell
}

// control is the socket where others find us. A nil one is none.
type control struct {
	listener *net.UnixListener
	path     string
	takers   chan *net.UnixConn // who wants to take over
	growers  chan grower        // who wants the image to be larger
}

// listen makes the socket, in place of a predecessor's.
func listen(d kernel.Device) (*control, error) {
	c := &control{path: runtimeFile(d, ".sock"), takers: make(chan *net.UnixConn), growers: make(chan grower)}
	if err := os.Remove(c.path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	l, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: c.path, Net: "unixpacket"})
	if err != nil {
		return nil, err
	}
	l.SetUnlinkOnClose(false) // it may be a successor's by then
	c.listener = l
	go func() {
		for {
			conn, err := l.AcceptUnix()
			if err != nil {
				return
			}
			go c.greet(conn)
		}
	}()
	return c, nil
}

// greet waits for what a visitor wants. Many only look whether somebody is there, or
// wait until nobody is.
func (c *control) greet(conn *net.UnixConn) {
	err := sameUser(conn)
	var m message
	if err == nil {
		m, _, err = receive(conn)
	}
	switch {
	case err == nil && m.Grow != nil:
		c.growers <- grower{conn, *m.Grow}
	case err == nil && m.Take:
		c.takers <- conn
	default:
		conn.Close()
	}
}

func (c *control) close() error {
	if c == nil {
		return nil
	}
	return c.listener.Close()
}

func dial(d kernel.Device) (*net.UnixConn, error) {
	c, err := net.DialUnix("unixpacket", nil, &net.UnixAddr{Name: runtimeFile(d, ".sock"), Net: "unixpacket"})
	if err != nil {
		return nil, err
	}
	if err := sameUser(c); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// sameUser refuses a process at the other end that is another user's: it would get
// the connections of the device, or have us write to those that it made up.
func sameUser(c *net.UnixConn) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var peer *unix.Ucred
	err = errors.Join(raw.Control(func(fd uintptr) {
		peer, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}), err)
	if err != nil {
		return err
	}
	if int(peer.Uid) != os.Geteuid() {
		return fmt.Errorf("the process %d at the other end of the socket belongs to user %d: end it", peer.Pid, peer.Uid)
	}
	return nil
}

// IsAlive reports whether a process of ours serves the device.
func IsAlive(d kernel.Device) bool {
	c, err := dial(d)
	if err != nil {
		return false
	}
	c.Close()
	return true
}

const maxFDs = 64 // of one message; the kernel takes up to 253

func send(c *net.UnixConn, m message, fds ...int) error {
	text, err := json.Marshal(m)
	if err != nil {
		return err
	}
	var oob []byte
	if len(fds) > 0 {
		oob = unix.UnixRights(fds...)
	}
	_, _, err = c.WriteMsgUnix(text, oob, nil)
	return err
}

func receive(c *net.UnixConn) (m message, fds []int, err error) {
	text, oob := make([]byte, 4096), make([]byte, unix.CmsgSpace(4*maxFDs))
	n, oobn, _, _, err := c.ReadMsgUnix(text, oob)
	if err != nil {
		return m, nil, err
	}
	if n == 0 {
		return m, nil, errors.New("the other process is gone")
	}
	parts, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil {
		return m, nil, err
	}
	for _, p := range parts {
		got, err := unix.ParseUnixRights(&p)
		if err != nil {
			return m, nil, err
		}
		fds = append(fds, got...)
	}
	return m, fds, json.Unmarshal(text[:n], &m)
}

// handOver gives the device to the process at the other end of c. It returns false
// when that one has not taken it, and all is as before.
func (s *Service) handOver(c *net.UnixConn) (handed bool, err error) {
	defer c.Close()
	source, ok := s.source.(*imageSource)
	if !ok {
		return false, send(c, message{Error: "the device is on another server: there is nothing to take over"})
	}
	paused := monotonic()
	s.quiesce()
	var fds []int
	for _, conn := range s.connections {
		if conn != nil {
			fds = append(fds, conn.(*imageConn).fd)
		}
	}
	if err := source.close(); err != nil {
		return false, err
	}
	err = send(c, message{Paused: paused, Since: s.since, Setup: s.passed(source)}, fds...)
	if err == nil {
		err = awaitTaken(c)
	}
	if err == nil {
		s.o.Log.Info().Str("device", s.dev.Path()).Msg("handed over")
		return true, s.control.close()
	}
	c.Close() // what the new one says from here on comes to nothing
	s.o.Log.Warn().Err(err).Msg("nobody has taken over; going on")
	return false, s.resume(source, "a hand-over that failed")
}

// passed is what the successor is told.
func (s *Service) passed(source *imageSource) *passed {
	return &passed{s.setup.Size, s.setup.BlockSize, s.setup.Flags, s.setup.Backend, s.o.Path, source.image.inode()}
}

// openTimeout is how long the new process may take to open the image, while nobody
// serves the device.
var openTimeout = 10 * time.Second

// awaitTaken returns when the process at the other end of c serves the device, or with
// an error when it does not, and never will.
func awaitTaken(c *net.UnixConn) error {
	c.SetReadDeadline(time.Now().Add(openTimeout))
	m, _, err := receive(c)
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return fmt.Errorf("the new process has not opened the image within %v", openTimeout)
	case err != nil:
		return err
	case !m.Opened:
		return fmt.Errorf("the new process: %s", m.Error)
	}
	c.SetReadDeadline(time.Time{}) // it has the sockets and the image: no going back but by its end
	if err := send(c, message{Yours: true}); err != nil {
		return err
	}
	m, _, err = receive(c)
	if err == nil && !m.Taken {
		err = fmt.Errorf("the new process: %s", m.Error)
	}
	return err
}

// resume serves again on the sockets that there were; after says, in words, what has
// closed the image. A new process that came too late may still have to let go of it.
func (s *Service) resume(source *imageSource, after string) error {
	err := source.reopen()
	for end := time.Now().Add(openTimeout); errors.Is(err, unix.EBUSY) && time.Now().Before(end); err = source.reopen() {
		time.Sleep(minPause)
	}
	if err != nil {
		return fmt.Errorf("opening %s again after %s: %w", s.o.Path, after, err)
	}
	s.leaving.Store(false)
	for i, old := range s.connections {
		if old == nil {
			continue // keep makes a new one
		}
		c, err := source.serve(old.(*imageConn).socket)
		if err != nil {
			return err
		}
		s.connections[i] = c
		source.forget(old.(*imageConn).link)
	}
	s.keepAll()
	return nil
}

// TakeOver is [Start] for a device that another process of ours serves: that one is
// told to let go. pause is for how long nobody served it.
func TakeOver(ctx context.Context, dev kernel.Device, o Options) (s *Service, pause time.Duration, err error) {
	if known, ok := readState(dev); ok {
		// Seen before anything is opened, or anybody has to wait.
		if err := sameFile(dev, known.Source, known.Inode, o.Path, inodeOf(o.Path)); err != nil {
			return nil, 0, err
		}
	}
	c, err := dial(dev)
	if err != nil {
		return nil, 0, fmt.Errorf("%s: nobody to take over from: %w: leave --replace out", dev.Path(), err)
	}
	defer c.Close()
	uncancel := context.AfterFunc(ctx, func() { c.Close() })
	if err := send(c, message{Take: true}); err != nil {
		return nil, 0, err
	}
	m, fds, err := receive(c)
	switch cancelled := !uncancel(); { // to close c later would say that we have let go
	case cancelled:
		err = context.Cause(ctx)
	case err == nil && m.Error != "":
		err = errors.New(m.Error)
	case err == nil && m.Setup == nil:
		err = errors.New("no answer that makes sense")
	}
	if err != nil {
		for _, fd := range fds {
			unix.Close(fd)
		}
		return nil, 0, fmt.Errorf("%s: taking over: %w", dev.Path(), err)
	}
	s = &Service{o: o, since: m.Since, gone: make(chan struct{})}
	s.found(dev)
	if err := s.takeOn(c, m, fds); err != nil {
		// The other process resumes as soon as it knows. Our copies of the sockets
		// go before, as nobody is to read from them any more.
		send(c, message{Error: err.Error()})
		return nil, 0, err
	}
	pause = time.Duration(monotonic() - m.Paused)
	send(c, message{Taken: true}) // if it is gone already, all the better
	if s.control, err = listen(dev); err == nil {
		err = s.writeState()
	}
	if err != nil {
		return nil, 0, errors.Join(err, s.end(false))
	}
	return s, pause, nil
}

// takeOn opens the image and, when the old process agrees, serves it on the sockets.
// When it fails, it has let go of both.
func (s *Service) takeOn(old *net.UnixConn, m message, fds []int) error {
	sockets := make([]*net.UnixConn, 0, len(fds))
	closeAll := func() {
		for _, c := range sockets {
			c.Close()
		}
	}
	for _, fd := range fds {
		c, err := unixConn(fd)
		if err != nil {
			closeAll()
			return err
		}
		sockets = append(sockets, c)
	}
	source, err := newImageSource(s.o.Open, s.o.Log)
	if err != nil {
		closeAll()
		return err
	}
	s.source = source
	s.setup = kernel.Setup{Index: s.dev.Index, Size: m.Setup.Size, BlockSize: m.Setup.BlockSize, Flags: m.Setup.Flags,
		Backend: m.Setup.Backend, Timeout: s.timeout(), DeadTimeout: s.o.DeadTimeout}
	if err = s.sameImage(source, m.Setup); err == nil {
		err = askForIt(old)
	}
	for _, c := range sockets {
		if err != nil {
			c.Close()
			continue
		}
		var conn *imageConn
		if conn, err = source.serve(c); err == nil {
			s.connections = append(s.connections, conn)
		}
	}
	if err != nil {
		return errors.Join(err, s.end(false))
	}
	for len(s.connections) < s.dev.Connections() {
		s.connections = append(s.connections, nil)
	}
	s.keepAll()
	return nil
}

// askForIt returns when the process at the other end of c has left the sockets to us.
func askForIt(c *net.UnixConn) error {
	if err := send(c, message{Opened: true}); err != nil {
		return fmt.Errorf("it took too long to open the image, and the other process goes on: %w", err)
	}
	c.SetReadDeadline(time.Now().Add(openTimeout))
	m, _, err := receive(c)
	if err != nil || !m.Yours {
		return fmt.Errorf("the other process goes on: %w", errors.Join(err, errors.New(m.Error)))
	}
	return nil
}

// sameImage refuses to go on with what the filesystem on the device does not know.
func (s *Service) sameImage(source *imageSource, served *passed) error {
	image, size := source.image, source.image.Export.Size
	switch {
	case image.Backend != s.setup.Backend:
		return fmt.Errorf("%s has the UUID %s, and %s is attached from one with %s: nothing was changed", s.o.Path, image.Backend, s.dev.Path(), s.setup.Backend)
	case size-size%uint64(image.BlockSize) != s.setup.Size, image.BlockSize != s.setup.BlockSize:
		return fmt.Errorf("%s is not of the size that %s was attached with: nothing was changed", s.o.Path, s.dev.Path())
	case image.Export.ReadOnly != (s.setup.Flags&nbd.NBD_FLAG_READ_ONLY != 0):
		return fmt.Errorf("%s: --read-only must be as it was when %s was attached: nothing was changed", s.o.Path, s.dev.Path())
	}
	return sameFile(s.dev, served.Path, served.Inode, s.o.Path, image.inode())
}

// sameFile refuses a file that is not the one served: a copy has the same UUID, and not
// what the filesystem on the device has written since. An inode that is not known is "".
func sameFile(dev kernel.Device, served, servedInode, path, inode string) error {
	if servedInode == "" || inode == "" || servedInode == inode {
		return nil
	}
	return fmt.Errorf("%s is served from %s, and %s is another file, or a copy: nothing was changed: give --replace the path %s, or, to have the other one there, unmount and bttnbd detach %s first",
		dev.Path(), served, path, served, dev.Path())
}

func monotonic() int64 {
	var t unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &t) // cannot fail
	return t.Nano()
}
