package cli

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bttnbd/bttnbd/internal/sandbox"
)

// listenUnix puts a socket at a path so that whoever finds it there can connect,
// with the permissions and the owner it is to have:
//
//  1. Under a lock on the directory, which keeps servers of this kind apart, what
//     is at the path is looked at: nothing, or a dead socket.
//  2. In a directory of its own a socket is bound, given its mode and its owner, and
//     listened on.
//  3. It is renamed to the path, over the dead one.
//
// A socket that is bound and not yet listened on refuses connections as a dead one
// does; so it must not be seen before step 3. And where others may write, whoever
// could reach it by name in step 2 could put a link in its place, and have a server
// of root change the mode of any file.
func listenUnix(a listenAddr, mode os.FileMode, as *sandbox.Account) (m madeListener, err error) {
	dir, err := os.Open(filepath.Dir(a.address))
	if err != nil {
		return m, listenError(a, err)
	}
	defer dir.Close()
	if err := lockDirectory(dir); err != nil {
		return m, fmt.Errorf("%s: %w", a.given, err)
	}
	stale, err := lookForStale(a)
	if err != nil {
		return m, err
	}
	own, err := ownDirectory(dir)
	if err != nil {
		return m, listenError(a, err)
	}
	defer own.remove()
	// The way over the descriptor is short, however long the path is.
	bound := fmt.Sprintf("/proc/self/fd/%d/s", own.Fd())
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: bound, Net: "unix"})
	if err != nil {
		return m, listenError(a, err)
	}
	l.SetUnlinkOnClose(false)
	defer func() {
		if err != nil {
			err = errors.Join(listenError(a, err), l.Close())
			os.Remove(bound) // not there any more if it was renamed
		}
	}()
	if err = errors.Join(os.Chmod(bound, mode), as.Own(bound)); err != nil {
		return m, err
	}
	if m.socket, err = os.Lstat(bound); err != nil {
		return m, err
	}
	var flags uint = unix.RENAME_NOREPLACE
	if stale {
		flags = 0
	}
	if err = unix.Renameat2(unix.AT_FDCWD, bound, unix.AT_FDCWD, a.address, flags); err != nil {
		return m, err
	}
	named := &unixListener{l, &net.UnixAddr{Name: a.address, Net: "unix"}}
	m.Listener, m.at = named, endpoint{addr: named.addr}
	return m, nil
}

// privateDirectory is one in which nobody else can do anything.
type privateDirectory struct {
	*os.File
	name string
}

// ownDirectory makes one in dir. Others may rename it there, but not reach into it.
func ownDirectory(dir *os.File) (d privateDirectory, err error) {
	if d.name, err = os.MkdirTemp(fmt.Sprintf("/proc/self/fd/%d", dir.Fd()), ".bttnbd-"); err != nil {
		return d, err
	}
	if d.File, err = os.OpenFile(d.name, unix.O_DIRECTORY|unix.O_NOFOLLOW, 0); err != nil {
		return d, errors.Join(err, os.Remove(d.name))
	}
	if err = d.check(); err != nil {
		d.remove()
	}
	return d, err
}

// check refuses one that somebody has put in the place of ours.
func (d privateDirectory) check() error {
	var st unix.Stat_t
	err := unix.Fstat(int(d.Fd()), &st)
	if err == nil && (int(st.Uid) != os.Geteuid() || st.Mode&0o077 != 0) {
		err = errors.New("somebody has exchanged a directory that was made there")
	}
	return err
}

func (d privateDirectory) remove() {
	d.Close()
	_ = unix.Rmdir(d.name)
}

// unixListener knows the path that it has come to, not the one that it was bound to.
type unixListener struct {
	*net.UnixListener
	addr *net.UnixAddr
}

func (l *unixListener) Addr() net.Addr { return l.addr }

// lockPatience is far more than any number of servers need that start at once.
var lockPatience = 5 * time.Second

// lockDirectory holds a lock on dir until it is closed. It is held for moments by
// servers of this kind; but whoever may read the directory can hold one, and must not
// keep a server from starting: after some time it goes on without.
func lockDirectory(dir *os.File) error {
	const interval = 10 * time.Millisecond
	for deadline := time.Now().Add(lockPatience); ; time.Sleep(interval) {
		err := unix.Flock(int(dir.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		switch {
		case err == nil, errors.Is(err, errors.ErrUnsupported):
			return nil
		case err != unix.EINTR && err != unix.EWOULDBLOCK:
			return fmt.Errorf("locking its directory: %w: choose another path", err)
		case time.Now().After(deadline):
			return nil
		}
	}
}

// lookForStale reports whether a killed server has left its socket: one on which
// nobody answers. Anything else in that place is refused.
func lookForStale(a listenAddr) (stale bool, err error) {
	st, err := os.Lstat(a.address)
	if err != nil {
		return false, nil // nothing there, or listening will say what is wrong
	}
	if st.Mode().Type() != fs.ModeSocket {
		return false, fmt.Errorf("%s: %s is there: choose another path", a.given, kind(st.Mode()))
	}
	c, err := net.Dial("unix", a.address)
	if err == nil {
		c.Close()
	}
	switch {
	case err == nil, errors.Is(err, syscall.EAGAIN), isBound(a.address):
		return false, fmt.Errorf("%s: a server is listening there: stop it, or choose another path", a.given)
	case !errors.Is(err, syscall.ECONNREFUSED):
		return false, fmt.Errorf("%s: cannot tell whether a server is listening there: %w: choose another path", a.given, err)
	}
	return true, nil
}

// isBound looks for a living socket that was bound to path, and that is perhaps not
// listened on yet. Other programs than this one bind before they listen.
func isBound(path string) bool {
	f, err := os.Open("/proc/net/unix")
	if err != nil {
		return false
	}
	defer f.Close()
	abs, _ := filepath.Abs(path)
	for lines := bufio.NewScanner(f); lines.Scan(); {
		// Num RefCount Protocol Flags Type St Inode Path
		fields := strings.SplitN(strings.Join(strings.Fields(lines.Text()), " "), " ", 8)
		if len(fields) == 8 && (fields[7] == path || fields[7] == abs) && isUnconnected(fields[5]) {
			return true
		}
	}
	return false
}

// isUnconnected tells a socket that may come to listen, or does, from the ends of
// connections, which carry the path of their listener and outlive it.
func isUnconnected(state string) bool {
	n, err := strconv.ParseUint(state, 16, 8)
	return err == nil && n == 1 // SS_UNCONNECTED
}

// removeSocket removes the socket at path if it is ours. The directory may have
// become closed to a server that gave up its privileges; then it stays, and the
// next server replaces it.
func removeSocket(path string, ours os.FileInfo) error {
	st, err := os.Lstat(path)
	if err != nil || !os.SameFile(st, ours) {
		return nil
	}
	if err := os.Remove(path); !errors.Is(err, fs.ErrPermission) {
		return err
	}
	return nil
}
