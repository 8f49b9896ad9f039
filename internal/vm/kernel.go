package vm

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// DefaultSeries is the kernel of Debian 12.
const DefaultSeries = "6.1"

// A Kernel is one that scripts/vm-deps has unpacked.
type Kernel struct {
	Release string // as uname -r prints it
	dir     string
}

// FindKernel returns the kernel of a series, "6.1" or "6.12", from the user's cache.
// An empty series is the one in the environment variable BTTNBD_VM_KERNEL, or
// [DefaultSeries]. The error is fs.ErrNotExist if it has not been unpacked yet.
func FindKernel(series string) (*Kernel, error) {
	if series == "" {
		series = os.Getenv("BTTNBD_VM_KERNEL")
	}
	if series == "" {
		series = DefaultSeries
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return nil, err
	}
	k := &Kernel{dir: filepath.Join(cache, "bttnbd", "kernels", series)}
	release, err := os.ReadFile(filepath.Join(k.dir, "release"))
	if err != nil {
		return nil, fmt.Errorf("no kernel %s for the guest: %w: run scripts/vm-deps %s", series, err, series)
	}
	k.Release = strings.TrimSpace(string(release))
	return k, nil
}

func (k *Kernel) image() string { return filepath.Join(k.dir, "vmlinuz") }

// modulesDir is where both the cache, below k.dir, and the guest keep modules.
func (k *Kernel) modulesDir() string { return filepath.Join("lib/modules", k.Release) }

// modules returns the files of the named modules and of all that they depend on,
// relative to modulesDir. What is built into the kernel has no file.
func (k *Kernel) modules(names []string) ([]string, error) {
	dir := filepath.Join(k.dir, k.modulesDir())
	text, err := os.ReadFile(filepath.Join(dir, "modules.dep"))
	if err != nil {
		return nil, err
	}
	builtin, err := os.ReadFile(filepath.Join(dir, "modules.builtin"))
	if err != nil {
		return nil, err
	}
	needs := map[string][]string{} // by module name: its file and those it depends on, all of them
	for line := range strings.Lines(string(text)) {
		file, deps, _ := strings.Cut(strings.TrimSpace(line), ":")
		needs[moduleName(file)] = append(strings.Fields(deps), file)
	}
	inKernel := map[string]bool{}
	for line := range strings.Lines(string(builtin)) {
		inKernel[moduleName(strings.TrimSpace(line))] = true
	}
	var files []string
	for _, name := range names {
		name = strings.ReplaceAll(name, "-", "_")
		if needs[name] == nil && !inKernel[name] {
			return nil, fmt.Errorf("kernel %s: module %s: %w", k.Release, name, fs.ErrNotExist)
		}
		files = append(files, needs[name]...)
	}
	return files, nil
}

// moduleName is what lsmod calls the module in a file.
func moduleName(file string) string {
	name, _, _ := strings.Cut(filepath.Base(file), ".ko")
	return strings.ReplaceAll(name, "-", "_")
}

// indexes are the files by which modprobe and libkmod find modules.
func (k *Kernel) indexes() ([]string, error) {
	return filepath.Glob(filepath.Join(k.dir, k.modulesDir(), "modules.*"))
}
