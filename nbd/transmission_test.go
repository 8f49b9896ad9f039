package nbd_test

import (
	"bytes"
	"errors"
	"math"
	"slices"
	"syscall"
	"testing"

	"github.com/bttnbd/bttnbd/nbd"
	"github.com/bttnbd/bttnbd/nbd/nbdtest"
)

// Goal: each command does what it says, with FUA and without.
func TestCommands(t *testing.T) {
	m := nbdtest.NewMemory(mib)
	c := open(t, newServer(t, full(m, mib)))
	data := pattern(1, 5000)
	write := nbdtest.Write(1, 777, data)
	c.want(0, write, "write")
	if r := c.want(0, nbdtest.Read(2, 777, 5000), "read"); !bytes.Equal(r.Data, data) {
		t.Error("read differs from what was written")
	}
	for _, cmd := range []uint16{nbd.NBD_CMD_READ, nbd.NBD_CMD_FLUSH, nbd.NBD_CMD_TRIM, nbd.NBD_CMD_CACHE, nbd.NBD_CMD_WRITE_ZEROES} {
		r := nbdtest.Command(cmd, 3, 4096, 4096)
		r.Flags = nbd.NBD_CMD_FLAG_FUA
		c.want(0, r, "command with FUA")
	}
	write.Flags = nbd.NBD_CMD_FLAG_FUA
	c.want(0, write, "write with FUA")
	zero := nbdtest.Command(nbd.NBD_CMD_WRITE_ZEROES, 4, 800, 1000)
	zero.Flags = nbd.NBD_CMD_FLAG_NO_HOLE
	c.want(0, zero, "zeroes")
	c.want(0, nbdtest.Command(nbd.NBD_CMD_CACHE, 5, 0, mib), "cache")
	c.want(0, nbdtest.Command(nbd.NBD_CMD_TRIM, 6, 0, 100), "trim")
	clear(data[23:1023])
	if !bytes.Equal(m.Bytes()[777:5777], data) {
		t.Error("zeroes cleared something else")
	}
	// FUA costs a trim one Flush; everything else is durable anyway.
	if got, want := m.Calls(), (nbdtest.Calls{Flush: 2, Trim: 2, Zero: 2}); got != want {
		t.Errorf("calls %+v, want %+v", got, want)
	}
	if err := c.Disconnect(); err != nil {
		t.Error(err)
	}
	if err := c.end(); err != nil {
		t.Error(err)
	}
}

const looseSize = 64 * mib

