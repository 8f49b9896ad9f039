package nbd_test

import (
	"bytes"
	"context"
	"io"
	"net"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/bttnbd/bttnbd/nbd"
	"github.com/bttnbd/bttnbd/nbd/nbdtest"
)

// threeExports is the default export, one with everything and one read-only.
func threeExports(t testing.TB) *nbd.Server {
	b := nbdtest.NewMemory(mib)
	return newServer(t,
		full(b, mib),
		nbd.Export{Name: "b", Description: "the second", Size: mib, MinBlock: 512, PreferredBlock: 8192, MaxPayload: mib, Backend: b},
		nbd.Export{Name: "a", Size: 1000, ReadOnly: true, Backend: b})
}

var longName = strings.Repeat("n", 5000)

// optionRows are options and the types of the replies they deserve.
var optionRows = []struct {
	name   string
	option uint32
	data   []byte
	want   []uint32 // reply types
}{
	{"list", nbd.NBD_OPT_LIST, nil, []uint32{nbd.NBD_REP_SERVER, nbd.NBD_REP_SERVER, nbd.NBD_REP_SERVER, nbd.NBD_REP_ACK}},
	{"list with data", nbd.NBD_OPT_LIST, []byte("x"), []uint32{nbd.NBD_REP_ERR_INVALID}},
	{"list with much data", nbd.NBD_OPT_LIST, make([]byte, mib), []uint32{nbd.NBD_REP_ERR_INVALID}},
	{"info", nbd.NBD_OPT_INFO, nbdtest.InfoData(""), []uint32{nbd.NBD_REP_INFO, nbd.NBD_REP_INFO, nbd.NBD_REP_ACK}},
	{"info with wishes", nbd.NBD_OPT_INFO, nbdtest.InfoData("b", 3, 2, 1, 0), []uint32{nbd.NBD_REP_INFO, nbd.NBD_REP_INFO, nbd.NBD_REP_INFO, nbd.NBD_REP_INFO, nbd.NBD_REP_ACK}},
	{"info with unknown wishes", nbd.NBD_OPT_INFO, nbdtest.InfoData("a", 77, 0xffff), []uint32{nbd.NBD_REP_INFO, nbd.NBD_REP_INFO, nbd.NBD_REP_ACK}},
	{"info with all wishes", nbd.NBD_OPT_INFO, nbdtest.InfoData("a", make([]uint16, 0xffff)...), []uint32{nbd.NBD_REP_INFO, nbd.NBD_REP_INFO, nbd.NBD_REP_ACK}},
	{"info of nothing", nbd.NBD_OPT_INFO, nbdtest.InfoData("c"), []uint32{nbd.NBD_REP_ERR_UNKNOWN}},
	{"go to nothing", nbd.NBD_OPT_GO, nbdtest.InfoData("c"), []uint32{nbd.NBD_REP_ERR_UNKNOWN}},
	{"go to the longest name", nbd.NBD_OPT_GO, nbdtest.InfoData(longName[:4096]), []uint32{nbd.NBD_REP_ERR_UNKNOWN}},
	{"go to a longer one", nbd.NBD_OPT_GO, nbdtest.InfoData(longName[:4097]), []uint32{nbd.NBD_REP_ERR_INVALID}},
	{"go to a far longer one", nbd.NBD_OPT_GO, nbdtest.InfoData(strings.Repeat("n", mib)), []uint32{nbd.NBD_REP_ERR_INVALID}},
	{"go to a NUL", nbd.NBD_OPT_GO, nbdtest.InfoData("a\x00"), []uint32{nbd.NBD_REP_ERR_INVALID}},
	{"go to no UTF-8", nbd.NBD_OPT_GO, nbdtest.InfoData("\xff"), []uint32{nbd.NBD_REP_ERR_INVALID}},
	{"go with nothing", nbd.NBD_OPT_GO, nil, []uint32{nbd.NBD_REP_ERR_INVALID}},
	{"go cut in the name's length", nbd.NBD_OPT_GO, make([]byte, 3), []uint32{nbd.NBD_REP_ERR_INVALID}},
	{"go cut in the name", nbd.NBD_OPT_GO, []byte{0, 0, 0, 9, 'a', 0, 0}, []uint32{nbd.NBD_REP_ERR_INVALID}},
	{"go with a name of 4 GiB", nbd.NBD_OPT_GO, []byte{0xff, 0xff, 0xff, 0xff, 'a', 0, 0}, []uint32{nbd.NBD_REP_ERR_INVALID}},
	{"go without a number", nbd.NBD_OPT_GO, []byte{0, 0, 0, 1, 'a'}, []uint32{nbd.NBD_REP_ERR_INVALID}},
	{"go with too few wishes", nbd.NBD_OPT_GO, []byte{0, 0, 0, 1, 'a', 0, 2, 0, 0, 0}, []uint32{nbd.NBD_REP_ERR_INVALID}},
	{"go with a byte too many", nbd.NBD_OPT_GO, append(nbdtest.InfoData("a", 1), 0), []uint32{nbd.NBD_REP_ERR_INVALID}},
	{"peek", nbd.NBD_OPT_PEEK_EXPORT, []byte("a"), []uint32{nbd.NBD_REP_ERR_UNSUP}},
	{"starttls", nbd.NBD_OPT_STARTTLS, nil, []uint32{nbd.NBD_REP_ERR_UNSUP}},
	{"option 0", 0, []byte("xyz"), []uint32{nbd.NBD_REP_ERR_UNSUP}},
	{"option of tomorrow", 0xfffffffe, make([]byte, 70000), []uint32{nbd.NBD_REP_ERR_UNSUP}},
	{"much data for it", 0xfffffffe, make([]byte, 3*mib), []uint32{nbd.NBD_REP_ERR_UNSUP}},
}

