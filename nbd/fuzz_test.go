package nbd_test

import (
	"bytes"
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
		case r.Type != nbd.NBD_REP_SERVER && r.Type != nbd.NBD_REP_INFO:
			t.Fatalf("reply type %d", r.Type)
		}
	}
}

// fuzzSize is the export of FuzzTransmission: small, so that ranges hit its
// end, and larger than the server's buffers, so that all paths are taken.
const fuzzSize = 2 * mib

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
	write := func(off uint64, n uint32) []byte {
		return requests(nbdtest.Request{Cmd: nbd.NBD_CMD_WRITE, Cookie: 8, Offset: off, Length: n})
	}
	f.Add(in, uint32(0), []byte{}, uint16(0))
	f.Add(in, uint32(0), in, uint16(29))
	f.Add(requests(nbdtest.Read(1, 0, mib+9), nbdtest.Read(2, 1, 300<<10), nbdtest.Read(3, math.MaxUint64, 2)), uint32(0), in, uint16(5))
	f.Add(write(0, 300<<10), uint32(300<<10), requests(nbdtest.Read(3, 5, 9)), uint16(1000))
	f.Add(write(fuzzSize, 9), uint32(9), in, uint16(0))
	f.Add(write(5, mib+70000), uint32(mib+70000), requests(nbdtest.Read(3, mib-4, 9)), uint16(0))
	f.Add(write(4096, mib+70000), uint32(mib), []byte{}, uint16(0))
	f.Add(write(0, math.MaxUint32), uint32(0), in, uint16(0))
	f.Add(requests(nbdtest.Request{Cmd: nbd.NBD_CMD_WRITE_ZEROES, Flags: 0x13, Length: 4096}, nbdtest.Request{Cmd: nbd.NBD_CMD_TRIM, Flags: 4, Length: 1}), uint32(0), in, uint16(0))
	f.Add(requests(nbdtest.Read(7, 0, 1)), uint32(40), in, uint16(0))
	filler := pattern(3, fuzzSize)

	f.Fuzz(func(t *testing.T, in []byte, pad uint32, tail []byte, chunk uint16) {
		in = bytes.Join([][]byte{in, filler[:pad%fuzzSize], tail}, nil)
		m := nbdtest.NewMemory(fuzzSize)
		s := newServer(t, full(m, fuzzSize))
		script := &nbdtest.Script{In: append(hello(), in...), Chunk: int(chunk)}
		got := run(t, s, script)
		got = got[len(run(t, s, &nbdtest.Script{In: hello()})):]

		model := model{mem: make([]byte, fuzzSize)}
		model.play(in)
		if !bytes.Equal(got, model.out) {
			t.Errorf("answered\n% x\nwant\n% x", head(got), head(model.out))
		}
		if !bytes.Equal(m.Bytes(), model.mem) {
			t.Error("contents differ")
		}
	})
}

// head shortens what is printed.
func head(b []byte) []byte { return b[:min(len(b), 400)] }

// model is an export that offers everything, one request at a time.
type model struct {
	mem, out []byte
}

// play answers in up to its end, or to where the connection has to go.
func (m *model) play(in []byte) {
	for len(in) >= 28 && be.Uint32(in) == nbd.NBD_REQUEST_MAGIC {
		r := nbdtest.Request{Flags: be.Uint16(in[4:]), Cmd: be.Uint16(in[6:]), Cookie: be.Uint64(in[8:]), Offset: be.Uint64(in[16:]), Length: be.Uint32(in[24:])}
		in = in[28:]
		if r.Cmd == nbd.NBD_CMD_DISC {
			return
		}
		if r.Cmd == nbd.NBD_CMD_WRITE {
			n := min(uint64(r.Length), uint64(len(in)))
			r.Data, in = in[:n], in[n:]
		}
		if !m.request(r) {
			return
		}
	}
}

// request answers r; false means that the connection has to go. A large WRITE
// cut off by the end of the stream may have left whole pieces behind.
func (m *model) request(r nbdtest.Request) bool {
	e := m.judge(r)
	if r.Cmd == nbd.NBD_CMD_WRITE && uint32(len(r.Data)) < r.Length {
		if e == 0 && r.Length > 260<<10 {
			m.pieces(r)
		}
		return false
	}
	m.out = be.AppendUint32(m.out, nbd.NBD_SIMPLE_REPLY_MAGIC)
	m.out = be.AppendUint32(m.out, uint32(e))
	m.out = be.AppendUint64(m.out, r.Cookie)
	if e != 0 {
		return true
	}
	switch r.Cmd {
	case nbd.NBD_CMD_READ:
		m.out = append(m.out, m.mem[r.Offset:][:r.Length]...)
	case nbd.NBD_CMD_WRITE:
		copy(m.mem[r.Offset:], r.Data)
	case nbd.NBD_CMD_TRIM, nbd.NBD_CMD_WRITE_ZEROES:
		clear(m.mem[r.Offset:][:r.Length])
	}
	return true
}

// pieces writes what a server that works in pieces of 1 MiB of the export has
// when the stream ends.
func (m *model) pieces(r nbdtest.Request) {
	if r.Length <= mib {
		return
	}
	for end := r.Offset/mib*mib + mib; end-r.Offset <= uint64(len(r.Data)); end += mib {
		copy(m.mem[r.Offset:end], r.Data)
	}
}

// judge is the error the document, or the choice where it is loose, wants.
func (m *model) judge(r nbdtest.Request) nbd.Errno {
	legal := uint16(nbd.NBD_CMD_FLAG_FUA)
	if r.Cmd == nbd.NBD_CMD_WRITE_ZEROES {
		legal |= nbd.NBD_CMD_FLAG_NO_HOLE | nbd.NBD_CMD_FLAG_FAST_ZERO
	}
	switch {
	case r.Cmd > nbd.NBD_CMD_WRITE_ZEROES, r.Flags&^legal != 0:
		return nbd.NBD_EINVAL
	case r.Cmd == nbd.NBD_CMD_FLUSH:
		return 0
	}
	inside := r.Offset <= fuzzSize && r.Offset+uint64(r.Length) <= fuzzSize
	switch {
	case inside:
		return 0
	case r.Cmd == nbd.NBD_CMD_WRITE, r.Cmd == nbd.NBD_CMD_WRITE_ZEROES:
		return nbd.NBD_ENOSPC
	}
	return nbd.NBD_EINVAL
}