// looseRows are requests where the document leaves room, and what is answered.
var looseRows = []struct {
	name   string
	export string
	cmd    uint16
	flags  uint16
	off    uint64
	n      uint32
	want   nbd.Errno
}{
	{"empty read", "", nbd.NBD_CMD_READ, 0, 0, 0, 0},
	{"empty write", "", nbd.NBD_CMD_WRITE, 0, 0, 0, 0},
	{"empty trim", "", nbd.NBD_CMD_TRIM, 0, 0, 0, 0},
	{"empty zeroes", "", nbd.NBD_CMD_WRITE_ZEROES, 0, 0, 0, 0},
	{"empty cache", "", nbd.NBD_CMD_CACHE, 0, 0, 0, 0},
	{"flush with offset and length", "", nbd.NBD_CMD_FLUSH, 0, 5, 7, 0},
	{"flush with FUA", "", nbd.NBD_CMD_FLUSH, 1, 0, 0, 0},
	{"read with FUA", "", nbd.NBD_CMD_READ, 1, 0, 512, 0},
	{"read past the end", "", nbd.NBD_CMD_READ, 0, looseSize - 1, 2, nbd.NBD_EINVAL},
	{"write past the end", "", nbd.NBD_CMD_WRITE, 0, looseSize - 1, 2, nbd.NBD_ENOSPC},
	{"large write past the end", "", nbd.NBD_CMD_WRITE, 0, looseSize - 1, mib, nbd.NBD_ENOSPC},
	{"trim past the end", "", nbd.NBD_CMD_TRIM, 0, looseSize - 1, 2, nbd.NBD_EINVAL},
	{"zeroes past the end", "", nbd.NBD_CMD_WRITE_ZEROES, 0, looseSize - 1, 2, nbd.NBD_ENOSPC},
	{"cache past the end", "", nbd.NBD_CMD_CACHE, 0, looseSize - 1, 2, nbd.NBD_EINVAL},
	{"read overflow", "", nbd.NBD_CMD_READ, 0, math.MaxUint64 - 511, 1024, nbd.NBD_EINVAL},
	{"write overflow", "", nbd.NBD_CMD_WRITE, 0, math.MaxUint64 - 511, 1024, nbd.NBD_ENOSPC},
	{"read of 32 MiB", "", nbd.NBD_CMD_READ, 0, 1, 32 * mib, 0},
	{"write of 32 MiB", "", nbd.NBD_CMD_WRITE, 0, 4095, 32 * mib, 0},
	{"read of 33 MiB", "", nbd.NBD_CMD_READ, 0, 0, 33 * mib, nbd.NBD_EINVAL},
	{"write of 33 MiB", "", nbd.NBD_CMD_WRITE, 0, 0, 33 * mib, nbd.NBD_EINVAL},
	{"write of 64 MiB", "", nbd.NBD_CMD_WRITE, 0, 0, 64 * mib, nbd.NBD_EINVAL},
	{"read with DF", "", nbd.NBD_CMD_READ, nbd.NBD_CMD_FLAG_DF, 0, 512, nbd.NBD_EINVAL},
	{"write with NO_HOLE", "", nbd.NBD_CMD_WRITE, nbd.NBD_CMD_FLAG_NO_HOLE, 0, 512, nbd.NBD_EINVAL},
	{"write with an unknown flag", "", nbd.NBD_CMD_WRITE, 1 << 9, 0, 512, nbd.NBD_EINVAL},
	{"fast zero unadvertised", "", nbd.NBD_CMD_WRITE_ZEROES, nbd.NBD_CMD_FLAG_FAST_ZERO, 0, 512, nbd.NBD_EINVAL},
	{"block status", "", nbd.NBD_CMD_BLOCK_STATUS, 0, 0, 512, nbd.NBD_EINVAL},
	{"unknown command", "", 4711, 0, 0, 512, nbd.NBD_EINVAL},
	{"read-only read", "ro", nbd.NBD_CMD_READ, 0, 0, 512, 0},
	{"read-only write", "ro", nbd.NBD_CMD_WRITE, 0, 0, 512, nbd.NBD_EPERM},
	{"read-only large write", "ro", nbd.NBD_CMD_WRITE, 0, 0, 2 * mib, nbd.NBD_EPERM},
	{"read-only trim", "ro", nbd.NBD_CMD_TRIM, 0, 0, 512, nbd.NBD_EPERM},
	{"read-only zeroes", "ro", nbd.NBD_CMD_WRITE_ZEROES, 0, 0, 512, nbd.NBD_EPERM},
}

// Goal: each row of the behaviour chosen where the document is loose, and the
// stream in step after each: a rejected WRITE's payload must be skipped.
func TestLooseEnds(t *testing.T) {
	m := nbdtest.NewMemory(looseSize)
	s := newServer(t,
		nbd.Export{Size: looseSize, Trim: true, Zero: true, Backend: m},
		nbd.Export{Name: "ro", Size: looseSize, ReadOnly: true, Backend: m})
	clients := map[string]*session{"": connect(t, s), "ro": connect(t, s)}
	for name, c := range clients {
		if _, err := c.Open(name); err != nil {
			t.Fatal(err)
		}
	}
	for _, tc := range looseRows {
		c := clients[tc.export]
		r := nbdtest.Request{Flags: tc.flags, Cmd: tc.cmd, Cookie: 0x1122334455667788, Offset: tc.off, Length: uint64(tc.n)}
		if tc.cmd == nbd.NBD_CMD_WRITE {
			r.Data = pattern(9, int(tc.n))
		}
		reply := c.want(tc.want, r, tc.name)
		if tc.want == 0 && tc.cmd == nbd.NBD_CMD_READ && !bytes.Equal(reply.Data, m.Bytes()[tc.off:][:tc.n]) {
			t.Errorf("%s: wrong data", tc.name)
		}
		if tc.want == 0 && tc.cmd == nbd.NBD_CMD_WRITE && !bytes.Equal(m.Bytes()[tc.off:][:tc.n], r.Data) {
			t.Errorf("%s: wrong contents", tc.name)
		}
		c.inStep(tc.name)
	}
}

