package check

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"strings"

	"github.com/bttnbd/bttnbd/layout"
)

// errOutside: the place of an info block lies behind the end of the file.
var errOutside = errors.New("behind the end of the file")

// errPrimary: where a backup may be, another arena begins, as it can in an image that
// has grown.
var errPrimary = errors.New("the primary info block of another arena")

// versionError: the info block is whole, but of another version than the place
// where it stands, or than its arena 0.
type versionError struct{ got, want layout.Flavour }

func (e *versionError) Error() string {
	return fmt.Sprintf("version %d.%d, want %d.%d in this place", e.got.Major, e.got.Minor, e.want.Major, e.want.Minor)
}

// HasSignature reports whether the copy, sound or not, begins like an info block.
func (i *InfoCopy) HasSignature() bool { return layout.HasSignature(i.raw) }

// arena reads both info blocks of the arena at start and believes the primary,
// or else the backup.
func (x *reader) arena(f layout.Flavour, start uint64) Arena {
	a := Arena{Offset: start, Primary: x.copyAt(start, start, f)}
	if a.Primary.Err == nil {
		a.Info = a.Primary.Info
		a.Backup = x.copyAt(a.end()-layout.InfoSize, start, f)
		return a
	}
	places, chained := x.backupPlaces(&a, f)
	for i, off := range places {
		backup := x.copyAt(off, start, f)
		// What the chain leads to is a backup, whatever users have written elsewhere.
		if !chained && backup.Err == nil && bytes.Equal(backup.raw, x.copyAt(addSaturated(off, backup.Info.InfoOff), off, f).raw) {
			backup.Err = errPrimary
		}
		if i == 0 || backup.Err == nil {
			a.Backup = backup
		}
		if backup.Err == nil {
			a.Info, a.FromBackup = backup.Info, true
			break
		}
	}
	return a
}

// backupPlaces are where the backup of an arena can be whose primary is bad: where the
// backups behind it lead (chained), or else where the primary says even so, and at the
// end that an arena in this place has. The last is a guess: in an image that has grown,
// users' data can stand there, and look like a backup.
func (x *reader) backupPlaces(a *Arena, f layout.Flavour) (places []uint64, chained bool) {
	for _, c := range x.chain() {
		if c.start == a.Offset {
			return []uint64{c.end - layout.InfoSize}, true
		}
	}
	if off := a.Primary.Info.InfoOff; off != 0 && off < x.size && (layout.HasSignature(a.Primary.raw) || x.copyAt(a.Offset+off, a.Offset, f).Err == nil) {
		places = append(places, a.Offset+off)
	}
	end := x.size / page * page
	if a.Offset < end && end-a.Offset > x.maxArena {
		end = a.Offset + x.maxArena
	}
	return append(places, max(end, layout.InfoSize)-layout.InfoSize), false
}

// chained is where an arena is that the backups tell.
type chained struct{ start, end uint64 }

// chain follows the backups from the end of the image: each says where its arena
// begins, and there the one before it ends. It finds the arenas of an image that has
// grown, of whatever size they are, the last one first, up to a backup that is bad.
func (x *reader) chain() (list []chained) {
	raw := make([]byte, layout.InfoSize)
	for end := x.size / page * page; end >= 2*layout.InfoSize && len(list) < maxArenas; {
		off := end - layout.InfoSize
		x.region.Read(raw, off)
		in, err := layout.DecodeInfo(raw)
		if err != nil || in.InfoOff < layout.InfoSize || in.InfoOff > off {
			break
		}
		list = append(list, chained{off - in.InfoOff, end})
		end = off - in.InfoOff
	}
	return list
}

// copyAt reads the info block at off and judges it as one of the arena at start.
func (x *reader) copyAt(off, start uint64, f layout.Flavour) InfoCopy {
	c := InfoCopy{Offset: off}
	if x.size < layout.InfoSize || off > x.size-layout.InfoSize {
		c.Err = errOutside
		return c
	}
	c.raw = make([]byte, layout.InfoSize)
	x.region.Read(c.raw, off)
	if b, ok := x.overlay[off]; ok {
		copy(c.raw, b)
	}
	if c.Info, c.Err = layout.DecodeInfo(c.raw); c.Err == nil {
		c.Err = c.judge(start, f)
	}
	return c
}

func (c *InfoCopy) judge(start uint64, f layout.Flavour) error {
	in := &c.Info
	if in.Major != f.Major || in.Minor != f.Minor {
		return &versionError{got: layout.Flavour{Major: in.Major, Minor: in.Minor}, want: f}
	}
	// Whether the arena fits the file is another question: see Arena.Missing.
	if err := in.Validate(math.MaxUint64); err != nil {
		return err
	}
	if in.Nfree > maxLanes {
		return &layout.FieldError{Field: "nfree", Value: uint64(in.Nfree), Want: fmt.Sprintf("at most %d", maxLanes)}
	}
	if c.Offset != start && (c.Offset < start || in.InfoOff != c.Offset-start) {
		return &layout.FieldError{Field: "infooff", Value: in.InfoOff, Want: "the place of this backup in its arena"}
	}
	return nil
}

