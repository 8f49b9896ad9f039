// Package workload is what the VM tests write, on the host and in the guest alike:
// noise that both sides can make again (pattern.go), and a stream of writes of
// which one number tells what must be there after a crash (log.go).
package workload

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
)

// Pattern returns endless noise that follows from the seed.
func Pattern(seed uint64) io.Reader {
	var key [32]byte
	binary.LittleEndian.PutUint64(key[:], seed)
	return rand.NewChaCha8(key)
}

// ComparePattern reads r to its end and says where it differs from size bytes of
// the pattern of the seed.
func ComparePattern(r io.Reader, seed uint64, size int64) error {
	got, want := make([]byte, 64<<10), make([]byte, 64<<10)
	in, pattern := bufio.NewReader(r), Pattern(seed)
	for off := int64(0); ; {
		n, err := io.ReadFull(in, got)
		io.ReadFull(pattern, want[:n]) // never fails
		if !bytes.Equal(got[:n], want[:n]) {
			i := 0
			for got[i] == want[i] {
				i++
			}
			return fmt.Errorf("byte %d is %#x, want %#x", off+int64(i), got[i], want[i])
		}
		off += int64(n)
		switch {
		case err == io.EOF || err == io.ErrUnexpectedEOF:
			if off != size {
				return fmt.Errorf("%d bytes, want %d", off, size)
			}
			return nil
		case err != nil:
			return err
		}
	}
}