// Goal: each option, well and ill formed, gets the reply the document wants,
// and the server stays in step behind it.
func TestOptions(t *testing.T) {
	for _, tc := range optionRows {
		t.Run(tc.name, func(t *testing.T) {
			c := connect(t, threeExports(t))
			if _, err := c.Greet(bothFlags); err != nil {
				t.Fatal(err)
			}
			all, err := c.Haggle(tc.option, tc.data)
			if err != nil {
				t.Fatal(err)
			}
			var got []uint32
			for _, r := range all {
				got = append(got, r.Type)
				if r.IsError() && len(r.Data) == 0 {
					t.Error("an error without a message")
				}
			}
			if !slices.Equal(got, tc.want) {
				t.Fatalf("replies %#x, want %#x", got, tc.want)
			}
			if _, err := c.Go("a"); err != nil {
				t.Fatalf("go afterwards: %v", err)
			}
			c.inStep(tc.name)
		})
	}
}

// Goal: LIST and INFO tell the truth, and GO the same as INFO.
func TestWhatIsTold(t *testing.T) {
	c := connect(t, threeExports(t))
	flags, err := c.Greet(bothFlags)
	if err != nil || flags != nbd.NBD_FLAG_FIXED_NEWSTYLE|nbd.NBD_FLAG_NO_ZEROES {
		t.Fatalf("greeting flags %#x, %v", flags, err)
	}
	all, err := c.Haggle(nbd.NBD_OPT_LIST, nil)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"\x00\x00\x00\x00", "\x00\x00\x00\x01a", "\x00\x00\x00\x01bthe second", ""}
	for i, r := range all {
		if string(r.Data) != want[i] {
			t.Errorf("list reply %d is %q, want %q", i, r.Data, want[i])
		}
	}
	all, err = c.Haggle(nbd.NBD_OPT_INFO, nbdtest.InfoData("b", 1, 2, 3))
	if err != nil {
		t.Fatal(err)
	}
	info, err := nbdtest.ParseInfo(all)
	if err != nil {
		t.Fatal(err)
	}
	told := nbdtest.Info{Size: mib, Flags: 1 | 4 | 8 | 1<<10, Name: "b", Description: "the second", MinBlock: 512, Preferred: 8192, MaxPayload: mib}
	if info != told {
		t.Errorf("info: %+v, want %+v", info, told)
	}
	if info, err = c.Go("b"); err != nil || info != told {
		t.Errorf("go: %+v, %v, want %+v", info, err, told)
	}
}

// Goal: EXPORT_NAME answers with and without the 124 zeros as agreed, and
// hangs up on a name it cannot serve.
func TestExportName(t *testing.T) {
	for _, tc := range []struct {
		name  string
		flags uint32
		size  int // of the answer
	}{
		{"a", bothFlags, 10}, {"a", nbd.NBD_FLAG_C_FIXED_NEWSTYLE, 134}, {"a", 0, 134}, {"", bothFlags, 10},
		{"c", bothFlags, 0}, {"a\x00", bothFlags, 0}, {strings.Repeat("n", 4097), bothFlags, 0}, {strings.Repeat("n", mib), bothFlags, 0},
	} {
		c := connect(t, threeExports(t))
		if _, err := c.Greet(tc.flags); err != nil {
			t.Fatal(err)
		}
		c.Write(nbdtest.Option(nbd.NBD_OPT_EXPORT_NAME, []byte(tc.name)))
		if tc.size == 0 {
			c.closed("EXPORT_NAME " + tc.name[:1])
			continue
		}
		b := make([]byte, tc.size)
		if _, err := io.ReadFull(c, b); err != nil {
			t.Fatal(err)
		}
		if size, want := be.Uint64(b), map[string]uint64{"": mib, "a": 1000}[tc.name]; size != want {
			t.Errorf("%q has size %d, want %d", tc.name, size, want)
		}
		if tc.size == 134 && !bytes.Equal(b[10:], make([]byte, 124)) {
			t.Error("the zeros are not zero")
		}
		c.inStep("EXPORT_NAME")
	}
}

