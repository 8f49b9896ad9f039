package vm

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"path"
)

// An archive is a cpio archive in the "newc" format, which the kernel unpacks into
// its first root filesystem: for each file 110 bytes of hexadecimal header, the
// name, the content, each padded to 4 bytes
// (Documentation/driver-api/early-userspace/buffer-format.rst).
type archive struct {
	w    *bufio.Writer
	n    int64 // bytes written
	made map[string]bool
	err  error // the first
}

func newArchive(w io.Writer) *archive {
	return &archive{w: bufio.NewWriterSize(w, 1<<20), made: map[string]bool{".": true, "/": true}}
}

const (
	typeDir  = 0o040000
	typeFile = 0o100000
	typeLink = 0o120000
)

// dir adds a directory and those above it, unless they are there.
func (a *archive) dir(name string) {
	name = path.Clean(name)
	if a.made[name] {
		return
	}
	a.dir(path.Dir(name))
	a.entry(name, typeDir|0o755, nil)
}

// file adds a file and the directories above it. A second one of the same name is
// ignored.
func (a *archive) file(name string, mode os.FileMode, content []byte) {
	if name = path.Clean(name); a.made[name] {
		return
	}
	a.dir(path.Dir(name))
	a.entry(name, typeFile|uint32(mode.Perm()), content)
}

// copy adds a file of the host under a name.
func (a *archive) copy(name, from string) {
	if a.err != nil || a.made[path.Clean(name)] {
		return
	}
	st, err := os.Stat(from)
	if err != nil {
		a.err = err
		return
	}
	content, err := os.ReadFile(from)
	if err != nil {
		a.err = err
		return
	}
	a.file(name, st.Mode(), content)
}

// link adds a symbolic link.
func (a *archive) link(name, target string) {
	a.dir(path.Dir(name))
	a.entry(path.Clean(name), typeLink|0o777, []byte(target))
}

func (a *archive) entry(name string, mode uint32, content []byte) {
	a.made[name] = true
	inode := len(a.made)
	for name[0] == '/' {
		name = name[1:]
	}
	a.printf("070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%s\x00",
		inode, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name)+1, 0, name)
	a.pad()
	a.write(content)
	a.pad()
}

func (a *archive) printf(format string, args ...any) { a.write(fmt.Appendf(nil, format, args...)) }

func (a *archive) pad() { a.write(make([]byte, -a.n&3)) }

func (a *archive) write(p []byte) {
	if a.err == nil {
		_, a.err = a.w.Write(p)
		a.n += int64(len(p))
	}
}

// close ends the archive and returns the first error of all that was added.
func (a *archive) close() error {
	a.entry("TRAILER!!!", 0, nil)
	if a.err != nil {
		return a.err
	}
	return a.w.Flush()
}
