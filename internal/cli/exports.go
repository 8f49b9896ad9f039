package cli

import (
	"errors"
	"os"
	"path/filepath"
	"strings"

	"github.com/bttnbd/bttnbd/btt"
	"github.com/bttnbd/bttnbd/nbd"
	"github.com/bttnbd/bttnbd/pmem"
)

var _ nbd.Backend = (*btt.Device)(nil)

// exportArg is a parsed [NAME=]PATH.
type exportArg struct{ name, path string }

// parseExportArg splits at the first "=". What exists as it is written is a path.
func parseExportArg(s string) exportArg {
	if _, err := os.Stat(s); err == nil {
		return exportArg{path: s}
	}
	if name, path, ok := strings.Cut(s, "="); ok {
		return exportArg{name, path}
	}
	return exportArg{path: s}
}

// parseExportArgs parses all, and refuses two of one name or of one file.
func parseExportArgs(args []string) ([]exportArg, error) {
	if len(args) == 0 {
		return nil, usagef("no image given: bttnbd serve [flags] [NAME=]PATH…")
	}
	var exports []exportArg
	for _, arg := range args {
		e := parseExportArg(arg)
		if e.path == "" {
			return nil, usagef("%s: no path behind the name: write NAME=PATH", arg)
		}
		for _, other := range exports {
			switch {
			case other.name == e.name && e.name == "":
				return nil, usagef("%s and %s: two exports without a name: write NAME=PATH", other.path, e.path)
			case other.name == e.name:
				return nil, usagef("%s: export name %q is taken by %s: choose another name", e.path, e.name, other.path)
			case sameFile(other.path, e.path):
				return nil, usagef("%s: given twice: an image is one export, to any number of clients", e.path)
			}
		}
		exports = append(exports, e)
	}
	return exports, nil
}

func sameFile(a, b string) bool {
	sa, errA := os.Stat(a)
	sb, errB := os.Stat(b)
	return filepath.Clean(a) == filepath.Clean(b) || errA == nil && errB == nil && os.SameFile(sa, sb)
}

// image is an open export.
type image struct {
	exportArg
	dev        *btt.Device
	fileSize   uint64
	durability pmem.Durability
}

// openImage opens the image for its one owner, and recovers it.
func openImage(e exportArg, o pmem.Options) (*image, error) {
	r, err := pmem.Open(e.path, o)
	if err != nil {
		return nil, advise(err, e.path, o.ReadOnly, ", or serve it with --read-only")
	}
	defer pmem.ArmFaults()()
	dev, err := btt.Open(r, btt.Options{})
	if err != nil {
		return nil, errors.Join(adviseBTT(e.path, err), r.Close())
	}
	return &image{e, dev, r.Size(), r.Durability()}, nil
}

// export declares what the image can do.
func (im *image) export() nbd.Export {
	return nbd.Export{
		Name:           im.name,
		Size:           im.dev.Size(),
		PreferredBlock: preferredBlock(im.dev.SectorSize()),
		ReadOnly:       im.dev.ReadOnly(),
		Trim:           true,
		Zero:           true,
		FastZero:       im.dev.ZerosFast(),
		MultiConn:      true, // a completed write is durable on every connection
		Backend:        im.dev,
	}
}

// preferredBlock is the sector size where NBD allows it: a power of two from 512.
// An image of 520-byte sectors is best used in blocks of 4096 like any other.
func preferredBlock(sector uint32) uint32 {
	if sector >= 512 && sector&(sector-1) == 0 {
		return sector
	}
	return nbd.DefaultPreferredBlock
}
