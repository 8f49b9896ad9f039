package pmem

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Mode chooses the durability of a mapping.
type Mode int

const (
	Auto         Mode = iota // what the medium can do, see [Durability]
	ForceProcess             // fences only, whatever the medium: fast, and lost at power failure
	ForceDAX                 // treat any mapping as persistent memory: for benchmarks and tests
)

// Options of [Open] and [Create]. The zero value is a writable, locked region of
// the durability its medium offers.
type Options struct {
	ReadOnly   bool // stores stay private to this process; the file is never changed
	NoLock     bool // neither take nor respect the lock
	Durability Mode
	// SizeIfEmpty, if not 0, is the size in bytes that a regular file of none gets,
	// once it is locked, so that nobody else can give it another: see [Region.Sized].
	SizeIfEmpty uint64
}

// file is what a mapped region keeps of its file.
type file struct {
	path     string
	fd       int
	readOnly bool
	private  bool // stores go to private pages, not to the file
	sized    bool // see Region.Sized
}

// Open maps the file, block device or device DAX (/dev/daxN.M) at path, whole.
// Nobody else may own it: see [InUseError]. In Msync mode it first makes durable
// what an earlier owner, killed, may have left in the page cache only; recovery
// reads that and must be able to rely on it.
func Open(path string, o Options) (*Region, error) {
	// Looked at before it is opened: opening a pipe or a tape has effects.
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if err := mappable(path, st.Mode); err != nil {
		return nil, err
	}
	fd, err := openFile(path, st.Mode, o)
	if err != nil {
		return nil, err
	}
	return attach(path, fd, o)
}

// Create makes a new file of size bytes, all zero, maps it and makes its existence
// durable. The file is sparse: it takes space as it is written. An existing file
// is left alone and is an error (fs.ErrExist). When Create fails it leaves nothing.
func Create(path string, size uint64, o Options) (*Region, error) {
	if o.ReadOnly {
		return nil, fmt.Errorf("%s: cannot create a file read-only", path)
	}
	if size == 0 || size > 1<<63-1 {
		return nil, fmt.Errorf("%s: cannot create a file of %d bytes", path, size)
	}
	fd, err := retry(func() (int, error) {
		return unix.Open(path, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL|unix.O_CLOEXEC, 0o644)
	})
	if err != nil {
		return nil, fmt.Errorf("%s: create: %w", path, err)
	}
	o.SizeIfEmpty = size
	return ownNew(path, fd, o)
}

// ownNew becomes the owner of the new file fd, unless somebody who has seen its name
// was quicker.
func ownNew(path string, fd int, o Options) (*Region, error) {
	r, err := attach(path, fd, o)
	var inUse *InUseError
	switch {
	case errors.As(err, &inUse):
		return nil, err // somebody was quicker, whose file it is now
	case err != nil:
		os.Remove(path)
		return nil, err
	case !r.Sized():
		return nil, errors.Join(fmt.Errorf("%s: create: %w", path, fs.ErrExist), r.Close())
	}
	if err := syncNew(path, fd); err != nil {
		os.Remove(path) // while nobody else can own it
		r.Close()
		return nil, err
	}
	return r, nil
}

// syncNew makes the size of a new file and its name in the directory durable.
func syncNew(path string, fd int) error {
	if err := unix.Fsync(fd); err != nil {
		return fmt.Errorf("%s: fsync: %w", path, err)
	}
	dir := filepath.Dir(path)
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	// Some filesystems cannot sync a directory and say so; they need no sync.
	if err := d.Sync(); err != nil && !errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("%s: fsync: %w", dir, err)
	}
	return nil
}

// mappable says why a file of this kind cannot be mapped.
func mappable(path string, mode uint32) error {
	switch mode & unix.S_IFMT {
	case unix.S_IFREG, unix.S_IFBLK, unix.S_IFCHR:
		return nil
	case unix.S_IFDIR:
		return fmt.Errorf("%s: %w: name an image file or a device", path, unix.EISDIR)
	}
	return fmt.Errorf("%s: neither a regular file nor a block or DAX device", path)
}

// openFile opens what is there. The owner of a block device opens it exclusively,
// which also keeps the kernel from mounting it and fails while it is mounted.
func openFile(path string, mode uint32, o Options) (int, error) {
	flags := unix.O_RDWR | unix.O_CLOEXEC | unix.O_NONBLOCK
	if o.ReadOnly {
		flags = unix.O_RDONLY | unix.O_CLOEXEC | unix.O_NONBLOCK
	}
	if mode&unix.S_IFMT == unix.S_IFBLK && !o.ReadOnly && !o.NoLock {
		flags |= unix.O_EXCL
	}
	fd, err := retry(func() (int, error) { return unix.Open(path, flags, 0) })
	switch {
	case err == nil:
		return fd, nil
	case flags&unix.O_EXCL != 0 && err == unix.EBUSY:
		pid, _, _ := Owner(path)
		return -1, &InUseError{Path: path, PID: pid}
	case !o.ReadOnly && (errors.Is(err, fs.ErrPermission) || err == unix.EROFS):
		return -1, fmt.Errorf("%s: not writable: %w: open it read-only, or make it writable", path, err)
	}
	return -1, fmt.Errorf("%s: open: %w", path, err)
}