// Goal: what makes the stream impossible to follow closes the connection, after
// the replies to what came before.
func TestTransmissionDrops(t *testing.T) {
	for name, in := range map[string][]byte{
		"bad magic":                make([]byte, 28),
		"payload beyond all sense": requests(nbdtest.Request{Cmd: nbd.NBD_CMD_WRITE, Length: 65 * mib}),
		"payload of 4 GiB":         requests(nbdtest.Request{Cmd: nbd.NBD_CMD_WRITE, Flags: 1 << 7, Length: math.MaxUint32}),
	} {
		c := open(t, newServer(t, full(nbdtest.NewMemory(mib), mib)))
		c.Write(append(requests(nbdtest.Read(5, 0, 3)), in...))
		if r, err := c.Recv(3); err != nil || r.Cookie != 5 || r.Err != 0 {
			t.Errorf("%s: the request before it got %+v, %v", name, r, err)
		}
		if _, err := c.Recv(0); err == nil {
			t.Errorf("%s: answered", name)
		}
		if err := c.end(); err == nil {
			t.Errorf("%s: ServeConn sees no error", name)
		}
	}
}

// Goal: WRITEs that arrive together reach the backend as one group, every other
// request divides them, and each keeps its cookie, its errno and its place.
func TestWriteGroups(t *testing.T) {
	m := nbdtest.NewMemory(mib)
	bad := &nbdtest.Faulty{Backend: m, Fault: func(op nbdtest.Op, off, _ int64) error {
		if off == 3000 {
			return syscall.EIO
		}
		return nil
	}}
	w := func(cookie, off uint64) nbdtest.Request {
		return nbdtest.Write(cookie, off, pattern(int(cookie), 1000))
	}
	script := func() *nbdtest.Script {
		return &nbdtest.Script{First: len(hello()), In: append(hello(), requests(
			w(1, 0), w(2, 1000), w(3, 2000), // a group of 3
			nbdtest.Read(4, 1000, 1000), // sees 2
			w(5, 0),                     // alone
			w(6, mib),                   // past the end
			w(7, 3000), w(8, 4000),      // a group of 2, of which one may fail
			nbdtest.Write(9, 0, nil), // empty
			w(10, 4000), w(11, 4000), // a group of 2: the later wins
			nbdtest.Command(nbd.NBD_CMD_FLUSH, 12, 0, 0),
			nbdtest.Read(13, 4000, 1000),
		)...)}
	}
	out := replies(t, run(t, newServer(t, full(m, mib)), script()), map[uint64]uint32{4: 1000, 13: 1000})
	if got, want := m.Groups(), []int{3, 1, 2, 2}; !slices.Equal(got, want) {
		t.Errorf("groups %v, want %v", got, want)
	}
	check := func(out []nbdtest.Reply, failing map[uint64]nbd.Errno) {
		t.Helper()
		for i, r := range out {
			if r.Cookie != uint64(i+1) || r.Err != failing[r.Cookie] {
				t.Errorf("reply %d: cookie %d, %v, want %v", i, r.Cookie, r.Err, failing[r.Cookie])
			}
		}
		if len(out) != 13 {
			t.Fatalf("%d replies, want 13", len(out))
		}
		if !bytes.Equal(out[3].Data, pattern(2, 1000)) || !bytes.Equal(out[12].Data, pattern(11, 1000)) {
			t.Error("a READ does not see the WRITE before it")
		}
	}
	check(out, map[uint64]nbd.Errno{6: nbd.NBD_ENOSPC})
	out = replies(t, run(t, newServer(t, full(bad, mib)), script()), map[uint64]uint32{4: 1000, 13: 1000})
	check(out, map[uint64]nbd.Errno{6: nbd.NBD_ENOSPC, 7: nbd.NBD_EIO})
}

