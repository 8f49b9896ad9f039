package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"unicode"

	"github.com/google/uuid"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/bttnbd/bttnbd/internal/units"
	"github.com/bttnbd/bttnbd/layout"
)

type createOptions struct {
	path       string
	size       sizeFlag
	sectorSize sectorFlag
	format     choiceFlag
	uuid       ownUUIDFlag
	parentUUID uuidFlag
	force      bool
	allocate   bool
	json       bool
	progress   choiceFlag
}

func (o *createOptions) addFlags(f *pflag.FlagSet) {
	o.sectorSize = 4096
	o.format = newChoice(layout.Kernel.Name, layout.UEFI.Name, layout.PMEMBLK.Name)
	f.Var(&o.size, "size", "size of the image file; needed for a new file (512M, 1G, 2T …)")
	f.Var(&o.sectorSize, "sector-size", "bytes that are written all or not at all")
	f.Var(&o.format, "format", "kernel: version 1.1, as Linux and QEMU expect; uefi: version 2.0; pmemblk: a pool of PMDK")
	f.Var(&o.uuid, "uuid", "uuid of the BTT (default random)")
	f.Var(&o.parentUUID, "parent-uuid", "uuid of the namespace that the image will be the content of (default none)")
	f.BoolVar(&o.force, "force", false, "overwrite whatever is there, also where a link leads; a file gets --size")
	f.BoolVar(&o.allocate, "allocate", false, "reserve all the space now; the file is sparse otherwise")
	f.BoolVar(&o.json, "json", false, "print one JSON object")
	addProgress(f, &o.progress)
}

func newCreate() *cobra.Command {
	var o createOptions
	cmd := &cobra.Command{
		Use:   "create [flags] PATH",
		Short: "Make an image, or lay one out on a device",
		Long: `Make a BTT image: a new file of --size, or the whole of an existing file or
device. Without --force, one that holds anything but zeros is left alone; to be
sure of that, all of it is read.

Sizes are in bytes; K, M, G, T are powers of 1024, kB, MB, GB, TB of 1000. An
image is a little larger than what it can hold; the usable size is printed.

A sector is written all or not at all. Linux knows 512 and 4096, and 520, 528,
4104, 4160 and 4224, of which it keeps the few bytes more for integrity data;
8192, 16384, 32768 and 65536 are for other users, a database with pages of that
size say. In a pool a block may have any size.

Interrupted, it leaves no new file; a file or device that was there it says is to
be laid out again.`,
		Example: `  bttnbd create --size 1G disk.img
  bttnbd create --sector-size 512 --format uefi /dev/pmem0`,
		Annotations: map[string]string{exitStatus: commonStatus},
		Args:        onePath,
		RunE: func(cmd *cobra.Command, args []string) error {
			o.path = args[0]
			return runCreate(cmd.Context(), cmd.OutOrStdout(), cmd.ErrOrStderr(), o)
		},
	}
	o.addFlags(cmd.Flags())
	return cmd
}

func runCreate(ctx context.Context, stdout, stderr io.Writer, o createOptions) error {
	spec, err := o.spec()
	if err != nil {
		return err
	}
	spec.bar = func(what string) *progress { return newProgress(stderr, o.progress.value, what, bytesRate) }
	lay := spec.makeOver
	if _, err := os.Stat(o.path); errors.Is(err, fs.ErrNotExist) {
		if o.size == 0 && dangling(o.path) == "" {
			return usagef("%s: does not exist: give the size of the new file, like --size 1G", o.path)
		}
		lay = spec.makeNew
	}
	p, err := lay(ctx)
	if err != nil {
		return err
	}
	if p.unused > 0 {
		fmt.Fprintf(stderr, "bttnbd: %s: the last %s unused: an arena is a multiple of 4096 bytes and at least 16 MiB\n", visible(o.path), stay(p.unused))
	}
	if note := sectorNote(spec.flavour, spec.sectorSize); note != "" {
		fmt.Fprintf(stderr, "bttnbd: %s: %s\n", visible(o.path), note)
	}
	if o.json {
		return writeJSON(stdout, created{
			Schema: schema, Path: o.path, UsableSize: p.usable, SectorSize: spec.sectorSize, Format: spec.flavour.Name,
			UUID: spec.uuid, ParentUUID: spec.parentUUID, Arenas: len(p.arenas), UnusedSize: p.unused,
		})
	}
	_, err = fmt.Fprintf(stdout, "%s: %s usable, sector size %d, format %s, uuid %v\nserve it with: bttnbd serve --listen unix:%s.sock %s\n",
		visible(o.path), units.Human(p.usable), spec.sectorSize, spec.flavour.Name, spec.uuid, socketName(o.path), shellWord(o.path))
	return err
}

// socketName is a name for the socket of an image, in the current directory.
func socketName(path string) string {
	name := filepath.Base(path)
	name = strings.TrimSuffix(name, filepath.Ext(name))
	const most = 60 // a path of 107 bytes is the longest there is
	if shellWord(name) != name || len(name) > most || name+".sock" == filepath.Base(path) {
		return "btt"
	}
	return name
}

