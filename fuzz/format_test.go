package fuzz

import (
	"errors"
	"fmt"
	"testing"

	"github.com/google/uuid"

	"github.com/bttnbd/bttnbd/btt"
	"github.com/bttnbd/bttnbd/layout"
	"github.com/bttnbd/bttnbd/pmem"
	"github.com/bttnbd/bttnbd/pmem/pmemtest"
)

// formatSize is room for one arena of any flavour.
const formatSize = layout.PoolDataOff + arena

var newID = uuid.UUID{0xee}

// formatCase is a format over something.
type formatCase struct {
	name   string
	before []byte
	zeroed bool
	old    *promise // what the BTT that is there holds, nil if there is none
}

// Goal: a crash at any moment of a format leaves the BTT that was there, whole, or
// none, or the new one, whole and reading as zeros. Method: every image of every
// crash in a format over zeros, garbage, and used BTTs of all flavours.
func TestFormat(t *testing.T) {
	cases := []formatCase{
		{name: "zeros", before: make([]byte, formatSize), zeroed: true},
		{name: "ones", before: pattern(func(int) byte { return 0xff })},
		{name: "seq 2 everywhere", before: pattern(func(i int) byte { return []byte{2, 0, 0, 0}[i%4] })},
		{name: "noise", before: pattern(func(i int) byte { return byte(i * i >> 3) })},
	}
	for _, f := range flavours[:3] {
		image, p := usedImage(f)
		cases = append(cases, formatCase{name: "old " + f.Name, before: image, old: &p})
	}
	for _, c := range cases {
		for _, f := range flavours[:3] {
			t.Run(c.name+" to "+f.Name, func(t *testing.T) {
				images, outcomes := c.run(t, f)
				t.Logf("%d images: %v", images, outcomes)
				if model().exhaustive() && (outcomes["new"] == 0 || outcomes["none"] == 0 || c.old != nil && outcomes["old"] == 0) {
					t.Errorf("not every outcome was seen: %v", outcomes)
				}
			})
		}
	}
}

func pattern(f func(int) byte) []byte {
	b := make([]byte, formatSize)
	for i := range b {
		b[i] = f(i)
	}
	return b
}

// usedImage is a BTT whose lanes have gone round their sequence numbers.
func usedImage(f layout.Flavour) ([]byte, promise) {
	buf := make([]byte, formatSize)
	p := formatParams(f)
	p.MaxArena = formatSize
	r := pmem.NewTraced(buf, nil)
	if err := btt.Format(r, p); err != nil {
		panic(err)
	}
	m := pmemtest.New(buf)
	w := &world{m: m}
	if err := w.openAny(); err != nil {
		panic(err)
	}
	for i := range w.now {
		w.now[i] = []content{zero}
	}
	for i := range 5 {
		if err := w.do(op{opGroup, 0, uint32(i % 2)}); err != nil {
			panic(err)
		}
	}
	return m.Peek(), w.now
}

// openAny opens whatever fills the region.
func (w *world) openAny() (err error) {
	w.d, err = btt.Open(w.m.Region(), btt.Options{MaxArena: formatSize})
	return err
}

func (c *formatCase) run(t *testing.T, f layout.Flavour) (images int, outcomes map[string]int) {
	outcomes = map[string]int{}
	m := pmemtest.New(c.before)
	params := formatParams(f)
	params.UUID, params.Zeroed, params.MaxArena = newID, c.zeroed, formatSize
	var spare *pmemtest.Machine
	crash := func() error {
		for o := newFates(); ; {
			spare = m.Crash(o, spare)
			images++
			outcome, err := c.verify(spare)
			if err != nil {
				return fmt.Errorf("crash before drain %d: %w", m.Count.Drains, err)
			}
			outcomes[outcome]++
			if !o.Next() {
				return nil
			}
		}
	}
	onCrash(m, crash)
	if err := btt.Format(m.Region(), params); err != nil {
		t.Fatal(err)
	}
	onCrash(m, nil)
	if dirty := m.Undurable(); model() == full && len(dirty) > 0 {
		t.Fatalf("format has returned, but lines at %d are not durable", dirty)
	}
	before := outcomes["new"]
	if err := crash(); err != nil {
		t.Fatal(err)
	}
	if outcomes["new"] == before {
		t.Error("format has returned, but the new BTT is not there")
	}
	return images, outcomes
}

// verify opens the machine and says what it found: the old BTT, none, or the new.
func (c *formatCase) verify(m *pmemtest.Machine) (string, error) {
	w := &world{m: m, writes: 100}
	var corrupt *btt.CorruptError
	switch err := w.openAny(); {
	case errors.Is(err, btt.ErrNoBTT):
		return "none", nil
	case errors.As(err, &corrupt) && (errors.Is(err, layout.ErrChecksum) || errors.Is(err, layout.ErrPoolChecksum) || errors.Is(err, layout.ErrNoSignature)):
		return "none", nil
	case err != nil:
		return "", err
	}
	outcome := "new"
	for i := range w.now {
		w.now[i] = []content{zero}
	}
	if w.d.UUID() != newID {
		if c.old == nil {
			return "", fmt.Errorf("a BTT %v where there was none", w.d.UUID())
		}
		outcome, w.now = "old", *c.old
	}
	if err := w.readAll(); err != nil {
		return outcome, fmt.Errorf("%s BTT: %w", outcome, err)
	}
	for _, lanes := range []uint32{lowLanes, highLanes} {
		if err := w.do(op{opGroup, 0, lanes}); err != nil {
			return outcome, fmt.Errorf("%s BTT: %w", outcome, err)
		}
	}
	if err := w.readAll(); err != nil {
		return outcome, fmt.Errorf("%s BTT, after writing: %w", outcome, err)
	}
	return outcome, w.openAny()
}