// attach locks and maps an open file. It owns fd, also when it fails.
func attach(path string, fd int, o Options) (r *Region, err error) {
	f := &file{path: path, fd: fd, readOnly: o.ReadOnly}
	defer func() {
		if err != nil && f.sized {
			unix.Ftruncate(fd, 0) // while it is locked
		}
		if err != nil {
			unix.Close(fd)
		}
	}()
	if !o.NoLock {
		if err := f.takeLock(); err != nil {
			return nil, err
		}
	}
	var st unix.Stat_t // as it is under the lock
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, fmt.Errorf("%s: stat: %w", path, err)
	}
	if err := mappable(path, st.Mode); err != nil {
		return nil, err
	}
	if st.Mode&unix.S_IFMT == unix.S_IFREG && st.Size == 0 && o.SizeIfEmpty > 0 {
		if err := unix.Ftruncate(fd, int64(o.SizeIfEmpty)); err != nil {
			return nil, fmt.Errorf("%s: set size to %d bytes: %w", path, o.SizeIfEmpty, err)
		}
		st.Size, f.sized = int64(o.SizeIfEmpty), true
	}
	size, err := sizeOf(path, fd, &st)
	if err != nil {
		return nil, err
	}
	mem, dur, err := f.mmap(size, &st, o.Durability)
	if err != nil {
		return nil, err
	}
	r = newRegion(mem, dur, nil)
	r.file = f
	if r.dur == Msync {
		if err := unix.Fdatasync(fd); err != nil {
			unix.Munmap(mem)
			return nil, fmt.Errorf("%s: fdatasync: %w", path, err)
		}
		dropCache(fd)
		r.commit = newCommitter(path, r.msync)
	}
	sparse := st.Mode&unix.S_IFMT == unix.S_IFREG && uint64(st.Blocks)*512 < size
	r.touch = !f.readOnly && (sparse || r.dur == Msync)
	return r, nil
}

// Reopen maps the same file or device anew, with the size that it has now, whatever its
// path names by now. It takes no lock: that of r, which stays open, covers it.
func (r *Region) Reopen() (*Region, error) {
	fd, err := r.dup()
	if err != nil {
		return nil, err
	}
	return attach(r.file.path, fd, Options{ReadOnly: r.file.readOnly, NoLock: true})
}

// WithFile calls do with the file or device of r, whatever its path names by now, and
// returns its error. To make the file shorter than r is a fault of whoever reads there.
func (r *Region) WithFile(do func(*os.File) error) error {
	fd, err := r.dup()
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), r.file.path)
	defer r.file.lockPID() // which the end of any descriptor takes away
	return errors.Join(do(f), f.Close())
}

// Stat says what file or device r is, whatever its path names by now.
func (r *Region) Stat() (st fs.FileInfo, err error) {
	err = r.WithFile(func(f *os.File) (err error) {
		st, err = f.Stat()
		return err
	})
	return st, err
}

// dup is another descriptor of what r has open, which shares its lock.
func (r *Region) dup() (int, error) {
	if r.file == nil || r.mem == nil {
		return -1, fmt.Errorf("%s: not a file that is open: %w", r.name(), fs.ErrInvalid)
	}
	fd, err := unix.FcntlInt(uintptr(r.file.fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("%s: %w", r.file.path, err)
	}
	return fd, nil
}

// dropCache makes what is read from a file from now on come from the medium. Where an
// msync of a process before us has failed, ext4 and XFS leave in the page cache what
// is not on disk, and take it for clean: no msync would write it (Rebello et al., "Can
// Applications Recover from fsync Failures?", ATC 2020). All is on disk that can be,
// so nothing is lost; what fadvise(2) cannot do it leaves.
func dropCache(fd int) { unix.Fadvise(fd, 0, 0, unix.FADV_DONTNEED) }

// sizeOf is how many bytes can be mapped.
func sizeOf(path string, fd int, st *unix.Stat_t) (uint64, error) {
	var size uint64
	var err error
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		size = uint64(st.Size)
	case unix.S_IFBLK:
		var end int64
		end, err = unix.Seek(fd, 0, unix.SEEK_END)
		size = uint64(end)
	case unix.S_IFCHR:
		rdev := uint64(st.Rdev)
		size, err = daxSize(fmt.Sprintf("/sys/dev/char/%d:%d", unix.Major(rdev), unix.Minor(rdev)))
	}
	switch {
	case err != nil:
		return 0, fmt.Errorf("%s: size: %w", path, err)
	case size == 0:
		return 0, fmt.Errorf("%s: empty, nothing to map: create an image first", path)
	case size > uint64(^uint(0)>>1):
		return 0, fmt.Errorf("%s: %d bytes do not fit the address space of this machine", path, size)
	}
	return size, nil
}