// Goal: no group is larger than the backend was promised.
func TestWriteGroupLimit(t *testing.T) {
	m := nbdtest.NewMemory(mib)
	s := newServer(t, full(m, mib))
	in := hello()
	for i := range 1000 {
		in = nbdtest.Write(uint64(i), uint64(i), []byte{1}).Append(in)
	}
	run(t, s, &nbdtest.Script{First: len(hello()), In: in})
	if got, want := m.Groups(), []int{256, 256, 256, 232}; !slices.Equal(got, want) {
		t.Errorf("groups %v, want %v", got, want)
	}
}

// Goal: a READ too large for the reply buffer does not overtake the replies
// before it.
func TestLargeReadInOrder(t *testing.T) {
	for _, n := range []uint32{300 << 10, mib, 2 * mib} {
		in := append(hello(), requests(nbdtest.Read(1, 0, 10), nbdtest.Read(2, 0, n), nbdtest.Read(3, 0, 10))...)
		out := run(t, newServer(t, full(nbdtest.NewMemory(2*mib), 2*mib)), &nbdtest.Script{In: in})
		for i, r := range replies(t, out, map[uint64]uint32{1: 10, 2: n, 3: 10}) {
			if r.Cookie != uint64(i+1) || r.Err != 0 {
				t.Errorf("%d bytes: reply %d has cookie %d, %v", n, i, r.Cookie, r.Err)
			}
		}
	}
}

// Goal: the replies to requests that arrive together leave together.
func TestOneWrite(t *testing.T) {
	in, _ := mixed()
	script := &nbdtest.Script{In: in}
	run(t, newServer(t, full(nbdtest.NewMemory(mib), mib)), script)
	if script.Writes != 2 {
		t.Errorf("%d writes, want one for the greeting and one for the rest", script.Writes)
	}
}

// mixed is a session with every kind of request, and the READs in it.
func mixed() ([]byte, map[uint64]uint32) {
	return append(hello(), requests(
		nbdtest.Write(1, 10, pattern(1, 100)), nbdtest.Write(2, 50, pattern(2, 30)), nbdtest.Read(3, 0, 120),
		nbdtest.Write(4, mib, pattern(3, 40)), nbdtest.Command(nbd.NBD_CMD_TRIM, 5, 0, 10), nbdtest.Command(nbd.NBD_CMD_FLUSH, 6, 0, 0),
		nbdtest.Command(99, 7, 0, 10), nbdtest.Read(8, mib, 1), nbdtest.Write(9, 0, nil), nbdtest.Write(10, 60, pattern(4, 20)),
		nbdtest.Read(11, 55, 33), nbdtest.Command(nbd.NBD_CMD_DISC, 12, 0, 0),
	)...), map[uint64]uint32{3: 120, 11: 33}
}

// Goal: however the stream is cut into reads, the answer is the same.
func TestSplitAnywhere(t *testing.T) {
	in, reads := mixed()
	answer := func(script *nbdtest.Script) []byte {
		return run(t, newServer(t, full(nbdtest.NewMemory(mib), mib)), script)
	}
	whole := answer(&nbdtest.Script{In: in})
	if got := len(replies(t, whole, reads)); got != 11 {
		t.Fatalf("%d replies, want 11", got)
	}
	for i := 1; i < len(in); i++ {
		if got := answer(&nbdtest.Script{In: in, First: i}); !bytes.Equal(got, whole) {
			t.Fatalf("cut at byte %d of %d: another answer", i, len(in))
		}
	}
	for _, chunk := range []int{1, 2, 3, 7, 28, 64} {
		if got := answer(&nbdtest.Script{In: in, Chunk: chunk}); !bytes.Equal(got, whole) {
			t.Errorf("%d bytes at a time: another answer", chunk)
		}
	}
}

