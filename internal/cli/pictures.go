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

// mayWrite refuses, before the check has taken its time, what write would refuse.
func (p *pictures) mayWrite() error {
	if p.wanted() && filepath.Clean(p.html) == filepath.Clean(p.svg) {
		return usagef("--html and --svg name the same file: choose two")
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
	}
	return nil
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
			return fmt.Errorf("%s: %w", f.flag, err)
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
		return err
	}
	_, err = file.Write(b)
	if err = errors.Join(err, file.Close()); err != nil {
		err = errors.Join(err, undo())
	}
	return err
}
