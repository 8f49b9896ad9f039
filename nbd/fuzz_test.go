package nbd_test

import (
	"bytes"
	"fmt"
	"math"
	"testing"

	"github.com/bttnbd/bttnbd/nbd"
	"github.com/bttnbd/bttnbd/nbd/nbdtest"
)

// FuzzHandshake throws bytes at a server from the greeting on. Goal: it does
// not panic, and every option it understands to be one is answered by a
// sequence of well-formed replies of which only the last is an ACK or error.
func FuzzHandshake(f *testing.F) {
	flags := be.AppendUint32(nil, bothFlags)
	join := func(parts ...[]byte) []byte { return bytes.Join(parts, nil) }
	f.Add([]byte{})
	f.Add(hello())
	f.Add(join(flags, nbdtest.Option(nbd.NBD_OPT_LIST, nil), nbdtest.Option(nbd.NBD_OPT_ABORT, nil)))
	f.Add(join(flags, nbdtest.Option(nbd.NBD_OPT_INFO, nbdtest.InfoData("a", 1, 2, 3)), nbdtest.Option(77, []byte("?"))))
	f.Add(join(flags, nbdtest.Option(nbd.NBD_OPT_GO, []byte{0xff, 0xff, 0xff, 0xff}), nbdtest.Option(nbd.NBD_OPT_STARTTLS, nil)))
	f.Add(join(make([]byte, 4), nbdtest.Option(nbd.NBD_OPT_EXPORT_NAME, []byte("a")), requests(nbdtest.Read(1, 0, 10))))
	f.Add(be.AppendUint32(nil, 8))
	f.Add(greeting(structured))
	f.Add(greeting(extended))
	f.Add(join(flags, nbdtest.Option(nbd.NBD_OPT_LIST_META_CONTEXT, nbdtest.MetaData("a")), nbdtest.Option(nbd.NBD_OPT_LIST_META_CONTEXT, nbdtest.MetaData("a", "base:", "x-btt:", "qemu:dirty")), nbdtest.Option(nbd.NBD_OPT_EXTENDED_HEADERS, nil), nbdtest.Option(nbd.NBD_OPT_STRUCTURED_REPLY, nil)))
	s := threeExports(f)

	f.Fuzz(func(t *testing.T, in []byte) {
		out := run(t, s, &nbdtest.Script{In: bytes.Clone(in)})
		answer := &nbdtest.Script{In: out}
		c := &nbdtest.Client{Conn: answer}
		if _, err := c.Greet(0); err != nil {
			t.Fatal(err)
		}
		if len(in) < 4 || be.Uint32(in)&^bothFlags != 0 {
			in = nil
		} else {
			in = in[4:]
		}
		for len(in) >= 16 && be.Uint64(in) == nbd.IHAVEOPT {
			option, length := be.Uint32(in[8:]), be.Uint32(in[12:])
			if uint64(length) > uint64(len(in)-16) {
				break
			}
			in = in[16+length:]
			if option == nbd.NBD_OPT_EXPORT_NAME {
				return // no framing to check: transmission or the end
			}
			if expectReplies(t, c, option) && option == nbd.NBD_OPT_GO {
				return // in transmission, which is FuzzTransmission's
			}
			if option == nbd.NBD_OPT_ABORT {
				break
			}
		}
		if len(answer.In) > 0 {
			t.Errorf("%d bytes too many: % x", len(answer.In), answer.In)
		}
	})
}

// expectReplies receives all replies to option and says whether they end in ACK.
func expectReplies(t *testing.T, c *nbdtest.Client, option uint32) bool {
	for {
		r, err := c.RecvOption()
		if err != nil {
			t.Fatalf("reply to option %d: %v", option, err)
		}
		switch {
		case r.Option != option:
			t.Fatalf("reply to option %d after option %d", r.Option, option)
		case r.Type == nbd.NBD_REP_ACK, r.IsError():
			return r.Type == nbd.NBD_REP_ACK
		case r.Type != nbd.NBD_REP_SERVER && r.Type != nbd.NBD_REP_INFO && r.Type != nbd.NBD_REP_META_CONTEXT:
			t.Fatalf("reply type %d", r.Type)
		}
	}
}

// fuzzSize is the export of FuzzTransmission: small, so that ranges hit its
// end, and larger than the server's buffers, so that all paths are taken.
const fuzzSize = 2 * mib

// The forms that transmission can take.
const (
	simple = iota
	structured
	extended
	forms
)

