package sandbox

import (
	"errors"
	"fmt"

	"github.com/landlock-lsm/go-landlock/landlock"
	ll "github.com/landlock-lsm/go-landlock/landlock/syscall"
)

// Files are what the process may still open by name. Directories stand for all that
// is, and will be, below them.
type Files struct {
	Read   []string // directories to read in
	Write  []string // directories whose files may also be written
	Create []string // directories in which files may also be made
	Remove []string // directories in which files and sockets may be removed

	RemoveDirs []string // directories in which empty directories may be removed
}

// Rights on directories, in the words of landlock(7).
const (
	read   = ll.AccessFSReadFile | ll.AccessFSReadDir
	write  = read | ll.AccessFSWriteFile
	create = write | ll.AccessFSMakeReg | ll.AccessFSRemoveFile | ll.AccessFSTruncate
	remove = ll.AccessFSRemoveFile
	rmdir  = ll.AccessFSRemoveDir
)

// Level is what Landlock of this kernel can do: its ABI, 0 for nothing.
func Level() int {
	v, err := ll.LandlockGetABIVersion()
	if err != nil {
		return 0
	}
	return v
}

// Restrict keeps all threads of the process, and what it starts, from opening
// anything else by name than f has, from running programs, and from TCP that is
// not open yet; the last from Linux 6.7 on. What is open stays open.
func Restrict(f Files) error {
	if Level() == 0 {
		return errors.New("this kernel has no Landlock, or does not have it switched on: see lsm= on its command line")
	}
	// V7 is the last to leave sockets of the filesystem alone: systemd is told
	// through one that the server is ready.
	config := landlock.V7.BestEffort()
	err := config.RestrictPaths(
		landlock.PathAccess(read, f.Read...).IgnoreIfMissing(),
		landlock.PathAccess(write, f.Write...).IgnoreIfMissing(),
		landlock.PathAccess(create, f.Create...).IgnoreIfMissing(),
		landlock.PathAccess(remove, f.Remove...).IgnoreIfMissing(),
		landlock.PathAccess(rmdir, f.RemoveDirs...).IgnoreIfMissing(),
	)
	if err == nil {
		err = config.RestrictNet()
	}
	if err != nil {
		return fmt.Errorf("landlock: %w", err)
	}
	return nil
}