// Goal: ABORT is acknowledged, whatever data it carries, and ends the session
// as an orderly one.
func TestAbort(t *testing.T) {
	for _, n := range []int{0, 10, mib} {
		c := connect(t, threeExports(t))
		if _, err := c.Greet(bothFlags); err != nil {
			t.Fatal(err)
		}
		all, err := c.Haggle(nbd.NBD_OPT_ABORT, make([]byte, n))
		if err != nil || len(all) != 1 || all[0].Type != nbd.NBD_REP_ACK {
			t.Fatalf("%v, %v", all, err)
		}
		if err := c.end(); err != nil {
			t.Error(err)
		}
	}
}

// Goal: what cannot be followed, or must not be answered, costs the connection.
func TestHandshakeDrops(t *testing.T) {
	for name, in := range map[string][]byte{
		"unknown client flag": be.AppendUint32(nil, 4),
		"high client flag":    be.AppendUint32(nil, bothFlags|1<<31),
		"bad option magic":    append(be.AppendUint32(nil, bothFlags), make([]byte, 16)...),
		"option of 4 GiB":     be.AppendUint32(append(be.AppendUint32(nil, bothFlags), nbdtest.Option(99, nil)[:12]...), 0xffffffff),
	} {
		c := connect(t, threeExports(t))
		if _, err := io.ReadFull(c, make([]byte, 18)); err != nil {
			t.Fatal(err)
		}
		c.Write(in)
		if n, err := c.Read(make([]byte, 1)); n > 0 || err == nil {
			t.Errorf("%s: the server goes on talking", name)
		}
		if err := c.end(); err == nil || !strings.HasPrefix(err.Error(), "handshake: ") {
			t.Errorf("%s: error %v does not say that it was the handshake", name, err)
		}
	}
}

// Goal: many options sent at once are answered in order, and requests sent
// behind GO before its reply are executed.
func TestHandshakePipelined(t *testing.T) {
	in := be.AppendUint32(nil, bothFlags)
	in = append(in, nbdtest.Option(nbd.NBD_OPT_LIST, nil)...)
	in = append(in, nbdtest.Option(12345, []byte("data"))...)
	in = append(in, nbdtest.Option(nbd.NBD_OPT_GO, nbdtest.InfoData(""))...)
	in = append(in, requests(nbdtest.Write(1, 0, []byte("hello")), nbdtest.Read(2, 0, 5))...)
	out := run(t, threeExports(t), &nbdtest.Script{In: in})
	if !bytes.HasSuffix(out, []byte("hello")) {
		t.Errorf("the answer ends in %q", out[max(0, len(out)-40):])
	}
}

// Goal: a client that does not get through the handshake in time is cut off,
// one that has is not. Time is the bubble's.
func TestHandshakeTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := threeExports(t)
		slow, idle := pipe(s), pipe(s)
		if _, err := idle.Open(""); err != nil {
			t.Fatal(err)
		}
		if _, err := slow.Greet(bothFlags); err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		err := <-slow.over
		if err == nil || !strings.Contains(err.Error(), "not finished within 30s") {
			t.Errorf("error %v", err)
		}
		if took := time.Since(start); took != nbd.DefaultHandshakeTimeout {
			t.Errorf("cut off after %v", took)
		}
		time.Sleep(time.Hour)
		if r, err := idle.Do(nbdtest.Read(1, 0, 10)); err != nil || r.Err != 0 {
			t.Errorf("after an hour in transmission: %v, %v", r.Err, err)
		}
		idle.Close()
		if err := <-idle.over; err != nil {
			t.Error(err)
		}
	})
}

// piped is a client over a net.Pipe, whose deadlines keep the time of a
// synctest bubble.
type piped struct {
	*nbdtest.Client
	over chan error
}

func pipe(s *nbd.Server) piped {
	client, server := net.Pipe()
	over := make(chan error, 1)
	go func() { over <- s.ServeConn(context.Background(), server) }()
	return piped{&nbdtest.Client{Conn: client}, over}
}
