package attach

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bttnbd/bttnbd/internal/kernel"
	"github.com/bttnbd/bttnbd/internal/socket"
	"github.com/bttnbd/bttnbd/nbd"
)

// A link is a connection to the kernel as the server sees it. It begins on a pipe,
// at whose other end this process does the handshake in the kernel's place, and
// goes on on a socket, whose other end the kernel has or will get. So a socket that
// is in the middle of transmission can be given to a new server.
type link struct {
	pipe   net.Conn
	hands  net.Conn // the other end of pipe, until the handshake is done
	socket *net.UnixConn
	fd     int // of socket
	stream stream
	peers  *links

	begun    bool // transmission; the server's goroutine alone knows
	requests requests
	polled   []unix.PollFd // room for fence

	leaving atomic.Bool   // end at the end of a request
	done    chan struct{} // closed when the server has let go: no request is under way
	err     error         // of the server; set before done is closed
}

// links are all those of a device; in place of one that has ended comes another.
type links struct {
	all atomic.Pointer[[]*link]
	fua atomic.Uint64 // requests with NBD_CMD_FLAG_FUA, of all links that there were
}

// newLink takes over the socket.
func newLink(socket *net.UnixConn, peers *links) (*link, error) {
	l := &link{socket: socket, peers: peers, done: make(chan struct{})}
	raw, err := socket.SyscallConn()
	if err == nil {
		err = raw.Control(func(fd uintptr) { l.fd = int(fd) })
	}
	if err != nil {
		socket.Close()
		return nil, err
	}
	l.stream.init(raw)
	l.pipe, l.hands = net.Pipe()
	return l, nil
}

// negotiate does the handshake while a server serves the link.
func (l *link) negotiate() (kernel.Export, error) {
	defer l.hands.Close() // the server finds the end of the pipe, and turns to the socket
	return kernel.Negotiate(l.hands, "")
}

// Read gives the server handshake first, then requests.
func (l *link) Read(p []byte) (int, error) {
	if !l.begun {
		n, err := l.pipe.Read(p)
		if err != io.EOF {
			return n, err
		}
		l.begun = true
	}
	for {
		if l.leaving.Load() {
			// The rest of a request is on its way; behind it is the end.
			if p = p[:min(len(p), l.requests.missing())]; len(p) == 0 {
				return 0, io.EOF
			}
		}
		n, err := l.stream.Read(p)
		if n > 0 {
			before := l.requests.fua
			l.requests.advance(p[:n])
			l.peers.fua.Add(l.requests.fua - before)
			return l.fence(p, n)
		}
		if !errors.Is(err, os.ErrDeadlineExceeded) || !l.leaving.Load() {
			return n, err
		}
		l.socket.SetReadDeadline(time.Time{}) // woken by leave
	}
}

// leave makes the server find the end of the stream behind the request that it has
// begun to read, or at once. What the kernel has sent beyond stays in the socket.
func (l *link) leave() {
	l.leaving.Store(true)
	l.socket.SetReadDeadline(time.Unix(1, 0)) // wakes a Read
}

// fence lets the n bytes in p pass when no connection that the kernel has given up
// is being served any more: they may hold the second copy of a request. On a
// connection that was given up itself nothing passes. The kernel shuts a connection
// down before it sends again, so a look at the sockets tells.
func (l *link) fence(p []byte, n int) (int, error) {
	peers := *l.peers.all.Load()
	if len(peers) == 1 {
		return n, nil
	}
	l.polled = l.polled[:0]
	for _, other := range peers {
		l.polled = append(l.polled, unix.PollFd{Fd: int32(other.fd), Events: unix.POLLRDHUP})
	}
	if down, err := socket.Poll(l.polled); down == 0 && err == nil {
		return n, nil
	}
	if l.shut() {
		return 0, l.drain(p)
	}
	for _, other := range peers {
		if other != l && other.shut() && !l.outlive(other) {
			return 0, l.drain(p)
		}
	}
	return n, nil
}

// outlive returns true when a dead peer is not being served any more, and false when
// the kernel has given up l itself meanwhile: then the peer may be waiting for l, as
// it may have looked at its own socket before that was shut.
func (l *link) outlive(dead *link) bool {
	tick := time.NewTicker(fencePause)
	defer tick.Stop()
	for {
		select {
		case <-dead.done:
			return true
		case <-tick.C:
			if l.shut() {
				return false
			}
		}
	}
}

