package kernel

import (
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/klauspost/compress/zstd"
	"github.com/pmorjan/kmod"
	"github.com/ulikunitz/xz"
	"golang.org/x/sys/unix"
)

// LoadModule loads the kernel's NBD client, the module nbd, unless it is there. It
// needs CAP_SYS_MODULE only if the module is missing.
func LoadModule() error { return loadModule("nbd", "/sys/module/nbd") }

const moduleUblk = "ublk_drv"

// LoadUblk is LoadModule for the driver ublk_drv, which not every kernel has.
func LoadUblk() error {
	err := loadModule(moduleUblk, "/dev/ublk-control")
	if err != nil && !errors.Is(err, fs.ErrPermission) {
		return fmt.Errorf("%w; or attach without --ublk", err)
	}
	return err
}

// loadModule loads a module unless what shows it is there: then it may be built in.
func loadModule(name, shownBy string) error {
	if _, err := os.Stat(shownBy); err == nil {
		return nil
	}
	options := []kmod.Option{kmod.SetInitFunc(insertModule)}
	if file := moduleOptions("/etc/modprobe.d", name); file != "" {
		options = append(options, kmod.SetConfigFile(file))
	}
	modules, err := kmod.New(options...)
	if err == nil {
		err = modules.Load(name, "", 0)
	}
	return adviseModule(name, err)
}

// adviseModule says what to do about an error of loading the module.
func adviseModule(name string, err error) error {
	what := "cannot load the kernel module " + name
	remedy := "install the package with all its modules"
	if name == moduleUblk {
		remedy = "it takes Linux 6.4 or later, built with " + name + " (Debian 12: the 6.12 kernel of its backports)"
	}
	switch {
	case err == nil:
		return nil
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%s: %w: run as root, or have it loaded at boot (echo %s >/etc/modules-load.d/%s.conf)", what, err, name, name)
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, kmod.ErrModuleNotFound):
		return fmt.Errorf("%s: this kernel has none (%w): %s; reboot if the kernel was updated since the boot", what, err, remedy)
	case errors.Is(err, unix.EKEYREJECTED):
		return fmt.Errorf("%s: its signature is refused (secure boot): %w", what, err)
	}
	return fmt.Errorf("%s: %w: dmesg says why", what, err)
}

// moduleOptions is the file of modprobe.d(5) that has options for the module, or "".
func moduleOptions(dir, name string) string {
	optionsLine := regexp.MustCompile(`(?m)^\s*options\s+` + name + `\s`)
	files, _ := filepath.Glob(filepath.Join(dir, "*.conf")) // the pattern is good
	for _, file := range files {
		if text, err := os.ReadFile(file); err == nil && optionsLine.Match(text) {
			return file
		}
	}
	return ""
}

// insertModule is init of one module file. Most distributions compress them; the
// kernel reads such files itself only if it was built to.
func insertModule(path, params string, flags int) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if !compressed(path) {
		return unix.FinitModule(int(f.Fd()), params, flags)
	}
	image, err := decompress(path, f)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return unix.InitModule(image, params)
}

func compressed(path string) bool { return !strings.HasSuffix(path, ".ko") }

// maxModule bounds the memory that a compressed file may ask for.
const maxModule = 256 << 20

// decompress returns the module in a file, by the end of its name.
func decompress(path string, f io.Reader) ([]byte, error) {
	var r io.Reader
	var err error
	switch filepath.Ext(path) {
	case ".gz":
		r, err = gzip.NewReader(f)
	case ".xz":
		r, err = xz.NewReader(f)
	case ".zst":
		var d *zstd.Decoder
		if d, err = zstd.NewReader(f); err == nil {
			defer d.Close()
			r = d
		}
	default:
		return nil, errors.New("neither .ko nor .ko.gz, .ko.xz, .ko.zst")
	}
	if err != nil {
		return nil, err
	}
	var image bytes.Buffer
	n, err := io.Copy(&image, io.LimitReader(r, maxModule))
	if err == nil && n == maxModule {
		err = errors.New("too large")
	}
	return image.Bytes(), err
}
