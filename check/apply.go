package check

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/bttnbd/bttnbd/layout"
	"github.com/bttnbd/bttnbd/pmem"
)

// RepairOptions of [Repair]. The zero value repairs what can be repaired without
// being told more.
type RepairOptions struct {
	Options
	// Adopt makes arenas whose uuid differs part of this BTT. Without it they are
	// left alone: they may hold the data of another one.
	Adopt bool
	// DryRun makes the plan and changes nothing.
	DryRun bool
	// Backup, if set, is called with the plan before anything is stored, and what it
	// saves must be durable when it returns. See [SaveBackup].
	Backup func(*Plan) error
}

// ErrReadOnly: a repair needs a region that it can write to.
var ErrReadOnly = errors.New("the image is open for reading only: open it for writing to repair it")

// Repair checks the image, mends what can be mended, and checks it again. The
// report is that of the first check, with the plan and the second report in it; the
// latter is nil if nothing was done.
//
// It can be interrupted at any point, a power cut included, and run again: then it
// comes to the same end. No block of data is written, and at no time does a read
// give other data than before or after; see [Stage] for the order. Each stage is as
// durable as the region's Durability says before the next begins.
//
// Errors are those of [Run]; [ErrReadOnly]; and what Backup and the region's Drain
// return, after which the repair is to be run again. If a check afterwards fails, the
// report comes with the error, and says how many steps are done.
func Repair(ctx context.Context, r *pmem.Region, o RepairOptions) (rep *Report, err error) {
	defer r.CatchFault(&err)
	defer pmem.ArmFaults()()
	if r.ReadOnly() && !o.DryRun {
		return nil, ErrReadOnly
	}
	if rep, err = Run(ctx, r, o.Options); err != nil {
		return nil, err
	}
	if err := Preview(ctx, r, rep, o); err != nil {
		return nil, err
	}
	if o.DryRun {
		return rep, nil
	}
	if err := rep.Plan.settle(r); err != nil || len(rep.Plan.Steps) == 0 {
		return rep, err
	}
	if o.Backup != nil {
		if err := o.Backup(rep.Plan); err != nil {
			return nil, err
		}
	}
	mends, flags := rep.Plan.split()
	if err := apply(r, mends); err != nil {
		return nil, err
	}
	rep.Repaired = len(mends)
	if rep.After, err = Run(ctx, r, o.Options); err != nil || len(flags) == 0 {
		return rep, err
	}
	if !onlyFlags(rep.After) {
		rep.Plan.Refused = append(rep.Plan.Refused, Refusal{
			Arena: flags[0].Arena, Kind: ArenaError, Offset: flags[0].Offset,
			Why: "the error flag stays, because not everything else is clean",
		})
		return rep, nil
	}
	if err := apply(r, flags); err != nil {
		return nil, err
	}
	rep.Repaired += len(flags)
	rep.After, err = Run(ctx, r, o.Options)
	return rep, err
}

// onlyFlags reports whether nothing is wrong but error flags.
func onlyFlags(r *Report) bool {
	return !slices.ContainsFunc(r.Findings, func(f Finding) bool { return f.Severity == Error && f.Kind != ArenaError })
}

// split separates the steps of [StageFlag], which stand last.
func (p *Plan) split() (mends, flags []Step) {
	i := slices.IndexFunc(p.Steps, func(s Step) bool { return s.Stage == StageFlag })
	if i < 0 {
		return p.Steps, nil
	}
	return p.Steps[:i], p.Steps[i:]
}

// settle makes durable what the plan rests on, be it damage or in order. A
// predecessor that was killed, with the power on, can have left stores in the CPU
// caches; a step that follows from one of those must not outlive it.
func (p *Plan) settle(r *pmem.Region) error {
	for _, e := range p.metadata {
		r.Flush(e.off, e.n)
	}
	return r.Drain()
}

// apply carries out steps in their order, with a drain wherever the stage or the
// arena changes, and behind each info block.
func apply(r *pmem.Region, steps []Step) error {
	for i := range steps {
		s := &steps[i]
		if err := s.verify(r); err != nil {
			return err
		}
		r.Touch(s.Offset)
		s.store(r)
		last := i+1 == len(steps) || s.Stage >= StageInfo
		if last || steps[i+1].Stage != s.Stage || steps[i+1].Arena != s.Arena {
			if err := r.Drain(); err != nil {
				return fmt.Errorf("arena %d, offset %d: %w: run the repair again", s.Arena, s.Offset, err)
			}
		}
	}
	return nil
}

// verify reports an error unless the image still is as it was when the plan was made.
func (s *Step) verify(r *pmem.Region) error {
	now := make([]byte, len(s.Before))
	r.Read(now, s.Offset)
	if !bytes.Equal(now, s.Before) {
		return fmt.Errorf("arena %d, offset %d: the image has changed since it was examined: see who else writes to it, then run the repair again", s.Arena, s.Offset)
	}
	return nil
}

func (s *Step) store(r *pmem.Region) {
	n := uint64(len(s.After))
	switch {
	case s.stores != nil:
		for _, w := range s.stores {
			r.Store64(w.off, w.v)
		}
		r.Flush(s.Offset, n)
	case n == layout.InfoSize:
		r.Write(s.Offset, s.After)
	default:
		r.Store32(s.Offset, binary.LittleEndian.Uint32(s.After))
		r.Flush(s.Offset, n)
	}
}
