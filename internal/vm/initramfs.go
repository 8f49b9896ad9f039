package vm

import (
	_ "embed"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

//go:embed init
var initScript []byte

// baseModules are loaded before the script starts, in this order.
var baseModules = []string{"nd_btt", "nd_pmem", "dax_pmem", "device_dax", "nfit"}

// moreModules are there for modprobe, and for what the kernel asks for by itself:
// libnvdimm its keys, ext4 its checksums.
var moreModules = []string{"encrypted-keys", "nbd", "ext4", "crc32c_generic", "crc32c_intel", "libcrc32c"}

// baseTools are in every guest; busybox has the rest.
var baseTools = []string{"ndctl"}

// writeInitramfs writes the guest's root filesystem.
func (m *Machine) writeInitramfs(w io.Writer, k *Kernel, script string) error {
	a := newArchive(w)
	for _, dir := range []string{"/proc", "/sys", "/dev", "/tmp", "/run", "/mnt", "/etc", "/bin", "/sbin"} {
		a.dir(dir)
	}
	if err := addTool(a, "/bin/busybox", "busybox"); err != nil {
		return err
	}
	a.link("/sbin/modprobe", "/bin/busybox") // the kernel calls it by this name
	a.file("/init", 0o755, initScript)
	a.file("/script", 0o755, []byte(script))
	a.file("/modules", 0o644, []byte(strings.Join(baseModules, "\n")+"\n"))
	for _, tool := range slices.Concat(baseTools, m.Tools) {
		if err := addTool(a, "/usr/bin/"+filepath.Base(tool), tool); err != nil {
			return err
		}
	}
	for name, from := range m.Files {
		if !filepath.IsAbs(name) {
			return fmt.Errorf("file %s for the guest: its name there must begin with a slash", name)
		}
		a.copy(name, from)
	}
	for _, t := range m.Trees {
		if err := addTree(a, t); err != nil {
			return err
		}
	}
	if err := addModules(a, k, slices.Concat(baseModules, moreModules, m.Modules)); err != nil {
		return err
	}
	return a.close()
}

func addModules(a *archive, k *Kernel, names []string) error {
	files, err := k.modules(names)
	if err != nil {
		return err
	}
	for _, f := range files {
		name := filepath.Join(k.modulesDir(), f)
		a.copy("/"+name, filepath.Join(k.dir, name))
	}
	indexes, err := k.indexes()
	if err != nil {
		return err
	}
	for _, f := range indexes {
		a.copy("/"+filepath.Join(k.modulesDir(), filepath.Base(f)), f)
	}
	return nil
}

// addTool adds a program of the host and the libraries it is linked with.
func addTool(a *archive, name, program string) error {
	file, err := exec.LookPath(program)
	if err != nil {
		// Debian keeps some of the tools where only root's PATH looks.
		if file, err = exec.LookPath("/usr/sbin/" + program); err != nil {
			return fmt.Errorf("%s for the guest: %w: run scripts/vm-deps", program, err)
		}
	}
	if file, err = filepath.EvalSymlinks(file); err != nil {
		return err
	}
	a.copy(name, file)
	return addLibraries(a, file)
}

// addLibraries adds what a program of the host is linked with.
func addLibraries(a *archive, file string) error {
	libraries, err := linkedWith(file)
	if err != nil {
		return err
	}
	for _, lib := range libraries {
		// All in one directory, where the loader of the guest, which has no cache,
		// looks without being told; but the loader itself where programs expect it.
		if strings.HasPrefix(filepath.Base(lib), "ld-linux") {
			a.copy(lib, lib)
			continue
		}
		a.copy("/lib/"+filepath.Base(lib), lib)
	}
	return nil
}

// addTree adds a part of an unpacked package.
func addTree(a *archive, t Tree) error {
	add := func(file string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(t.Root, file)
		if err != nil {
			return err
		}
		name = "/" + name
		switch {
		case entry.IsDir():
			a.dir(name)
		case entry.Type() == fs.ModeSymlink:
			target, err := os.Readlink(file)
			if err != nil {
				return err
			}
			a.link(name, target)
		default:
			a.copy(name, file)
			return addLibrariesOf(a, file, entry)
		}
		return nil
	}
	for _, path := range t.Paths {
		if err := filepath.WalkDir(filepath.Join(t.Root, path), add); err != nil {
			return fmt.Errorf("for the guest: %w: run scripts/vm-deps", err)
		}
	}
	return nil
}

// addLibrariesOf adds those of a file that may be a program.
func addLibrariesOf(a *archive, file string, entry fs.DirEntry) error {
	st, err := entry.Info()
	if err != nil || st.Mode()&0o111 == 0 {
		return err
	}
	return addLibraries(a, file)
}

// linked matches a line of ldd: "name => path (address)" or "path (address)".
var linked = regexp.MustCompile(`(?m)^\s*(?:\S+ => )?(/\S+) \(0x[0-9a-f]+\)$`)

// linkedWith returns the libraries that a program needs; none for a static one.
func linkedWith(file string) ([]string, error) {
	out, err := exec.Command("ldd", file).CombinedOutput()
	if strings.Contains(string(out), "not a dynamic executable") || strings.Contains(string(out), "statically linked") {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("ldd %s: %w: %s", file, err, out)
	}
	var libraries []string
	for _, m := range linked.FindAllSubmatch(out, -1) {
		libraries = append(libraries, string(m[1]))
	}
	return libraries, nil
}
