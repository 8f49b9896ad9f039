// Package units reads and writes sizes the way storage tools do. K is 1024:
// nbdkit, qemu-img and ndctl agree on that, and the popular Go libraries do not.
package units

import (
	"fmt"
	"math/bits"
	"strconv"
	"strings"
)

// prefixes stand in ascending order: the i-th is worth 1024^(i+1), or 1000^(i+1)
// when a lone "B" follows it.
const prefixes = "KMGTPE"

// ParseSize reads a size in bytes: decimal digits and a suffix.
//
//	none, b, B                bytes
//	s                         sectors of 512 bytes
//	k K m M g G t T p P e E   powers of 1024
//	KiB MiB GiB TiB PiB EiB   powers of 1024
//	kB KB MB GB TB PB EB      powers of 1000
//
// There is no sign, no fraction and no space. A value of 2^64 and more is an error.
func ParseSize(s string) (uint64, error) {
	suffix := strings.TrimLeft(s, "0123456789")
	number := s[:len(s)-len(suffix)]
	if number == "" {
		return 0, fmt.Errorf("size %q is not a number: write bytes, or a number with K, M, G or T like 512M", s)
	}
	factor, ok := scale(suffix)
	if !ok {
		return 0, fmt.Errorf("size %q ends in %q, which is no unit: use K, M, G, T (powers of 1024) or kB, MB, GB, TB (of 1000), and no fraction", s, suffix)
	}
	n, err := strconv.ParseUint(number, 10, 64)
	if err != nil {
		return 0, tooLarge(s)
	}
	high, size := bits.Mul64(n, factor)
	if high != 0 {
		return 0, tooLarge(s)
	}
	return size, nil
}

func tooLarge(s string) error {
	return fmt.Errorf("size %q is too large: at most 2^64-1 bytes can be written down", s)
}

// scale is the worth of a suffix in bytes.
func scale(suffix string) (factor uint64, ok bool) {
	switch suffix {
	case "", "b", "B":
		return 1, true
	case "s":
		return 512, true
	}
	prefix, rest := suffix[:1], suffix[1:]
	i := strings.Index(prefixes, strings.ToUpper(prefix))
	if i < 0 {
		return 0, false
	}
	upper := prefix == strings.ToUpper(prefix)
	switch {
	case rest == "", rest == "iB" && upper:
		return power(1024, i+1), true
	case rest == "B" && (upper || prefix == "k"):
		return power(1000, i+1), true
	}
	return 0, false
}

func power(base uint64, exponent int) uint64 {
	p := uint64(1)
	for range exponent {
		p *= base
	}
	return p
}

// Compact is the shortest exact spelling of a size that [ParseSize] reads back:
// 1G, 1536M, 4097.
func Compact(size uint64) string {
	i := -1
	for size != 0 && size%1024 == 0 && i+1 < len(prefixes) {
		size /= 1024
		i++
	}
	if i < 0 {
		return strconv.FormatUint(size, 10)
	}
	return strconv.FormatUint(size, 10) + prefixes[i:i+1]
}

// Human is a size for people: in the largest unit that leaves at least 1, cut
// off after two digits, with the exact number of bytes behind it.
//
//	1 byte
//	512 bytes
//	64 MiB (67108864 bytes)
//	63.89 MiB (66994176 bytes)
func Human(size uint64) string {
	if size < 1024 {
		return Bytes(size)
	}
	return fmt.Sprintf("%s (%d bytes)", Short(size), size)
}

// Short is [Human] without the exact number: 63.89 MiB.
func Short(size uint64) string {
	if size < 1024 {
		return Bytes(size)
	}
	i := (bits.Len64(size)-1)/10 - 1
	unit := power(1024, i+1)
	high, low := bits.Mul64(size%unit, 100)
	hundredths, _ := bits.Div64(high, low, unit)
	number := fmt.Sprintf("%d.%02d", size/unit, hundredths)
	return fmt.Sprintf("%s %ciB", strings.TrimRight(strings.TrimRight(number, "0"), "."), prefixes[i])
}

// Count is a number of things for people: exact below 10000, else in thousands,
// millions and so on, cut off after one digit.
//
//	9999
//	45.2 M
func Count(n uint64) string {
	if n < 10000 {
		return strconv.FormatUint(n, 10)
	}
	i, unit := 0, uint64(1000)
	for n/unit >= 1000 {
		i, unit = i+1, unit*1000
	}
	return fmt.Sprintf("%d.%d %c", n/unit, n%unit/(unit/10), "kMGTPE"[i])
}

// Bytes is the plain number, with its noun.
func Bytes(n uint64) string {
	if n == 1 {
		return "1 byte"
	}
	return fmt.Sprintf("%d bytes", n)
}

// Plural is a number of things: 1 lane, 2 lanes.
func Plural(n uint64, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// Ranges are ascending numbers as text, 3, 7-9, 12, in at most so many parts.
func Ranges(n []uint64, most int) string {
	var parts []string
	for i := 0; i < len(n); {
		j := i + 1
		for j < len(n) && n[j] == n[j-1]+1 {
			j++
		}
		if len(parts) == most {
			parts = append(parts, fmt.Sprintf("and %d more (all with --json)", len(n)-i))
			break
		}
		if j-i == 1 {
			parts = append(parts, fmt.Sprint(n[i]))
		} else {
			parts = append(parts, fmt.Sprintf("%d-%d", n[i], n[j-1]))
		}
		i = j
	}
	return strings.Join(parts, ", ")
}