// reportCopies reports what is wrong with either copy, or how they differ.
func (a *Arena) reportCopies(c *collector, pool bool) {
	p, b := &a.Primary, &a.Backup
	if p.Err != nil {
		f := Finding{Severity: Error, Message: "Linux does not attach this BTT while it is so"}
		if pool {
			f.Message = "PMDK takes the pool for empty and would write over it"
		}
		if b.Err == nil {
			f.Repair = fmt.Sprintf("copy the backup at offset %d over it", b.Offset)
		}
		p.report(c, "primary", f)
	}
	if b.Err != nil && !errors.Is(b.Err, errOutside) {
		f := Finding{Severity: Warning, Message: "if the primary is lost as well, so is the arena"}
		if p.Err != nil {
			f = Finding{Severity: Error, Message: "it cannot stand in for the primary"}
		} else {
			f.Repair = fmt.Sprintf("copy the primary at offset %d over it", p.Offset)
		}
		b.report(c, "backup", f)
	}
	if p.Err == nil && b.Err == nil && !bytes.Equal(p.raw, b.raw) {
		a.reportDifference(c)
	}
}

// report completes f, whose message is the consequence so far.
func (i *InfoCopy) report(c *collector, which string, f Finding) {
	f.Offset = i.Offset
	f.Message = fmt.Sprintf("%s info block at offset %d: %v; %s", which, i.Offset, i.Err, f.Message)
	var version *versionError
	switch {
	case errors.As(i.Err, &version):
		f.Kind = InfoVersion
	case errors.Is(i.Err, layout.ErrChecksum):
		f.Kind = InfoChecksum
	case errors.Is(i.Err, layout.ErrNoSignature), errors.Is(i.Err, errOutside):
		f.Kind = InfoSignature
	default:
		f.Kind = InfoField
	}
	c.add(f)
}

// reportDifference: flags, and nextoff where an image grows, are written to one copy
// after the other, so that a crash can leave them different; nothing else ever is.
func (a *Arena) reportDifference(c *collector) {
	names, severity, what := differences(&a.Primary.Info, &a.Backup.Info), Error, ""
	switch {
	case len(names) == 0:
		names, severity = []string{"reserved bytes"}, Warning
	case len(names) == 1 && names[0] == "flags":
		severity = Warning
	case len(names) == 1 && names[0] == "nextoff" && a.Primary.Info.NextOff == 0:
		severity, what = Warning, "; bttnbd grow was interrupted just before the image was the larger one, run it again"
	}
	c.add(Finding{
		Kind: InfoCopies, Severity: severity, Offset: a.Backup.Offset,
		Message: fmt.Sprintf("the info blocks at offsets %d and %d are whole but differ in %s; the first is believed%s", a.Primary.Offset, a.Backup.Offset, strings.Join(names, ", "), what),
		Repair:  "copy the primary over the backup",
	})
}

// Differ are the names of the fields in which the two copies differ as they stand,
// the bad ones too; none if they agree, or if one lies outside the file.
func (a *Arena) Differ() (names []string) {
	p, b := a.Primary.raw, a.Backup.raw
	if p == nil || b == nil || bytes.Equal(p, b) {
		return nil
	}
	if !bytes.Equal(p[:16], b[:16]) {
		names = append(names, "signature")
	}
	names = append(names, differences(&a.Primary.Info, &a.Backup.Info)...)
	if !bytes.Equal(p[120:layout.InfoSize-8], b[120:layout.InfoSize-8]) {
		names = append(names, "reserved bytes")
	}
	if len(names) == 0 {
		names = []string{"checksum"} // which otherwise follows from the rest
	}
	return names
}

// differences are the names of the fields in which two info blocks differ.
func differences(a, b *layout.Info) (names []string) {
	for _, f := range []struct {
		name string
		same bool
	}{
		{"uuid", a.UUID == b.UUID},
		{"parent_uuid", a.ParentUUID == b.ParentUUID},
		{"flags", a.Flags == b.Flags},
		{"major", a.Major == b.Major},
		{"minor", a.Minor == b.Minor},
		{"external_lbasize", a.ExternalLBASize == b.ExternalLBASize},
		{"external_nlba", a.ExternalNLBA == b.ExternalNLBA},
		{"internal_lbasize", a.InternalLBASize == b.InternalLBASize},
		{"internal_nlba", a.InternalNLBA == b.InternalNLBA},
		{"nfree", a.Nfree == b.Nfree},
		{"infosize", a.InfoSize == b.InfoSize},
		{"nextoff", a.NextOff == b.NextOff},
		{"dataoff", a.DataOff == b.DataOff},
		{"mapoff", a.MapOff == b.MapOff},
		{"flogoff", a.FlogOff == b.FlogOff},
		{"infooff", a.InfoOff == b.InfoOff},
	} {
		if !f.same {
			names = append(names, f.name)
		}
	}
	return names
}