// daxSize is the size of the device DAX that sysfs describes in dir, in bytes,
// rounded down to the alignment every mapping of it must have: 2 MiB unless the
// kernel says otherwise. Other character devices have no such file.
func daxSize(dir string) (uint64, error) {
	size, err := sysfsNumber(dir, "size")
	if errors.Is(err, fs.ErrNotExist) {
		return 0, errors.New("a character device, but not device DAX: name /dev/daxN.M, a block device or a file")
	}
	if err != nil {
		return 0, err
	}
	align, err := sysfsNumber(dir, "align")
	if err != nil || align == 0 {
		align = 2 << 20
	}
	return size - size%align, nil
}

func sysfsNumber(dir, name string) (uint64, error) {
	b, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		return 0, err
	}
	return strconv.ParseUint(strings.TrimSpace(string(b)), 0, 64)
}

// mmap maps size bytes and finds out what a drain has to do.
func (f *file) mmap(size uint64, st *unix.Stat_t, m Mode) ([]byte, Durability, error) {
	if m == ForceDAX && !hasFlush {
		return nil, 0, fmt.Errorf("%s: this build has no cache-line write-back: DAX is not possible", f.path)
	}
	if f.readOnly {
		mem, err := f.mapReadOnly(int(size))
		return mem, Process, err
	}
	const rw = unix.PROT_READ | unix.PROT_WRITE
	// Kernels, filesystems and devices that cannot promise MAP_SYNC refuse it.
	mem, err := unix.Mmap(f.fd, 0, int(size), rw, unix.MAP_SHARED_VALIDATE|unix.MAP_SYNC)
	synced := err == nil
	if err == unix.EOPNOTSUPP || err == unix.EINVAL {
		mem, err = unix.Mmap(f.fd, 0, int(size), rw, unix.MAP_SHARED)
	}
	if err != nil {
		return nil, 0, fmt.Errorf("%s: map %d bytes shared and writable: %w", f.path, size, err)
	}
	switch {
	case m == ForceProcess:
		return mem, Process, nil
	case m == ForceDAX || synced && hasFlush:
		return mem, DAX, nil
	case st.Mode&unix.S_IFMT == unix.S_IFCHR:
		// Device DAX has no page cache and refuses msync.
		unix.Munmap(mem)
		return nil, 0, fmt.Errorf("%s: this build has no cache-line write-back, which device DAX needs", f.path)
	case st.Mode&unix.S_IFMT == unix.S_IFREG && inMemory(f.fd):
		// Not of a device: that would be the filesystem /dev, which is in memory.
		return mem, Process, nil
	}
	return mem, Msync, nil
}

// readAt fills p from the file. Where it cannot, which it reports, memory tells why:
// device DAX knows no read(2), and the file may end, or its medium fail, before p is full.
func (f *file) readAt(p []byte, off uint64) bool {
	for len(p) > 0 {
		n, err := retry(func() (int, error) { return unix.Pread(f.fd, p, int64(off)) })
		if n <= 0 || err != nil {
			return false
		}
		p, off = p[n:], off+uint64(n)
	}
	return true
}

// mapReadOnly maps the file so that stores, which recovery makes, stay in this
// process. They are a few pages, so the kernel need not set memory aside for all of
// the file. Device DAX allows no private mapping; there a store is a [FaultError].
func (f *file) mapReadOnly(size int) ([]byte, error) {
	mem, err := unix.Mmap(f.fd, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_NORESERVE)
	f.private = err == nil
	if err == unix.EINVAL {
		mem, err = unix.Mmap(f.fd, 0, size, unix.PROT_READ, unix.MAP_SHARED)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: map %d bytes read-only: %w", f.path, size, err)
	}
	return mem, nil
}

// inMemory reports whether the filesystem of fd has no medium: msync would
// succeed there, and mean nothing.
func inMemory(fd int) bool {
	var st unix.Statfs_t
	if err := unix.Fstatfs(fd, &st); err != nil {
		return false // then Msync, the stricter mode
	}
	switch uint64(st.Type) {
	case unix.TMPFS_MAGIC, unix.RAMFS_MAGIC, unix.HUGETLBFS_MAGIC:
		return true
	}
	return false
}

// Close unmaps the region and gives up its lock. It does not drain. No other
// method may run at the same time or later; a second Close does nothing.
func (r *Region) Close() error {
	mem, f := r.mem, r.file
	r.mem, r.words = nil, words{}
	if mem == nil || f == nil {
		return nil
	}
	// The mapping holds the file open, and with it the lock, so it goes first.
	err := unix.Munmap(mem)
	return errors.Join(err, unix.Close(f.fd))
}

// retry repeats a call that a signal interrupted; Go sends itself many.
func retry(call func() (int, error)) (int, error) {
	for {
		n, err := call()
		if err != unix.EINTR {
			return n, err
		}
	}
}
