package fuzz

import (
	"encoding/binary"
	"fmt"
)

// content is what a read of a block gives: its bytes, or an I/O error.
type content struct {
	data [sector]byte
	bad  bool
}

var zero = content{}

// written is the content of a block after write id filled it. Every 8-byte word
// is unique in the whole run, so that a wrong block tells where it comes from.
func written(id, lba int) (c content) {
	for w := 0; w < sector/8; w++ {
		binary.LittleEndian.PutUint64(c.data[w*8:], uint64(id)<<32|uint64(lba)<<16|uint64(w)<<8|1)
	}
	return c
}

// patched is c with the bytes from at on replaced by those of write id.
func (c content) patched(id, lba, at, n int) content {
	w := written(id, lba)
	copy(c.data[at:at+n], w.data[at:])
	return c
}

// promise is what each block of the world may hold. One content means that it is
// certain; an operation in flight adds others.
type promise [len(lbas)][]content

// with returns the promise while an operation is in flight that may turn block i
// into c.
func (p promise) with(i int, c content) promise {
	p[i] = append(p[i][:len(p[i]):len(p[i])], c)
	return p
}

// keeps reports whether the promise is kept when block i reads as c.
func (p *promise) keeps(i int, c content) error {
	for _, ok := range p[i] {
		if c == ok {
			return nil
		}
	}
	return fmt.Errorf("block %d: %s; promised: %s", lbas[i], c.describe(lbas[i], p[i]), describeAll(lbas[i], p[i]))
}

func describeAll(lba int, cs []content) string {
	s := ""
	for i, c := range cs {
		if i > 0 {
			s += " or "
		}
		s += c.describe(lba, nil)
	}
	return s
}

// describe names the kind of content. With the promised ones it also names what
// is wrong with it.
func (c content) describe(lba int, promised []content) string {
	if c.bad {
		return "I/O error"
	}
	ids := map[uint64]bool{}
	for w := 0; w < sector/8; w++ {
		v := binary.LittleEndian.Uint64(c.data[w*8:])
		switch {
		case v == 0:
		case v&1 == 0 || v>>8&0xff != uint64(w):
			return fmt.Sprintf("garbage %#x in word %d", v, w)
		case v>>16&0xffff != uint64(lba):
			return fmt.Sprintf("misplaced: block %d of write %d", v>>16&0xffff, v>>32)
		}
		ids[v>>32] = true
	}
	if len(ids) == 1 {
		for id := range ids {
			if id == 0 {
				return "zeros"
			}
			if promised != nil {
				return fmt.Sprintf("write %d, lost or resurrected", id)
			}
			return fmt.Sprintf("write %d", id)
		}
	}
	if promised != nil {
		return fmt.Sprintf("torn: a mix of writes %v", ids)
	}
	return fmt.Sprintf("writes %v", ids)
}
