package nbd_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"os"
	"testing"
	"time"

	"github.com/bttnbd/bttnbd/nbd"
	"github.com/bttnbd/bttnbd/nbd/nbdtest"
)

// What FuzzSession does to a server while a session is under way.
const (
	keepAsItIs = iota
	grow       // the export, by half
	describe   // the export
	others     // come and go
	replace    // the export, with another backend
	reloads
)

// Options of FuzzSession's server.
const (
	withTLS = 1 << iota
	tlsRequired
	noMemory // for large buffers
	serverKinds
)

// sessionOptions are the options that FuzzSession's client sends, by the bytes of
// its input.
var sessionOptions = [][]byte{
	nbdtest.Option(nbd.NBD_OPT_GO, nbdtest.InfoData("")),
	nbdtest.Option(nbd.NBD_OPT_GO, nbdtest.InfoData("nobody")),
	nbdtest.Option(nbd.NBD_OPT_GO, []byte{0, 0, 1, 0}),
	nbdtest.Option(nbd.NBD_OPT_INFO, nbdtest.InfoData("", 0, 1, 2, 3)),
	nbdtest.Option(nbd.NBD_OPT_INFO, nbdtest.InfoData("", make([]uint16, 0xffff)...)),
	nbdtest.Option(nbd.NBD_OPT_LIST, nil),
	nbdtest.Option(nbd.NBD_OPT_LIST, []byte{1}),
	nbdtest.Option(nbd.NBD_OPT_STRUCTURED_REPLY, nil),
	nbdtest.Option(nbd.NBD_OPT_EXTENDED_HEADERS, nil),
	nbdtest.Option(nbd.NBD_OPT_SET_META_CONTEXT, nbdtest.MetaData("", "base:allocation", "x-btt:error")),
	nbdtest.Option(nbd.NBD_OPT_SET_META_CONTEXT, nbdtest.MetaData("nobody", "base:allocation")),
	nbdtest.Option(nbd.NBD_OPT_LIST_META_CONTEXT, nbdtest.MetaData("")),
	nbdtest.Option(nbd.NBD_OPT_STARTTLS, nil),
	nbdtest.Option(nbd.NBD_OPT_STARTTLS, []byte{1}),
	nbdtest.Option(nbd.NBD_OPT_ABORT, nil),
	nbdtest.Option(4711, make([]byte, 20000)),
	nbdtest.Option(nbd.NBD_OPT_EXPORT_NAME, []byte("nobody")),
	nbdtest.Option(nbd.NBD_OPT_EXPORT_NAME, nil),
}

// FuzzSession plays whole sessions: options, then requests, then bytes without a
// meaning, cut into reads anyhow; and when half of it, or any other part, has been
// read, the exports are replaced. What comes back must be what a model says that
// knows neither buffers nor reloads that do not concern this client.
func FuzzSession(f *testing.F) {
	in, _ := mixed()
	in = in[len(hello()):]
	var ext []byte
	for _, r := range chunkRequests() {
		ext = r.AppendExtended(ext)
	}
	for _, kind := range []byte{0, withTLS, withTLS | tlsRequired, noMemory, withTLS | noMemory} {
		for reload := range byte(reloads) {
			f.Add(kind, reload, uint32(300), []byte{5, 0}, in, uint16(0))
			f.Add(kind, reload, uint32(700), []byte{7, 9, 0}, in, uint16(11))
			f.Add(kind, reload, uint32(150), []byte{8, 9, 3, 0}, ext, uint16(0))
			f.Add(kind, reload, uint32(150), []byte{8, 10, 3, 0}, ext, uint16(0))
		}
		f.Add(kind, byte(0), uint32(0), []byte{12, 5, 0}, in, uint16(0))
		f.Add(kind, byte(0), uint32(0), []byte{13, 4, 11, 15, 10, 1, 2, 6, 14}, in, uint16(0))
		f.Add(kind, byte(0), uint32(0), []byte{7, 8, 7, 16}, in, uint16(0))
		f.Add(kind, byte(0), uint32(0), []byte{7, 9, 17}, in, uint16(99))
	}
	server, _ := configs(f)

	f.Fuzz(func(t *testing.T, kind, reload byte, at uint32, options, in []byte, chunk uint16) {
		if len(options) > 64 {
			return
		}
		newSessionRun(t, server, kind%serverKinds, reload%reloads).play(at, options, in, chunk)
	})
}