// Goal: streams many times the size of the buffers, with payloads around every
// limit of the buffers, come through whole.
func TestLongStreams(t *testing.T) {
	const size = 8 * mib
	for _, chunk := range []int{0, 1 << 16, 100003} {
		m := nbdtest.NewMemory(size)
		want := make([]byte, size)
		in, reads := hello(), map[uint64]uint32{}
		var wantReads [][]byte
		cookie := uint64(0)
		for _, n := range []int{1, 4096, 128 << 10, 256 << 10, 260<<10 - 28, 260<<10 - 16, 260<<10 - 15, 260 << 10, 260<<10 + 1, mib - 1, mib, mib + 1, 3*mib + 5} {
			for _, off := range []int{0, 4095, mib - 7} {
				p := pattern(int(cookie), n)
				copy(want[off:], p)
				in = nbdtest.Write(cookie, uint64(off), p).Append(in)
				in = nbdtest.Read(cookie+1, uint64(off/2), uint32(n)).Append(in)
				reads[cookie+1] = uint32(n)
				wantReads = append(wantReads, bytes.Clone(want[off/2:off/2+n]))
				cookie += 2
			}
		}
		out := replies(t, run(t, newServer(t, full(m, size)), &nbdtest.Script{In: in, Chunk: chunk}), reads)
		if len(out) != int(cookie) {
			t.Fatalf("%d replies, want %d", len(out), cookie)
		}
		for i, r := range out {
			if r.Err != 0 || r.Cookie != uint64(i) {
				t.Fatalf("reply %d: cookie %d, %v", i, r.Cookie, r.Err)
			}
			if i%2 == 1 && !bytes.Equal(r.Data, wantReads[i/2]) {
				t.Fatalf("chunks of %d: read %d of %d bytes differs", chunk, i, len(r.Data))
			}
		}
		if !bytes.Equal(m.Bytes(), want) {
			t.Errorf("chunks of %d: contents differ", chunk)
		}
	}
}

// Goal: the errors of a backend arrive as errnos of their requests, for every
// command, and leave the stream in step.
func TestBackendErrors(t *testing.T) {
	var fault error
	var at int64 // operations that reach beyond fail
	b := &nbdtest.Faulty{Backend: nbdtest.NewMemory(8 * mib), Fault: func(op nbdtest.Op, off, n int64) error {
		if off+n > at || op == nbdtest.OpFlush {
			return fault
		}
		return nil
	}}
	c := open(t, newServer(t, full(b, 8*mib)))
	fast := nbdtest.Command(nbd.NBD_CMD_WRITE_ZEROES, 1, 0, 512)
	fast.Flags = nbd.NBD_CMD_FLAG_FAST_ZERO
	for _, tc := range []struct {
		name string
		err  error
		at   int64
		req  nbdtest.Request
		want nbd.Errno
	}{
		{"read", syscall.EIO, 0, nbdtest.Read(1, 0, 512), nbd.NBD_EIO},
		{"read, no errno", errors.New("?"), 0, nbdtest.Read(1, 0, 512), nbd.NBD_EIO},
		{"read of 1 MiB", syscall.EIO, 0, nbdtest.Read(1, 0, mib), nbd.NBD_EIO},
		{"read of 4 MiB, unreadable from 0", syscall.EIO, 0, nbdtest.Read(1, 0, 4*mib), nbd.NBD_EIO},
		{"read of 4 MiB, unreadable in the third", syscall.EIO, 2 * mib, nbdtest.Read(1, 0, 4*mib), nbd.NBD_EIO},
		{"write", syscall.ENOSPC, 0, nbdtest.Write(1, 0, make([]byte, 512)), nbd.NBD_ENOSPC},
		{"write of 4 MiB, first piece", syscall.EIO, 0, nbdtest.Write(1, 0, make([]byte, 4*mib)), nbd.NBD_EIO},
		{"write of 4 MiB, third piece", syscall.EDQUOT, 2 * mib, nbdtest.Write(1, 0, make([]byte, 4*mib)), nbd.NBD_ENOSPC},
		{"write of 4 MiB, last piece", syscall.EROFS, 3 * mib, nbdtest.Write(1, 0, make([]byte, 4*mib)), nbd.NBD_EPERM},
		{"flush", syscall.ENOMEM, 0, nbdtest.Command(nbd.NBD_CMD_FLUSH, 1, 0, 0), nbd.NBD_ENOMEM},
		{"trim", syscall.ESHUTDOWN, 0, nbdtest.Command(nbd.NBD_CMD_TRIM, 1, 0, 512), nbd.NBD_ESHUTDOWN},
		{"zeroes", syscall.ENOTSUP, 0, nbdtest.Command(nbd.NBD_CMD_WRITE_ZEROES, 1, 0, 512), nbd.NBD_EINVAL},
		{"fast zeroes", syscall.ENOTSUP, 0, fast, nbd.NBD_ENOTSUP},
	} {
		fault, at = tc.err, tc.at
		c.want(tc.want, tc.req, tc.name)
		fault = nil
		c.inStep(tc.name)
	}
}

