package nbd

import (
	"math"
	"slices"
	"strings"
	"testing"
)

const validateSize = 1 << 20

// Exports of each kind for the rows below.
var (
	full   = Export{Size: validateSize, Trim: true, Zero: true, FastZero: true}
	bare   = Export{Size: validateSize}
	ro     = Export{Size: validateSize, ReadOnly: true}
	slow   = Export{Size: validateSize, Zero: true}
	coarse = Export{Size: validateSize, MinBlock: 512, Trim: true, Zero: true}
	small  = Export{Size: 1 << 30, MaxPayload: 8192, Trim: true, Zero: true}
	empty  = Export{}
	huge   = Export{Size: math.MaxInt64, Trim: true, Zero: true}
)

// validateRow is a request and the errno it deserves.
type validateRow struct {
	name   string
	e      Export
	cmd    uint16
	flags  uint16
	off    uint64
	length uint64
	want   Errno
	t      terms
}

// judged is the errno of validate.
func judged(e *export, req *request, t *terms) Errno {
	t.legal = t.legalFlags()
	e.service = new(service)
	e.size.Store(e.Size)
	if why := e.validate(req, t); why != nil {
		return why.errno
	}
	return 0
}

var validateRows = []validateRow{
	{"fast zero", full, NBD_CMD_WRITE_ZEROES, NBD_CMD_FLAG_FAST_ZERO, 0, 512, 0, terms{}},
	{"fast zero, no hole, FUA", full, NBD_CMD_WRITE_ZEROES, NBD_CMD_FLAG_FAST_ZERO | NBD_CMD_FLAG_FUA | NBD_CMD_FLAG_NO_HOLE, 0, 512, 0, terms{}},
	{"fast zero not offered", slow, NBD_CMD_WRITE_ZEROES, NBD_CMD_FLAG_FAST_ZERO, 0, 512, NBD_EINVAL, terms{}},
	{"zeroes not offered", bare, NBD_CMD_WRITE_ZEROES, 0, 0, 512, NBD_EINVAL, terms{}},
	{"trim not offered", bare, NBD_CMD_TRIM, 0, 0, 512, NBD_EINVAL, terms{}},
	{"no hole on a write", full, NBD_CMD_WRITE, NBD_CMD_FLAG_NO_HOLE, 0, 512, NBD_EINVAL, terms{}},
	{"fast zero on a trim", full, NBD_CMD_TRIM, NBD_CMD_FLAG_FAST_ZERO, 0, 512, NBD_EINVAL, terms{}},
	{"DF without structured replies", full, NBD_CMD_READ, NBD_CMD_FLAG_DF, 0, 512, NBD_EINVAL, terms{}},
	{"block status", full, NBD_CMD_BLOCK_STATUS, 0, 0, 512, NBD_EINVAL, terms{}},
	{"unknown command", full, 0xffff, 0, 0, 0, NBD_EINVAL, terms{}},

	{"read-only read", ro, NBD_CMD_READ, 0, 0, 512, 0, terms{}},
	{"read-only write", ro, NBD_CMD_WRITE, 0, 0, 512, NBD_EPERM, terms{}},
	{"read-only write past the end", ro, NBD_CMD_WRITE, 0, validateSize, 512, NBD_EPERM, terms{}},
	{"read-only trim", ro, NBD_CMD_TRIM, 0, 0, 512, NBD_EPERM, terms{}},
	{"read-only zeroes", ro, NBD_CMD_WRITE_ZEROES, 0, 0, 512, NBD_EPERM, terms{}},
	{"read-only flush", ro, NBD_CMD_FLUSH, 0, 0, 0, 0, terms{}},
	{"read-only cache", ro, NBD_CMD_CACHE, 0, 0, 512, 0, terms{}},

	{"flush with offset and length", full, NBD_CMD_FLUSH, NBD_CMD_FLAG_FUA, math.MaxUint64, math.MaxUint32, 0, terms{}},
	{"empty at the end", full, NBD_CMD_READ, 0, validateSize, 0, 0, terms{}},
	{"empty past the end", full, NBD_CMD_READ, 0, validateSize + 1, 0, NBD_EINVAL, terms{}},
	{"whole export", full, NBD_CMD_WRITE, 0, 0, validateSize, 0, terms{}},
	{"empty export, empty read", empty, NBD_CMD_READ, 0, 0, 0, 0, terms{}},
	{"empty export", empty, NBD_CMD_READ, 0, 0, 1, NBD_EINVAL, terms{}},
	{"largest export, last byte", huge, NBD_CMD_READ, 0, math.MaxInt64 - 1, 1, 0, terms{}},
	{"largest export, one more", huge, NBD_CMD_READ, 0, math.MaxInt64 - 1, 2, NBD_EINVAL, terms{}},
	{"largest trim", huge, NBD_CMD_TRIM, 0, 0, math.MaxUint32, 0, terms{}},

	{"unaligned offset", coarse, NBD_CMD_READ, 0, 511, 512, NBD_EINVAL, terms{}},
	{"unaligned length", coarse, NBD_CMD_WRITE, 0, 512, 513, NBD_EINVAL, terms{}},
	{"unaligned trim", coarse, NBD_CMD_TRIM, 0, 1, 512, NBD_EINVAL, terms{}},
	{"aligned", coarse, NBD_CMD_READ, 0, 512, 1024, 0, terms{}},

	{"read of the maximum payload", small, NBD_CMD_READ, 0, 1, 8192, 0, terms{}},
	{"read beyond", small, NBD_CMD_READ, 0, 0, 8193, NBD_EINVAL, terms{}},
	{"write beyond", small, NBD_CMD_WRITE, 0, 0, 8193, NBD_EINVAL, terms{}},
	{"trim needs no payload", small, NBD_CMD_TRIM, 0, 0, 1 << 30, 0, terms{}},
	{"nor do zeroes", small, NBD_CMD_WRITE_ZEROES, 0, 0, 1 << 30, 0, terms{}},
	{"nor does cache", small, NBD_CMD_CACHE, 0, 0, 1 << 30, 0, terms{}},

	{"DF with structured replies", full, NBD_CMD_READ, NBD_CMD_FLAG_DF, 0, 512, 0, terms{structured: true}},
	{"DF with extended headers", full, NBD_CMD_READ, NBD_CMD_FLAG_DF, 0, 512, 0, terms{extended: true}},
	{"DF on a write", full, NBD_CMD_WRITE, NBD_CMD_FLAG_DF, 0, 512, NBD_EINVAL, terms{structured: true}},
	{"block status without contexts", full, NBD_CMD_BLOCK_STATUS, 0, 0, 512, NBD_EINVAL, terms{structured: true}},
	{"block status", full, NBD_CMD_BLOCK_STATUS, 0, 0, 512, 0, status},
	{"block status of one", full, NBD_CMD_BLOCK_STATUS, NBD_CMD_FLAG_REQ_ONE, 0, 512, 0, status},
	{"REQ_ONE on a read", full, NBD_CMD_READ, NBD_CMD_FLAG_REQ_ONE, 0, 512, NBD_EINVAL, status},
	{"block status of nothing", full, NBD_CMD_BLOCK_STATUS, 0, 0, 0, NBD_EINVAL, status},
	{"block status past the end", full, NBD_CMD_BLOCK_STATUS, 0, 1, validateSize, NBD_EINVAL, status},
	{"block status unaligned", coarse, NBD_CMD_BLOCK_STATUS, 0, 1, 512, NBD_EINVAL, status},
	{"block status needs no payload", small, NBD_CMD_BLOCK_STATUS, 0, 0, 1 << 30, 0, status},
	{"block status with a payload, compact", full, NBD_CMD_BLOCK_STATUS, NBD_CMD_FLAG_PAYLOAD_LEN, 0, 12, NBD_EINVAL, status},
	{"write with PAYLOAD_LEN, compact", full, NBD_CMD_WRITE, NBD_CMD_FLAG_PAYLOAD_LEN, 0, 512, NBD_EINVAL, status},
	{"write with PAYLOAD_LEN", full, NBD_CMD_WRITE, NBD_CMD_FLAG_PAYLOAD_LEN, 0, 512, 0, terms{extended: true}},
	{"write without, as of qemu", full, NBD_CMD_WRITE, 0, 0, 512, 0, terms{extended: true}},
	{"read with PAYLOAD_LEN", full, NBD_CMD_READ, NBD_CMD_FLAG_PAYLOAD_LEN, 0, 512, NBD_EINVAL, terms{extended: true}},
	{"read of more than 32 bits", huge, NBD_CMD_READ, 0, 0, 1<<32 + 512, NBD_EINVAL, terms{extended: true}},
	{"zeroes of more than 32 bits", huge, NBD_CMD_WRITE_ZEROES, 0, 5, 1 << 40, 0, terms{extended: true}},
	{"largest zeroes", huge, NBD_CMD_WRITE_ZEROES, 0, 0, math.MaxInt64, 0, terms{extended: true}},
	{"zeroes of 64 bits", huge, NBD_CMD_WRITE_ZEROES, 0, 0, math.MaxUint64, NBD_ENOSPC, terms{extended: true}},
	{"trim of 64 bits", huge, NBD_CMD_TRIM, 0, 1, math.MaxUint64, NBD_EINVAL, terms{extended: true}},
	{"unknown flag", full, NBD_CMD_READ, 1 << 6, 0, 512, NBD_EINVAL, terms{extended: true}},
}

