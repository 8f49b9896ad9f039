package cli

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"unicode/utf8"

	"github.com/rs/zerolog"

	"github.com/bttnbd/bttnbd/nbd"
	"github.com/bttnbd/bttnbd/pmem"
)

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

// exportSpec says how one image is to be served.
type exportSpec struct {
	exportArg
	description string
	readOnly    bool
	durability  pmem.Mode
	create      uint64 // bytes of an image to be made if there is none; 0: none
	sectorSize  choiceFlag
	bytesPerSec uint64
	opsPerSec   uint64
	tlsAllow    []string // who may use it; nil: everybody
	found       bool     // in a directory, so perhaps not an image

	file os.FileInfo // what the path was when it was looked at; nil: nothing
}

// exportSpecs are those of the arguments, of the configuration file and of what
// lies in the directories now. What is found there and cannot be an export is logged.
func (s *settings) exportSpecs(ctx context.Context, log zerolog.Logger, args []string) ([]exportSpec, error) {
	var specs []exportSpec
	for _, arg := range args {
		e := parseExportArg(arg)
		if e.path == "" {
			return nil, usagef("%s: no path behind the name: write NAME=PATH", arg)
		}
		specs = append(specs, s.spec(e))
	}
	for _, e := range s.Exports {
		specs = append(specs, s.configured(e))
	}
	for _, dir := range s.ExportsDir {
		found, err := s.lookInto(dir)
		if err != nil {
			return nil, err
		}
		if len(found) == 0 {
			log.Warn().Str("path", dir).Msgf("no image in %s: add one, then send SIGHUP", dir)
		}
		specs = append(specs, found...)
	}
	if len(specs) == 0 && len(s.ExportsDir) == 0 {
		return nil, usagef("no image given: bttnbd serve [flags] [NAME=]PATH…")
	}
	return distinct(ctx, log, specs)
}

// spec is that of an export about which nothing particular was said.
func (s *settings) spec(e exportArg) exportSpec {
	return exportSpec{
		exportArg: e, readOnly: s.ReadOnly, durability: durabilityMode(s.Durability.value),
		create: uint64(s.Create), sectorSize: s.SectorSize,
		bytesPerSec: uint64(s.LimitRate), opsPerSec: uint64(s.LimitIOPS),
	}
}

// configured is the spec of an [[export]].
func (s *settings) configured(e exportSettings) exportSpec {
	spec := s.spec(exportArg{e.Name, e.Path})
	spec.description, spec.tlsAllow = e.Description, e.TLSAllow
	if e.ReadOnly != nil {
		spec.readOnly = *e.ReadOnly
	}
	if spec.readOnly {
		spec.create = 0
	}
	if e.Create != 0 {
		spec.create = uint64(e.Create)
	}
	if e.SectorSize.given {
		spec.sectorSize = e.SectorSize.choiceFlag
	}
	if e.Durability.given {
		spec.durability = durabilityMode(e.Durability.value)
	}
	if e.LimitRate != 0 {
		spec.bytesPerSec = uint64(e.LimitRate)
	}
	if e.LimitIOPS != 0 {
		spec.opsPerSec = uint64(e.LimitIOPS)
	}
	return spec
}

func durabilityMode(word string) pmem.Mode {
	if word == "process" {
		return pmem.ForceProcess
	}
	return pmem.Auto
}

// lookInto is what may be an image in dir: files and devices, hidden ones excepted.
func (s *settings) lookInto(dir string) ([]exportSpec, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("--exports-dir: %w: make the directory, or check the path", err)
	}
	var specs []exportSpec
	for _, entry := range entries {
		path := filepath.Join(dir, entry.Name())
		st, err := os.Stat(path)
		isImage := err == nil && (st.Mode().IsRegular() || st.Mode().Type()&os.ModeDevice != 0)
		if !isImage || strings.HasPrefix(entry.Name(), ".") {
			continue
		}
		spec := s.spec(exportArg{entry.Name(), path})
		spec.found, spec.create, spec.file = true, 0, st
		specs = append(specs, spec)
	}
	return specs, nil
}

// distinct refuses exports that clients cannot be told of, and two of one name or of
// one file. Of what was found in a directory it passes these over: a stray file must
// not keep the others from being served.
func distinct(ctx context.Context, log zerolog.Logger, all []exportSpec) (specs []exportSpec, err error) {
	names, paths, files := map[string]string{}, map[string]bool{}, map[fileID]bool{}
	for _, e := range all {
		if err := context.Cause(ctx); err != nil {
			return nil, err
		}
		if e.file == nil {
			e.file, _ = os.Stat(e.path) // opening will say what is wrong
		}
		path, file, other := filepath.Clean(e.path), idOf(e.file), names[e.name]
		err := e.checkTexts()
		switch {
		case err != nil:
		case other != "" && e.name == "":
			err = usagef("%s and %s: two exports without a name: write NAME=PATH", other, e.path)
		case other != "":
			err = usagef("%s: export name %q is taken by %s: choose another name", e.path, e.name, other)
		case paths[path], e.file != nil && files[file]:
			err = usagef("%s: given twice: an image is one export, to any number of clients", e.path)
		}
		switch {
		case err != nil && e.found:
			log.Warn().Err(err).Str("path", e.path).Msg("not served")
			continue
		case err != nil:
			return nil, err
		}
		names[e.name], paths[path], files[file] = e.path, true, true
		specs = append(specs, e)
	}
	return specs, nil
}

// checkTexts refuses what cannot be said in NBD.
func (e *exportSpec) checkTexts() error {
	for what, text := range map[string]string{"name": e.name, "description": e.description} {
		if len(text) > nbdStringMax || !utf8.ValidString(text) || strings.Contains(text, "\x00") {
			return usagef("%q: export %s %.80q: it must be at most %d bytes of UTF-8: choose another one", e.path, what, text, nbdStringMax)
		}
	}
	return nil
}

// nbdStringMax is the longest string of the protocol, in bytes (proto.md, "Values").
const nbdStringMax = 4096

// fileID tells files apart, whatever their names.
type fileID struct{ dev, ino uint64 }

// idOf is that of st, nobody's if st is nil.
func idOf(st os.FileInfo) fileID {
	if st == nil {
		return fileID{}
	}
	sys := st.Sys().(*syscall.Stat_t)
	return fileID{uint64(sys.Dev), sys.Ino}
}

func sameFile(a, b string) bool {
	sa, errA := os.Stat(a)
	sb, errB := os.Stat(b)
	return filepath.Clean(a) == filepath.Clean(b) || errA == nil && errB == nil && os.SameFile(sa, sb)
}

// export declares what the image can do.
func (im *image) export(spec exportSpec) nbd.Export {
	return nbd.Export{
		Name:           spec.name,
		Description:    spec.description,
		Size:           im.dev.Size(),
		PreferredBlock: preferredBlock(im.dev.SectorSize()),
		ReadOnly:       im.dev.ReadOnly(),
		Trim:           true,
		Zero:           true,
		FastZero:       im.dev.ZerosFast(),
		MultiConn:      true, // a completed write is durable on every connection
		BytesPerSecond: spec.bytesPerSec,
		OpsPerSecond:   spec.opsPerSec,
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