// greeting is the client's side of a handshake into each form, with all
// metadata contexts selected.
func greeting(form int) []byte {
	b := be.AppendUint32(nil, bothFlags)
	if form != simple {
		b = append(b, nbdtest.Option([]uint32{structured: nbd.NBD_OPT_STRUCTURED_REPLY, extended: nbd.NBD_OPT_EXTENDED_HEADERS}[form], nil)...)
		b = append(b, nbdtest.Option(nbd.NBD_OPT_SET_META_CONTEXT, nbdtest.MetaData("", "base:allocation", "x-btt:error"))...)
	}
	return append(b, nbdtest.Option(nbd.NBD_OPT_GO, nbdtest.InfoData(""))...)
}

// FuzzTransmission throws bytes at a server in transmission, cut into reads
// anyhow, and compares all it answers and all it leaves in the backend with a
// model that knows the protocol and nothing of buffers and groups. Between the
// bytes of in and those of tail the client sends pad more, so that small inputs
// make large payloads. An input takes about a millisecond, so run it with
// -fuzzminimizetime=1s: by default the fuzzer spends a minute on making each
// find smaller, and reports no progress meanwhile.
func FuzzTransmission(f *testing.F) {
	in, _ := mixed()
	in = in[len(hello()):]
	write := func(off, n uint64) []byte {
		return requests(nbdtest.Request{Cmd: nbd.NBD_CMD_WRITE, Cookie: 8, Offset: off, Length: n})
	}
	var ext []byte
	for _, r := range chunkRequests() {
		ext = r.AppendExtended(ext)
	}
	for form := range byte(forms) {
		f.Add(form, ext, uint32(0), []byte{}, uint16(0))
		f.Add(form, requests(chunkRequests()...), uint32(0), in, uint16(7))
		f.Add(form, in, uint32(0), []byte{}, uint16(0))
		f.Add(form, in, uint32(0), in, uint16(29))
		f.Add(form, requests(nbdtest.Read(1, 0, mib+9), nbdtest.Read(2, 1, 300<<10), nbdtest.Read(3, math.MaxUint64, 2)), uint32(0), in, uint16(5))
		f.Add(form, write(0, 300<<10), uint32(300<<10), requests(nbdtest.Read(3, 5, 9)), uint16(1000))
		f.Add(form, write(fuzzSize, 9), uint32(9), in, uint16(0))
		f.Add(form, write(5, mib+70000), uint32(mib+70000), requests(nbdtest.Read(3, mib-4, 9)), uint16(0))
		f.Add(form, write(4096, mib+70000), uint32(mib), []byte{}, uint16(0))
		f.Add(form, write(0, math.MaxUint32), uint32(0), in, uint16(0))
		f.Add(form, requests(nbdtest.Request{Cmd: nbd.NBD_CMD_WRITE_ZEROES, Flags: 0x13, Length: 4096}, nbdtest.Request{Cmd: nbd.NBD_CMD_TRIM, Flags: 4, Length: 1}), uint32(0), in, uint16(0))
		f.Add(form, requests(nbdtest.Read(7, 0, 1)), uint32(40), in, uint16(0))
	}
	filler := pattern(3, fuzzSize)

	f.Fuzz(func(t *testing.T, form byte, in []byte, pad uint32, tail []byte, chunk uint16) {
		form %= forms
		in = bytes.Join([][]byte{in, filler[:pad%fuzzSize], tail}, nil)
		m := nbdtest.NewMemory(fuzzSize)
		s := newServer(t, full(m, fuzzSize))
		got := run(t, s, &nbdtest.Script{In: append(greeting(int(form)), in...), Chunk: int(chunk)})
		got = got[len(run(t, s, &nbdtest.Script{In: greeting(int(form))})):]

		compare(t, int(form), in, got, m, false)
	})
}

// compare fails unless got is what the model answers to in, and m holds what it
// leaves. A connection that broke may have ended earlier than in did.
func compare(t *testing.T, form int, in, got []byte, m *nbdtest.Memory, broke bool) {
	model := newModel(form, fuzzSize)
	model.play(in)
	answers := &nbdtest.Script{In: got}
	c := &nbdtest.Client{Conn: answers, Structured: form == structured, Extended: form == extended}
	for i, want := range model.want {
		a, err := c.Answer(want.Request)
		if err != nil && broke {
			return
		}
		if err != nil {
			t.Fatalf("answer %d, to %+v: %v", i, headOf(want.Request), err)
		}
		if a.Err != want.err || want.err == 0 && !bytes.Equal(a.Data, want.data) {
			t.Fatalf("answer %d, to %+v: %v, want %v, or other data", i, headOf(want.Request), a.Err, want.err)
		}
		if err := truthful(want, a); err != nil {
			t.Fatalf("answer %d, to %+v: %v", i, headOf(want.Request), err)
		}
	}
	if len(answers.In) > 0 {
		t.Errorf("%d bytes too many", len(answers.In))
	}
	if !bytes.Equal(m.Bytes(), model.mem) {
		t.Error("contents differ")
	}
}