// status are terms under which block status is asked.
var status = terms{structured: true, contexts: 1}

// Goal: each check of validate picks its errno, on exports of each kind.
func TestValidate(t *testing.T) {
	rows := slices.Clone(validateRows)
	past := map[uint16]Errno{NBD_CMD_READ: NBD_EINVAL, NBD_CMD_CACHE: NBD_EINVAL, NBD_CMD_TRIM: NBD_EINVAL, NBD_CMD_WRITE: NBD_ENOSPC, NBD_CMD_WRITE_ZEROES: NBD_ENOSPC}
	for cmd, want := range past {
		rows = append(rows,
			validateRow{"with FUA", full, cmd, NBD_CMD_FLAG_FUA, 0, 512, 0, terms{}},
			validateRow{"one past the end", full, cmd, 0, validateSize - 511, 512, want, terms{}},
			validateRow{"at the end", full, cmd, 0, validateSize, 1, want, terms{}},
			validateRow{"far past the end", full, cmd, 0, 1 << 62, 512, want, terms{}},
			validateRow{"offset and length overflow", full, cmd, 0, math.MaxUint64 - 255, 512, want, terms{}},
			validateRow{"unknown flag", full, cmd, 1 << 15, 0, 512, NBD_EINVAL, terms{}})
	}
	for _, r := range rows {
		e := export{Export: r.e.withDefaults()}
		e.Backend = null{}
		if err := e.check(); err != nil {
			t.Fatalf("%s: %v", r.name, err)
		}
		req := request{cmd: r.cmd, flags: r.flags, offset: r.off, length: r.length}
		if got := judged(&e, &req, &r.t); got != r.want {
			t.Errorf("%s (command %d): %v, want %v", r.name, r.cmd, got, r.want)
		}
	}
}

