package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/google/uuid"

	"github.com/bttnbd/bttnbd/btt"
	"github.com/bttnbd/bttnbd/internal/units"
	"github.com/bttnbd/bttnbd/layout"
	"github.com/bttnbd/bttnbd/nbd"
	"github.com/bttnbd/bttnbd/pmem"
)

var _ nbd.Backend = (*btt.Device)(nil)

// image is an open image.
type image struct {
	path       string
	opened     pmem.Options
	file       os.FileInfo // what is open
	dev        *btt.Device
	fileSize   uint64
	durability pmem.Durability
}

// openImage opens the image for its one owner, and recovers it.
func openImage(path string, o pmem.Options) (*image, error) {
	return openImageIf(path, o, func(*pmem.Region) error { return nil })
}

// openImageIf is openImage, if it may be; else nothing in it is changed.
func openImageIf(path string, o pmem.Options, may func(*pmem.Region) error) (*image, error) {
	r, err := pmem.Open(path, o)
	if err != nil {
		return nil, advise(err, path, o.ReadOnly, ", or serve it with --read-only")
	}
	if err := may(r); err != nil {
		return nil, errors.Join(err, r.Close())
	}
	defer pmem.ArmFaults()()
	file, err := r.Stat()
	if err != nil {
		return nil, errors.Join(err, r.Close())
	}
	dev, err := btt.Open(r, btt.Options{})
	if err != nil {
		return nil, errors.Join(adviseBTT(path, err), r.Close())
	}
	return &image{path, o, file, dev, r.Size(), r.Durability()}, nil
}

// close flushes and closes the image.
func (im *image) close() error {
	var err error
	if flushErr := im.dev.Flush(); flushErr != nil && !im.dev.ReadOnly() {
		err = withPath(im.path, flushErr)
	}
	return errors.Join(err, im.dev.Close())
}

func (e *exportSpec) options() pmem.Options {
	return pmem.Options{ReadOnly: e.readOnly, Durability: e.durability}
}

// open makes the image if it is to be made, and opens it. What was found in a
// directory and cannot be served is passed over (nil), and logged.
func (s *service) open(ctx context.Context, spec exportSpec) (*image, error) {
	im, err := s.openAsked(ctx, spec)
	if spec.found && err != nil && ctx.Err() == nil {
		s.log.Warn().Err(err).Str("path", spec.path).Msg("not served")
		return nil, nil
	}
	return im, err
}

// openAsked is open for what somebody has asked for.
func (s *service) openAsked(ctx context.Context, spec exportSpec) (*image, error) {
	made, err := spec.createMissing(ctx)
	if err != nil {
		return nil, err
	}
	im, err := openImageIf(spec.path, spec.options(), mayServe)
	switch {
	case err != nil:
		return nil, err
	case made:
		if note := sectorNote(im.dev.Flavour(), im.dev.SectorSize()); note != "" {
			s.log.Warn().Str("path", im.path).Msg(note)
		}
		return im, s.as.Own(spec.path)
	}
	s.warnIfOther(im, spec)
	return im, nil
}

// mayServe refuses an image that a device waits for, unless it stays as it is.
func mayServe(r *pmem.Region) error {
	if r.ReadOnly() {
		return nil
	}
	return refuseWaited(r)
}

// createMissing makes the image if it is to be made and nothing is there.
func (e *exportSpec) createMissing(ctx context.Context) (made bool, err error) {
	if _, err := os.Stat(e.path); e.create == 0 || !errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	id, err := uuid.NewRandom()
	if err != nil {
		return false, fmt.Errorf("making a random uuid: %w", err)
	}
	spec := imageSpec{path: e.path, size: e.create, sectorSize: sectorBytes(e.sectorSize), flavour: layout.Kernel, uuid: id}
	_, err = spec.makeNew(ctx)
	return err == nil, err
}

// warnIfOther warns of an image that was there already and is not what --create
// would have made.
func (s *service) warnIfOther(im *image, spec exportSpec) {
	otherSize := spec.create != 0 && spec.create != im.fileSize
	otherSector := spec.create != 0 && spec.sectorSize.given && im.dev.Flavour().SectorSize(sectorBytes(spec.sectorSize)) != im.dev.SectorSize()
	if otherSize || otherSector {
		s.log.Warn().Str("path", im.path).Msgf("the image was there already and stays as it is: %s, sector size %d",
			units.Human(im.fileSize), im.dev.SectorSize())
	}
}

// announce logs what was opened, and what the operator must know about it.
func (s *service) announce(im *image, name string) {
	durability := im.durability.String()
	if im.dev.ReadOnly() {
		durability = "none needed"
	}
	s.log.Info().Str("path", im.path).Str("export", name).Uint64("size", im.dev.Size()).
		Uint32("sector_size", im.dev.SectorSize()).Str("durability", durability).
		Bool("read_only", im.dev.ReadOnly()).Msg("image opened")
	for _, w := range im.dev.Warnings() {
		s.log.Warn().Str("path", im.path).Msg(w)
	}
	if im.durability == pmem.Process && !im.dev.ReadOnly() {
		s.log.Warn().Str("path", im.path).
			Msg("NOT SAFE AGAINST POWER FAILURE: data survives a kill of this server only (the file is in memory, or --durability=process was given)")
	}
}