// chunkRequests are requests that matter in chunks, as they look with extended
// headers.
func chunkRequests() []nbdtest.Request {
	status := nbdtest.Command(nbd.NBD_CMD_BLOCK_STATUS, 1, 100, mib)
	one, filter := status, status
	one.Flags = nbd.NBD_CMD_FLAG_REQ_ONE
	filter.Flags, filter.Data = nbd.NBD_CMD_FLAG_PAYLOAD_LEN, statusFilter(4096, 2)
	filter.Length = uint64(len(filter.Data))
	df := nbdtest.Read(2, 0, 9000)
	df.Flags = nbd.NBD_CMD_FLAG_DF
	stray := nbdtest.Command(nbd.NBD_CMD_TRIM, 3, 0, 5)
	stray.Flags, stray.Data = nbd.NBD_CMD_FLAG_PAYLOAD_LEN, []byte("stray")
	return []nbdtest.Request{
		nbdtest.Write(4, 9000, pattern(1, 300)).Extend(), nbdtest.Read(5, 0, 20000), df, status, one, filter, stray,
		nbdtest.Command(nbd.NBD_CMD_WRITE_ZEROES, 6, 0, 1<<40), nbdtest.Read(7, 0, 0),
	}
}

// statusFilter is the payload of a BLOCK_STATUS.
func statusFilter(length uint64, ids ...uint32) []byte {
	b := be.AppendUint64(nil, length)
	for _, id := range ids {
		b = be.AppendUint32(b, id)
	}
	return b
}

// headOf is r without its payload, for messages.
func headOf(r nbdtest.Request) nbdtest.Request {
	r.Data = nil
	return r
}

// wanted is a request, and what must come of it.
type wanted struct {
	nbdtest.Request
	err  nbd.Errno
	data []byte // of a READ
	mem  []byte // of a BLOCK_STATUS, what the range holds
	end  int    // of it in the stream
}

// truthful checks a block status against the bytes of the range.
func truthful(want wanted, a nbdtest.Answer) error {
	if want.Cmd != nbd.NBD_CMD_BLOCK_STATUS || want.err != 0 {
		return nil
	}
	off := uint64(0)
	for _, e := range a.Status[1] {
		if e.Flags&nbd.NBD_STATE_ZERO != 0 && len(bytes.Trim(want.mem[off:off+e.Length], "\x00")) > 0 {
			return fmt.Errorf("%d bytes at %d of the range are told to be zeros", e.Length, off)
		}
		off += e.Length
	}
	return nil
}

// model is an export that offers everything, one request at a time.
type model struct {
	form     int
	contexts bool // selected, in a form that has them
	mem      []byte
	want     []wanted

	size           uint64 // of the export, until …
	growsAt, grown int    // … so much of the stream has been read, when grown is not 0

	buffer, piece uint64 // what of a WRITE is lost or not when the stream ends in it
	pos           int    // in the stream
}

func newModel(form int, size uint64) *model {
	return &model{form: form, contexts: form != simple, mem: make([]byte, fuzzSize), size: size, buffer: 260 << 10, piece: mib}
}

// play answers in up to its end, or to where the connection has to go.
func (m *model) play(in []byte) {
	length := len(in)
	for {
		var r nbdtest.Request
		switch {
		case m.form != extended && len(in) >= 28 && be.Uint32(in) == nbd.NBD_REQUEST_MAGIC:
			r.Length = uint64(be.Uint32(in[24:]))
		case m.form == extended && len(in) >= 32 && be.Uint32(in) == nbd.NBD_EXTENDED_REQUEST_MAGIC:
			r.Length = be.Uint64(in[24:])
		default:
			return
		}
		r.Flags, r.Cmd, r.Cookie, r.Offset = be.Uint16(in[4:]), be.Uint16(in[6:]), be.Uint64(in[8:]), be.Uint64(in[16:])
		in = in[[]int{28, 28, 32}[m.form]:]
		if m.grown != 0 && length-len(in) > m.growsAt {
			m.size = uint64(m.grown)
		}
		if r.Cmd == nbd.NBD_CMD_DISC {
			return
		}
		payload := m.payload(r)
		n := min(payload, uint64(len(in)))
		r.Data, in = in[:n], in[n:]
		m.pos = length - len(in)
		if !m.request(r, payload) {
			return
		}
	}
}