// Goal: an export that could not be served honestly is refused at the start.
func TestExportCheck(t *testing.T) {
	for name, e := range map[string]Export{
		"no backend":            {},
		"size of 2^63":          {Size: 1 << 63},
		"NUL in the name":       {Name: "a\x00b"},
		"name not UTF-8":        {Name: "\xff"},
		"name too long":         {Name: strings.Repeat("x", maxString+1)},
		"description too long":  {Description: strings.Repeat("x", maxString+1)},
		"odd minimum block":     {MinBlock: 3},
		"large minimum block":   {MinBlock: 128 << 10},
		"size not in blocks":    {MinBlock: 512, Size: 513},
		"preferred below 512":   {PreferredBlock: 256},
		"preferred below min":   {MinBlock: 8192, PreferredBlock: 4096},
		"payload below block":   {MaxPayload: 512},
		"payload beyond ours":   {MaxPayload: maxDiscard + 1},
		"fast zero without any": {FastZero: true},
	} {
		if name != "no backend" {
			e.Backend = null{}
		}
		if s, err := NewServer([]Export{e}, Options{}); err == nil || s != nil {
			t.Errorf("%s: accepted", name)
		}
	}
	two := Export{Name: "a", Backend: null{}}
	if _, err := NewServer([]Export{two, two}, Options{}); err == nil {
		t.Error("two of a name: accepted")
	}
	if _, err := NewServer([]Export{{Size: math.MaxInt64, Backend: null{}}}, Options{}); err != nil {
		t.Errorf("largest export: %v", err)
	}
}

// Goal: what is advertised is what is declared, and nothing that changes data
// on a read-only export.
func TestExportFlags(t *testing.T) {
	const always = NBD_FLAG_HAS_FLAGS | NBD_FLAG_SEND_FLUSH | NBD_FLAG_SEND_FUA | NBD_FLAG_SEND_CACHE
	for _, tc := range []struct {
		e    Export
		want uint16
		t    terms
	}{
		{Export{}, always, terms{}},
		{Export{}, always | NBD_FLAG_SEND_DF, terms{structured: true, contexts: 1}},
		{Export{}, always | NBD_FLAG_SEND_DF, terms{extended: true}},
		{Export{}, always | NBD_FLAG_SEND_DF, terms{extended: true, contexts: 1, contextsFor: "other"}},
		{Export{}, always | NBD_FLAG_SEND_DF | NBD_FLAG_BLOCK_STATUS_PAYLOAD, terms{extended: true, contexts: 1}},
		{Export{Trim: true}, always | NBD_FLAG_SEND_TRIM, terms{}},
		{Export{Zero: true}, always | NBD_FLAG_SEND_WRITE_ZEROES, terms{}},
		{Export{Zero: true, FastZero: true}, always | NBD_FLAG_SEND_WRITE_ZEROES | NBD_FLAG_SEND_FAST_ZERO, terms{}},
		{Export{MultiConn: true}, always | NBD_FLAG_CAN_MULTI_CONN, terms{}},
		{Export{ReadOnly: true, Trim: true, Zero: true, FastZero: true, MultiConn: true}, always | NBD_FLAG_READ_ONLY | NBD_FLAG_CAN_MULTI_CONN, terms{}},
	} {
		if got := tc.e.flags(&tc.t); got != tc.want {
			t.Errorf("%+v: %#x, want %#x", tc.e, got, tc.want)
		}
	}
}

// null is a backend of nothing.
type null struct{}

func (null) ReadAt(p []byte, _ int64) (int, error) { return len(p), nil }
func (null) WriteGroup([]int64, [][]byte, []error) {}
func (null) ZeroAt(_, _ int64) error               { return nil }
func (null) TrimAt(_, _ int64) error               { return nil }
func (null) Flush() error                          { return nil }
func (null) Readable(_, _ int64) error             { return nil }
func (null) Extents(_, n int64, emit func(int64, uint8) bool) error {
	emit(n, 0)
	return nil
}