// shellWord is a path as one argument of a command line, that is no flag and no
// NAME=PATH.
func shellWord(path string) string {
	if strings.HasPrefix(path, "-") || strings.Contains(path, "=") && !strings.HasPrefix(path, "/") {
		path = "./" + path
	}
	plain := func(r rune) bool {
		return r < 0x80 && (unicode.IsLetter(r) || unicode.IsDigit(r)) || strings.ContainsRune("/._-+,:@%", r)
	}
	if path != "" && strings.IndexFunc(path, func(r rune) bool { return !plain(r) }) < 0 {
		return path
	}
	return shellQuote(path)
}

// shellQuote is text as one word of a command line, whatever it is: with $'…' and octal
// numbers (POSIX 2024) if a terminal could not show it.
func shellQuote(text string) string {
	if visible(text) == text {
		return "'" + strings.ReplaceAll(text, "'", `'\''`) + "'"
	}
	var b strings.Builder
	for i := range len(text) {
		switch c := text[i]; {
		case c == '\'' || c == '\\':
			b.WriteString(`\` + string(c))
		case c < ' ' || c > '~':
			fmt.Fprintf(&b, `\%03o`, c)
		default:
			b.WriteByte(c)
		}
	}
	return "$'" + b.String() + "'"
}

// sectorNote is what whoever makes an image with such sectors is to know.
func sectorNote(f layout.Flavour, sector uint32) string {
	if f.Pool || sector < 8192 {
		return ""
	}
	return fmt.Sprintf("sectors of %d bytes are not for the BTT of Linux: attached as a namespace, it would show a disk of the wrong size and hang; serve the image instead", sector)
}

// stay is n bytes as the subject of "unused".
func stay(n uint64) string {
	if n == 1 {
		return "byte stays"
	}
	return units.Human(n) + " stay"
}

// created is what create --json prints. Sizes are in bytes.
type created struct {
	Schema     int       `json:"schema"`
	Path       string    `json:"path"`
	UsableSize uint64    `json:"usable_size"`
	SectorSize uint32    `json:"sector_size"`
	Format     string    `json:"format"`
	UUID       uuid.UUID `json:"uuid"`
	ParentUUID uuid.UUID `json:"parent_uuid"`
	Arenas     int       `json:"arenas"`
	UnusedSize uint64    `json:"unused_size"`
}

func (o *createOptions) spec() (*imageSpec, error) {
	flavour, err := layout.FlavourByName(o.format.value)
	if err != nil {
		return nil, err
	}
	id := uuid.UUID(o.uuid.uuidFlag)
	if id == uuid.Nil {
		if id, err = uuid.NewRandom(); err != nil {
			return nil, fmt.Errorf("making a random uuid: %w: give one with --uuid", err)
		}
	}
	sector := uint32(o.sectorSize)
	if !flavour.Pool && !slices.Contains(namespaceSectors, strconv.Itoa(int(sector))) {
		return nil, usagef("--sector-size %d: only a pool (--format pmemblk) has sectors of any size; choose %s", sector, strings.Join(namespaceSectors, " or "))
	}
	parent := uuid.UUID(o.parentUUID)
	if flavour.Pool && parent == uuid.Nil {
		if parent, err = uuid.NewRandom(); err != nil { // every pool set has one
			return nil, fmt.Errorf("making a random uuid: %w: give one with --parent-uuid", err)
		}
	}
	return &imageSpec{
		path: o.path, size: uint64(o.size), sectorSize: sector, flavour: flavour,
		uuid: id, parentUUID: parent, allocate: o.allocate, force: o.force,
	}, nil
}

// namespaceSectors are the sectors with which an image of a namespace is made, the
// default first: those of Linux, then larger ones.
var namespaceSectors = []string{"4096", "512", "520", "528", "4104", "4160", "4224", "8192", "16384", "32768", "65536"}

// sectorFlag is a flag that takes the size of a sector in bytes.
type sectorFlag uint32

func (s *sectorFlag) Type() string   { return "SIZE" }
func (s *sectorFlag) String() string { return strconv.FormatUint(uint64(*s), 10) }

func (s *sectorFlag) Set(text string) error {
	n, err := units.ParseSize(text)
	if err != nil {
		return err
	}
	if n == 0 || n > maxSector {
		return fmt.Errorf("a sector has 1 to %d bytes", maxSector)
	}
	*s = sectorFlag(n)
	return nil
}

// maxSector is how large a sector can be, in bytes. A part of one that is written
// takes as much memory, and NBD servers and clients agree on requests of so many.
const maxSector = 32 << 20

// sectorBytes is the number that a --sector-size flag, which accepts no other, holds.
func sectorBytes(c choiceFlag) uint32 {
	n, err := strconv.ParseUint(c.value, 10, 32)
	if err != nil {
		panic("sector size " + c.value + " is not a number")
	}
	return uint32(n)
}