// payload is how much follows the header of r.
func (m *model) payload(r nbdtest.Request) uint64 {
	if r.Cmd == nbd.NBD_CMD_WRITE || m.form == extended && r.Flags&nbd.NBD_CMD_FLAG_PAYLOAD_LEN != 0 {
		return r.Length
	}
	return 0
}

// request answers r; false means that the connection has to go. A large WRITE
// cut off by the end of the stream may have left whole pieces behind.
func (m *model) request(r nbdtest.Request, payload uint64) bool {
	e := m.judge(r)
	if uint64(len(r.Data)) < payload {
		if r.Cmd == nbd.NBD_CMD_WRITE && e == 0 && r.Length > m.buffer {
			m.pieces(r)
		}
		return false
	}
	w := wanted{Request: r, err: e, end: m.pos}
	if e != 0 {
		m.want = append(m.want, w)
		return true
	}
	switch r.Cmd {
	case nbd.NBD_CMD_READ:
		w.data = bytes.Clone(m.mem[r.Offset:][:r.Length])
	case nbd.NBD_CMD_BLOCK_STATUS:
		w.mem = bytes.Clone(m.mem[r.Offset:][:effect(r)])
	case nbd.NBD_CMD_WRITE:
		copy(m.mem[r.Offset:], r.Data)
	case nbd.NBD_CMD_TRIM, nbd.NBD_CMD_WRITE_ZEROES:
		clear(m.mem[r.Offset:][:r.Length])
	}
	m.want = append(m.want, w)
	return true
}

// pieces writes what a server that works in pieces of the export has when the
// stream ends.
func (m *model) pieces(r nbdtest.Request) {
	if r.Length <= m.piece {
		return
	}
	for end := r.Offset/m.piece*m.piece + m.piece; end-r.Offset <= uint64(len(r.Data)); end += m.piece {
		copy(m.mem[r.Offset:end], r.Data)
	}
}

// effect is the length of the range of r, which for a BLOCK_STATUS with a payload
// stands in that.
func effect(r nbdtest.Request) uint64 {
	if r.Cmd == nbd.NBD_CMD_BLOCK_STATUS && r.Flags&nbd.NBD_CMD_FLAG_PAYLOAD_LEN != 0 {
		if len(r.Data) < 8 {
			return 0
		}
		return be.Uint64(r.Data)
	}
	return r.Length
}

// legal are the flags that r may carry.
func (m *model) legal(r nbdtest.Request) uint16 {
	legal := uint16(nbd.NBD_CMD_FLAG_FUA)
	switch {
	case r.Cmd == nbd.NBD_CMD_WRITE_ZEROES:
		legal |= nbd.NBD_CMD_FLAG_NO_HOLE | nbd.NBD_CMD_FLAG_FAST_ZERO
	case r.Cmd == nbd.NBD_CMD_READ && m.form != simple:
		legal |= nbd.NBD_CMD_FLAG_DF
	case r.Cmd == nbd.NBD_CMD_BLOCK_STATUS:
		legal |= nbd.NBD_CMD_FLAG_REQ_ONE
	}
	if m.form == extended && (r.Cmd == nbd.NBD_CMD_WRITE || r.Cmd == nbd.NBD_CMD_BLOCK_STATUS) {
		legal |= nbd.NBD_CMD_FLAG_PAYLOAD_LEN
	}
	return legal
}

// judge is the error the document, or the choice where it is loose, wants.
func (m *model) judge(r nbdtest.Request) nbd.Errno {
	withLen := r.Flags&nbd.NBD_CMD_FLAG_PAYLOAD_LEN != 0
	status := r.Cmd == nbd.NBD_CMD_BLOCK_STATUS
	switch {
	case r.Cmd > nbd.NBD_CMD_BLOCK_STATUS, r.Flags&^m.legal(r) != 0:
		return nbd.NBD_EINVAL
	case r.Cmd == nbd.NBD_CMD_FLUSH:
		return 0
	case status && (!m.contexts || effect(r) == 0 || withLen && !goodFilter(r.Data)):
		return nbd.NBD_EINVAL
	case r.Offset <= m.size && effect(r) <= m.size-r.Offset:
		return 0
	case r.Cmd == nbd.NBD_CMD_WRITE, r.Cmd == nbd.NBD_CMD_WRITE_ZEROES:
		return nbd.NBD_ENOSPC
	}
	return nbd.NBD_EINVAL
}

// goodFilter says whether b names contexts 1 and 2, or one of them.
func goodFilter(b []byte) bool {
	switch len(b) {
	case 12:
		id := be.Uint32(b[8:])
		return id == 1 || id == 2
	case 16:
		one, two := be.Uint32(b[8:]), be.Uint32(b[12:])
		return one == 1 && two == 2 || one == 2 && two == 1
	}
	return false
}
