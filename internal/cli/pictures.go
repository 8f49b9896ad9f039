package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"

	"github.com/bttnbd/bttnbd/check"
	"github.com/bttnbd/bttnbd/internal/report"
	"github.com/bttnbd/bttnbd/pmem"
)

// pictures are the flags of check for people who would rather look.
type pictures struct {
	html string
	svg  string
}

func (p *pictures) addFlags(f *pflag.FlagSet) {
	f.StringVar(&p.html, "html", "", "write what was found as a page with pictures into the new `FILE`")
	f.StringVar(&p.svg, "svg", "", "draw what was found into the new `FILE`")
}

func (p *pictures) wanted() bool { return p.html != "" || p.svg != "" }

// files are what is to be written, by flag.
func (p *pictures) files() (list []pictureFile) {
	for _, f := range []pictureFile{
		{"--html", p.html, (*report.Page).HTML},
		{"--svg", p.svg, (*report.Page).SVG},
	} {
		if f.path != "" {
			list = append(list, f)
		}
	}
	return list
}

type pictureFile struct {
	flag, path string
	draw       func(*report.Page, io.Writer) error
}

// mayWrite refuses, before the check has taken its time and a repair has changed
// anything, what write would refuse. The repair makes the file backup, if not "".
func (p *pictures) mayWrite(backup string) error {
	made := map[string]string{}
	if backup != "" {
		made[resolved(backup)] = "--backup"
	}
	for _, f := range p.files() {
		at := resolved(f.path)
		if first := made[at]; first != "" {
			return usagef("%s and %s name the same file: choose two", first, f.flag)
		}
		made[at] = f.flag
	}
	for _, f := range p.files() {
		st, err := os.Stat(f.path)
		switch {
		case err == nil && (!st.Mode().IsRegular() || st.Size() > 0):
			return f.exists()
		case err == nil:
		case dangling(f.path) != "":
			return fmt.Errorf("%s: %w", f.flag, danglingError(f.path, dangling(f.path)))
		case !errors.Is(err, fs.ErrNotExist):
			return fmt.Errorf("%s: %w: choose another file", f.flag, err)
		}
		if _, err := os.Stat(filepath.Dir(f.path)); err != nil {
			return fmt.Errorf("%s: %w: make its directory first", f.flag, err)
		}
		into := f.path
		if err != nil { // there is no file yet
			into = filepath.Dir(f.path)
		}
		if err := unix.Faccessat(unix.AT_FDCWD, into, unix.W_OK, unix.AT_EACCESS); err != nil {
			return fmt.Errorf("%s %s: %w: choose a directory that you may write to", f.flag, f.path, err)
		}
	}
	return nil
}

// resolved is the one spelling of the path of a file that there may not be yet.
func resolved(path string) string {
	dir, err := filepath.EvalSymlinks(filepath.Dir(path))
	if err == nil {
		dir, err = filepath.Abs(dir)
	}
	if err != nil { // it cannot be made there, which is said elsewhere
		return filepath.Clean(path)
	}
	return filepath.Join(dir, filepath.Base(path))
}

func (f *pictureFile) exists() error {
	return fmt.Errorf("%s %s: is there already, and would be overwritten: choose a new file, or remove it", f.flag, f.path)
}

// write draws the report, and the image of r as it is now.
func (p *pictures) write(ctx context.Context, r *pmem.Region, rep *check.Report) error {
	if !p.wanted() {
		return nil
	}
	im, err := check.Inspect(r, check.Options{})
	if err != nil {
		return withPath(r.Path(), err)
	}
	charts, err := check.Chart(ctx, r, im, report.Cells, check.Options{})
	if err != nil {
		return interruptLeaves(withPath(r.Path(), err), "the check is done, nothing is drawn")
	}
	page := report.Page{
		Report: rep, Image: im, Charts: charts, Command: "bttcheck", Word: shellWord(r.Path()),
		Made: time.Now(), Program: "bttnbd " + thisBuild().Version,
	}
	for _, f := range p.files() {
		var b bytes.Buffer
		if err := f.draw(&page, &b); err != nil {
			return fmt.Errorf("%s: %w", f.flag, err)
		}
		if err := f.save(b.Bytes()); err != nil {
			return err
		}
	}
	return nil
}

// save makes the file, or fills an empty one. When it fails it leaves things as they
// were.
func (f *pictureFile) save(b []byte) (err error) {
	file, err := os.OpenFile(f.path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	undo := func() error { return os.Remove(f.path) }
	if errors.Is(err, fs.ErrExist) {
		if !isEmpty(f.path) {
			return f.exists()
		}
		file, err = os.OpenFile(f.path, os.O_WRONLY, 0)
		undo = func() error { return os.Truncate(f.path, 0) }
	}
	if err != nil {
		return fmt.Errorf("%s: %w", f.flag, err)
	}
	_, err = file.Write(b)
	if err = errors.Join(err, file.Close()); err != nil {
		return fmt.Errorf("%s: %w", f.flag, errors.Join(err, undo()))
	}
	return nil
}