// sessionRun is one input of FuzzSession.
type sessionRun struct {
	t      *testing.T
	kind   byte
	reload byte
	s      *nbd.Server
	m      *nbdtest.Memory
	second *nbdtest.Memory // after replace
}

func newSessionRun(t *testing.T, config *tls.Config, kind, reload byte) *sessionRun {
	o := nbd.Options{}
	if kind&withTLS != 0 {
		o.TLS = config
		o.TLSRequired = kind&tlsRequired != 0
	}
	if kind&noMemory != 0 {
		o.MaxMemory = -1
	}
	r := &sessionRun{t: t, kind: kind, reload: reload, m: nbdtest.NewMemory(fuzzSize)}
	if reload == replace {
		r.second = nbdtest.NewMemory(fuzzSize)
	}
	r.s = newServerWith(t, o, full(r.m, fuzzSize/2))
	return r
}

// exports are those after the reload.
func (r *sessionRun) exports() []nbd.Export {
	e := full(r.m, fuzzSize/2)
	switch r.reload {
	case grow:
		e.Size = fuzzSize
	case describe:
		e.Description = "now with a description"
	case others:
		other := full(nbdtest.NewMemory(512), 512)
		other.Name = "other"
		return []nbd.Export{other, e}
	case replace:
		e.Backend = r.second
	}
	return []nbd.Export{e}
}

// play runs the session, at bytes of which come before the reload.
func (r *sessionRun) play(at uint32, options, in []byte, chunk uint16) {
	stream := be.AppendUint32(nil, bothFlags)
	for _, o := range options {
		stream = append(stream, sessionOptions[int(o)%len(sessionOptions)]...)
	}
	start := len(stream)
	stream = append(stream, in...)
	at %= uint32(len(stream) + 1)

	over := make(chan error, 1)
	script := &interruptible{Script: nbdtest.Script{In: stream, Chunk: int(chunk)}, at: int(at), interrupt: make(chan struct{})}
	script.then = func() {
		go func() { over <- r.s.SetExports(context.Background(), r.exports()) }()
		select { // it waits for this very connection, if it interrupts that
		case err := <-over:
			over <- err
		case <-script.interrupt:
		}
	}
	r.s.ServeConn(context.Background(), script)
	if script.then == nil {
		if err := <-over; err != nil {
			r.t.Fatal(err)
		}
		if r.reload == replace && !script.interrupted() {
			r.m = r.second // the export was chosen after that
		}
	}
	if st := r.s.Stats(); st.Connections != 0 || st.Accepted != 1 || len(st.Exports) == 0 {
		r.t.Fatalf("%+v", st)
	}
	r.judge(script.Out.Bytes(), stream, options, start, int(at), script.interrupted())
}

// judge compares what was sent with what the model says.
func (r *sessionRun) judge(out, stream []byte, options []byte, start, at int, interrupted bool) {
	t := r.t
	answers := &nbdtest.Script{In: out}
	c := &nbdtest.Client{Conn: answers}
	if _, err := c.Greet(0); err != nil {
		t.Fatal(err)
	}
	h := handshakeModel{small: r.kind&noMemory != 0, required: r.kind&withTLS != 0 && r.kind&tlsRequired != 0, tls: r.kind&withTLS != 0}
	pos := 4
	for _, o := range options {
		o = o % byte(len(sessionOptions))
		pos += len(sessionOptions[o])
		want := h.answer(o)
		if want == hangsUp || want == maybeTLS {
			if want == hangsUp && len(answers.In) > 0 {
				t.Fatalf("option %d: %d bytes, want none", o, len(answers.In))
			}
			return
		}
		if want == exportName {
			answers.In = answers.In[10:]
			break
		}
		last := lastReply(t, c)
		if last.Type != want&^aborts {
			t.Fatalf("option %d: reply %#x, want %#x", o, last.Type, want)
		}
		if want&aborts != 0 {
			if len(answers.In) > 0 {
				t.Fatal("goes on after ABORT")
			}
			return
		}
		if h.over {
			break
		}
	}
	if !h.over {
		return // FuzzHandshake's matter
	}
	if pos != start {
		return // the rest of the options is taken for requests
	}
	r.judgeRequests(c, answers, stream[start:], &h, at-start, interrupted)
}