// Goal: an error found behind the header of a reply closes the connection, with
// nothing after the data that was good; the client must not take it for whole.
func TestErrorMidRead(t *testing.T) {
	b := &nbdtest.Faulty{Backend: nbdtest.NewMemory(8 * mib), Fault: func(op nbdtest.Op, off, _ int64) error {
		if op == nbdtest.OpRead && off >= 2*mib {
			return syscall.EIO
		}
		return nil
	}}
	in := append(hello(), requests(nbdtest.Read(1, 0, 10), nbdtest.Read(2, 0, 4*mib), nbdtest.Read(3, 0, 10))...)
	script := &nbdtest.Script{In: in}
	err := newServer(t, full(b, 8*mib)).ServeConn(t.Context(), script)
	if !errors.Is(err, syscall.EIO) {
		t.Errorf("error %v", err)
	}
	before := len(run(t, newServer(t, full(b, 8*mib)), &nbdtest.Script{In: hello()}))
	if got, want := script.Out.Len()-before, 16+10+16+2*mib; got != want {
		t.Errorf("%d bytes were sent, want %d", got, want)
	}
}

// Goal: a short read without an error is an error, as io.ReaderAt wants it.
func TestShortRead(t *testing.T) {
	c := open(t, newServer(t, full(short{nbdtest.NewMemory(mib)}, mib)))
	c.want(nbd.NBD_EIO, nbdtest.Read(1, 0, 512), "short read")
	c.inStep("short read")
}

type short struct{ nbd.Backend }

func (short) ReadAt(p []byte, _ int64) (int, error) { return len(p) - 1, nil }

// replies parses what the server sent behind hello; reads tells the lengths of
// the READs by cookie.
func replies(t testing.TB, out []byte, reads map[uint64]uint32) []nbdtest.Reply {
	t.Helper()
	c := &nbdtest.Client{Conn: &nbdtest.Script{In: out}}
	if _, err := c.Open(""); err != nil {
		t.Fatal(err)
	}
	var all []nbdtest.Reply
	for s := c.Conn.(*nbdtest.Script); len(s.In) > 0; {
		var n uint32
		if len(s.In) >= 16 {
			n = reads[be.Uint64(s.In[8:])]
		}
		r, err := c.Recv(n)
		if err != nil {
			t.Fatalf("reply %d: %v", len(all), err)
		}
		all = append(all, r)
	}
	return all
}
