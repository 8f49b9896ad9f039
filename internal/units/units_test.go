package units

import (
	"math"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// Goal: every suffix has the worth that the documentation gives it.
func TestParseSize(t *testing.T) {
	for in, want := range map[string]uint64{
		"0": 0, "1": 1, "007": 7, "4096": 4096, "17b": 17, "17B": 17, "3s": 1536,
		"1k": 1 << 10, "1K": 1 << 10, "1KiB": 1 << 10, "1kB": 1000, "1KB": 1000,
		"1m": 1 << 20, "1M": 1 << 20, "1MiB": 1 << 20, "1MB": 1e6,
		"16g": 16 << 30, "16G": 16 << 30, "16GiB": 16 << 30, "16GB": 16e9,
		"1T": 1 << 40, "1TiB": 1 << 40, "1TB": 1e12,
		"1P": 1 << 50, "1PiB": 1 << 50, "1PB": 1e15,
		"15E": 15 << 60, "15EiB": 15 << 60, "18EB": 18e18,
		"18446744073709551615": math.MaxUint64,
		"9007199254740993":     9007199254740993, // what a float64 cannot hold
	} {
		got, err := ParseSize(in)
		if err != nil || got != want {
			t.Errorf("ParseSize(%q) = %d, %v, want %d", in, got, err, want)
		}
	}
}

// Goal: what is not a size is refused, and the error quotes it.
func TestParseSizeRefuses(t *testing.T) {
	for _, in := range []string{
		"", "G", "-1", "+1", "1.5G", "1,5G", "0x10", "1e3", "1 G", " 1G", "1G ", "1_000",
		"1Gb", "1gb", "1gB", "1giB", "1kiB", "1mB", "1GIB", "1Z", "1S", "1BB", "1iB", "1Ks", "1é", "ten",
		"16E", "19EB", "18446744073709551616", "36028797018963968s",
	} {
		got, err := ParseSize(in)
		if err == nil {
			t.Errorf("ParseSize(%q) = %d, want an error", in, got)
		} else if !strings.Contains(err.Error(), strconv.Quote(in)) {
			t.Errorf("ParseSize(%q): error %q does not quote it", in, err)
		}
	}
}

// Goal: the exact spelling is the shortest one, and the human one is right to two digits.
func TestPrint(t *testing.T) {
	for _, c := range []struct {
		size           uint64
		compact, human string
	}{
		{0, "0", "0 bytes"},
		{512, "512", "512 bytes"},
		{1023, "1023", "1023 bytes"},
		{1024, "1K", "1 KiB (1024 bytes)"},
		{1025, "1025", "1 KiB (1025 bytes)"},
		{1536 << 20, "1536M", "1.5 GiB (1610612736 bytes)"},
		{1<<20 - 1, "1048575", "1023.99 KiB (1048575 bytes)"},
		{100 << 30, "100G", "100 GiB (107374182400 bytes)"},
		{66994176, "65424K", "63.89 MiB (66994176 bytes)"},
		{math.MaxUint64, "18446744073709551615", "15.99 EiB (18446744073709551615 bytes)"},
	} {
		if got := Compact(c.size); got != c.compact {
			t.Errorf("Compact(%d) = %q, want %q", c.size, got, c.compact)
		}
		if got := Human(c.size); got != c.human {
			t.Errorf("Human(%d) = %q, want %q", c.size, got, c.human)
		}
	}
}

// Goal: a number of things is cut off, never rounded up, and small ones are exact.
func TestCount(t *testing.T) {
	for n, want := range map[uint64]string{
		0: "0", 9999: "9999", 10000: "10.0 k", 45267: "45.2 k", 999999: "999.9 k", 1e6: "1.0 M", 134217728: "134.2 M",
		math.MaxUint64: "18.4 E",
	} {
		if got := Count(n); got != want {
			t.Errorf("Count(%d) = %q, want %q", n, got, want)
		}
	}
}

var humanForm = regexp.MustCompile(`^(\d+)(\.\d{1,2})? ([KMGTPE]iB \((\d+) bytes\)|bytes?)$`)

// Goal: whatever is printed is read back as the same size, for every size.
func FuzzRoundTrip(f *testing.F) {
	for _, n := range []uint64{0, 1, 1023, 1024, 4097, 1 << 39, math.MaxUint64} {
		f.Add(n)
	}
	f.Fuzz(func(t *testing.T, size uint64) {
		back, err := ParseSize(Compact(size))
		if err != nil || back != size {
			t.Errorf("ParseSize(%q) = %d, %v, want %d", Compact(size), back, err, size)
		}
		m := humanForm.FindStringSubmatch(Human(size))
		if m == nil {
			t.Fatalf("Human(%d) = %q: not of the documented form", size, Human(size))
		}
		exact := m[4]
		if exact == "" {
			exact = m[1]
		}
		if exact != strconv.FormatUint(size, 10) {
			t.Errorf("Human(%d) = %q: other number of bytes", size, Human(size))
		}
	})
}

// Goal: no text makes the parser panic, and what it accepts it prints exactly.
func FuzzParseSize(f *testing.F) {
	for _, s := range []string{"1G", "1kB", "3s", "", "9é", "18446744073709551616"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		size, err := ParseSize(s)
		if err != nil {
			return
		}
		if back, err := ParseSize(Compact(size)); err != nil || back != size {
			t.Errorf("%q is %d, printed %q, read back as %d, %v", s, size, Compact(size), back, err)
		}
	})
}