// judgeRequests is judge of the transmission phase.
func (r *sessionRun) judgeRequests(c *nbdtest.Client, answers *nbdtest.Script, in []byte, h *handshakeModel, at int, interrupted bool) {
	t, f := r.t, h.form
	m := newModel(f, fuzzSize/2)
	m.contexts = h.contexts
	if r.reload == grow {
		m.growsAt, m.grown = at, fuzzSize
	}
	if r.kind&noMemory != 0 {
		m.buffer, m.piece = 9<<10, 8<<10
	}
	m.play(in)
	c.Structured, c.Extended = f == structured, f == extended
	for i, want := range m.want {
		if interrupted && want.end > at {
			return // executed, or answered ESHUTDOWN, or not at all
		}
		a, err := c.Answer(want.Request)
		if err != nil {
			t.Fatalf("answer %d, to %+v: %v", i, headOf(want.Request), err)
		}
		if a.Err != want.err || want.err == 0 && !bytes.Equal(a.Data, want.data) {
			t.Fatalf("answer %d, to %+v: %v, want %v, or other data", i, headOf(want.Request), a.Err, want.err)
		}
	}
	if interrupted {
		return
	}
	if len(answers.In) > 0 {
		t.Errorf("%d bytes too many", len(answers.In))
	}
	if !bytes.Equal(r.m.Bytes(), m.mem) {
		t.Error("contents differ")
	}
}

func lastReply(t *testing.T, c *nbdtest.Client) nbdtest.OptionReply {
	for {
		r, err := c.RecvOption()
		if err != nil {
			t.Fatal(err)
		}
		if r.Type == nbd.NBD_REP_ACK || r.IsError() {
			return r
		}
	}
}

// handshakeModel knows what each of sessionOptions is answered.
type handshakeModel struct {
	required, tls, small bool
	form                 int
	contexts             bool // selected
	over                 bool
}

const (
	hangsUp    = iota + 100
	maybeTLS   // ACK or not, and nothing that can be read after that
	exportName // the answer to EXPORT_NAME
	aborts     = 1 << 16
)

func (h *handshakeModel) answer(o byte) uint32 {
	switch {
	case o == 14:
		return nbd.NBD_REP_ACK | aborts
	case o == 16:
		return hangsUp
	case h.required && o == 17:
		return hangsUp
	case h.required && o != 12 && o != 13:
		return nbd.NBD_REP_ERR_TLS_REQD
	}
	switch o {
	case 0:
		h.over = true
	case 1:
		return nbd.NBD_REP_ERR_UNKNOWN
	case 2, 6:
		return nbd.NBD_REP_ERR_INVALID
	case 4:
		if h.small {
			return nbd.NBD_REP_ERR_TOO_BIG
		}
	case 7:
		if h.form == extended {
			return nbd.NBD_REP_ERR_EXT_HEADER_REQD
		}
		h.form = structured
	case 8:
		h.form = extended
	case 9, 10:
		h.contexts = o == 9 && h.form != simple
		if h.form == simple {
			return nbd.NBD_REP_ERR_INVALID
		}
		if o == 10 {
			return nbd.NBD_REP_ERR_UNKNOWN
		}
	case 12, 13:
		switch {
		case !h.tls:
			return nbd.NBD_REP_ERR_UNSUP
		case o == 13:
			return nbd.NBD_REP_ERR_INVALID
		}
		return maybeTLS
	case 15:
		return nbd.NBD_REP_ERR_UNSUP
	case 17:
		if h.form == extended {
			return hangsUp
		}
		h.over = true
		return exportName
	}
	return nbd.NBD_REP_ACK
}

// interruptible is a Script that calls then when at bytes have been read, and that
// a read deadline in the past interrupts once, as it does a socket.
type interruptible struct {
	nbdtest.Script
	at        int
	then      func()
	interrupt chan struct{} // closed by such a deadline
	told      bool
}

func (i *interruptible) interrupted() bool {
	select {
	case <-i.interrupt:
		return true
	default:
		return false
	}
}

func (i *interruptible) Read(p []byte) (int, error) {
	if i.at == 0 && i.then != nil {
		then := i.then
		i.then = nil
		then()
	}
	if i.interrupted() && !i.told {
		i.told = true
		return 0, os.ErrDeadlineExceeded
	}
	if i.at > 0 {
		p = p[:min(len(p), i.at)]
	}
	n, err := i.Script.Read(p)
	i.at -= n
	return n, err
}

func (i *interruptible) SetReadDeadline(t time.Time) error {
	if !t.IsZero() && t.Before(time.Now()) && !i.interrupted() {
		close(i.interrupt)
	}
	return nil
}