// fencePause is how often one that waits for a dead peer looks whether it is dead
// itself.
const fencePause = 10 * time.Millisecond

// shut reports whether the kernel has given the connection up, or disconnected.
func (l *link) shut() bool {
	p := []unix.PollFd{{Fd: int32(l.fd), Events: unix.POLLRDHUP}}
	n, err := unix.Poll(p, 0)
	return err != nil || n != 0
}

// drain reads what is left on a dead connection, for there may be a goodbye.
func (l *link) drain(p []byte) error {
	for {
		n, err := l.socket.Read(p)
		if err != nil {
			return io.EOF
		}
		l.requests.advance(p[:n])
	}
}

// Write sends what the server says to whom it concerns.
func (l *link) Write(p []byte) (int, error) {
	if !l.begun {
		return l.pipe.Write(p)
	}
	return l.stream.Write(p)
}

// Close is the server's: the socket may be wanted for another one.
func (l *link) Close() error { return l.pipe.Close() }

func (l *link) LocalAddr() net.Addr  { return l.socket.LocalAddr() }
func (l *link) RemoteAddr() net.Addr { return l.socket.RemoteAddr() }

func (l *link) SetDeadline(t time.Time) error {
	return errors.Join(l.pipe.SetDeadline(t), l.socket.SetDeadline(t))
}

func (l *link) SetReadDeadline(t time.Time) error {
	return errors.Join(l.pipe.SetReadDeadline(t), l.socket.SetReadDeadline(t))
}

func (l *link) SetWriteDeadline(t time.Time) error {
	return errors.Join(l.pipe.SetWriteDeadline(t), l.socket.SetWriteDeadline(t))
}

// requests follows a stream of compact requests, to know where one ends.
//
//	0       4       6      8        16       24       28
//	+-------+-------+------+--------+--------+--------+-------------------+
//	| magic | flags | type | cookie | offset | length | payload, of WRITE |
//	+-------+-------+------+--------+--------+--------+-------------------+
type requests struct {
	head    [28]byte
	have    int  // bytes of head
	payload int  // bytes that are still to come
	disc    bool // NBD_CMD_DISC was there: the kernel has said goodbye

	fua uint64 // requests with NBD_CMD_FLAG_FUA
}

// advance takes the next bytes of the stream.
func (r *requests) advance(p []byte) {
	for len(p) > 0 {
		if r.payload > 0 {
			n := min(r.payload, len(p))
			r.payload -= n
			p = p[n:]
			continue
		}
		n := copy(r.head[r.have:], p)
		r.have += n
		p = p[n:]
		if r.have < len(r.head) {
			return
		}
		r.have = 0
		if binary.BigEndian.Uint16(r.head[4:])&nbd.NBD_CMD_FLAG_FUA != 0 {
			r.fua++
		}
		switch binary.BigEndian.Uint16(r.head[6:]) {
		case nbd.NBD_CMD_WRITE:
			r.payload = int(binary.BigEndian.Uint32(r.head[24:]))
		case nbd.NBD_CMD_DISC:
			r.disc = true
		}
	}
}

// missing is how many bytes are known to be still to come of the request that has
// begun; 0 between two.
func (r *requests) missing() int {
	if r.payload > 0 {
		return r.payload
	}
	if r.have > 0 {
		return len(r.head) - r.have
	}
	return 0
}

// socketPair returns our end and, as a descriptor, the kernel's.
func socketPair() (ours *net.UnixConn, theirs int, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, -1, fmt.Errorf("socketpair: %w", err)
	}
	ours, err = unixConn(fds[0])
	if err != nil {
		unix.Close(fds[1])
		return nil, -1, err
	}
	return ours, fds[1], nil
}

// unixConn makes a connection of a descriptor, which it closes.
func unixConn(fd int) (*net.UnixConn, error) {
	f := os.NewFile(uintptr(fd), "socket")
	defer f.Close()
	c, err := net.FileConn(f)
	if err != nil {
		return nil, err
	}
	u, ok := c.(*net.UnixConn)
	if !ok {
		c.Close()
		return nil, fmt.Errorf("%T is no unix socket", c)
	}
	return u, nil
}
