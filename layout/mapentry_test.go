package layout

import "testing"

func TestMapEntry(t *testing.T) {
	// Goal: state, owned block and text of entries as they stand on media, at lba 7.
	for _, c := range []struct {
		entry MapEntry
		state EntryState
		owned PostmapLBA
		text  string
	}{
		{0, Initial, 7, "initial:0"},
		{0x00000123, Initial, 7, "initial:291"}, // low bits are ignored
		{0x40000000, Error, 0, "error:0"},
		{0x40000123, Error, 0x123, "error:291"},
		{0x80000123, Zero, 0x123, "zero:291"},
		{0xc0000123, Normal, 0x123, "normal:291"},
		{0xffffffff, Normal, 0x3fffffff, "normal:1073741823"},
	} {
		if got := c.entry.State(); got != c.state {
			t.Errorf("%#x: state %v, want %v", uint32(c.entry), got, c.state)
		}
		if got := c.entry.Owned(7); got != c.owned {
			t.Errorf("%#x: owns %d, want %d", uint32(c.entry), got, c.owned)
		}
		if got := c.entry.String(); got != c.text {
			t.Errorf("%#x: %q, want %q", uint32(c.entry), got, c.text)
		}
	}
}

func TestMapEntryMakers(t *testing.T) {
	// Goal: the entries made here carry the flags of the format and their block.
	for _, block := range []PostmapLBA{0, 1, 1<<30 - 1} {
		for _, c := range []struct {
			entry MapEntry
			flags uint32
			state EntryState
		}{
			{NormalEntry(block), 0xc0000000, Normal},
			{ZeroEntry(block), 0x80000000, Zero},
			{ErrorEntry(block), 0x40000000, Error},
		} {
			if uint32(c.entry) != c.flags|uint32(block) || c.entry.Block() != block || c.entry.State() != c.state {
				t.Errorf("%v of block %d is %#x", c.state, block, uint32(c.entry))
			}
		}
	}
}
