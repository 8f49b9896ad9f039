package nbd

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net"
)

// TLS lies between the wire and everything else once NBD_OPT_STARTTLS was
// acknowledged:
//
//	socket -- wire -- stage -- tls.Conn -- read buffer
//	             \____________/        \__ flush
//
// The stage takes as much from the socket as there is, so that one read brings
// many records, and tls.Conn never waits: it is told that there is nothing more,
// and the connection waits itself, in receiveTLS, holding no buffers if it is
// between two messages.

// optStartTLS turns TLS on. Nothing that was said in clear counts from then on:
// what was agreed is forgotten, and a client whose next bytes are here already,
// ahead of our answer, may not have sent them itself.
func (c *conn) optStartTLS(data []byte) error {
	switch {
	case c.s.o.TLS == nil:
		return c.refuse(NBD_REP_ERR_UNSUP, "this server has no TLS")
	case len(data) != 0:
		return c.refuse(NBD_REP_ERR_INVALID, "NBD_OPT_STARTTLS takes no data")
	case c.tls != nil:
		return c.refuse(NBD_REP_ERR_INVALID, "TLS is on already")
	case c.r != c.w:
		return errors.New("bytes in clear behind NBD_OPT_STARTTLS")
	}
	if err := c.optReply(NBD_REP_ACK, nil); err != nil {
		return err
	}
	if err := c.flush(); err != nil {
		return err
	}
	c.detach()
	c.agreed = terms{noZeroes: c.agreed.noZeroes} // which is no option's doing

	c.stage.Conn, c.stage.waits = &c.wire, true
	t := tls.Server(&c.stage, c.s.o.TLS)
	if err := t.Handshake(); err != nil {
		return fmt.Errorf("TLS: %w", err)
	}
	c.stage.waits = false
	c.tls = t
	c.logTLS()
	return nil
}

func (c *conn) logTLS() {
	e := c.s.o.Log.Debug()
	if !e.Enabled() {
		return
	}
	st := c.tls.ConnectionState()
	e = e.Str("client", peer(c.wire.Conn)).Str("version", tls.VersionName(st.Version)).Str("cipher", tls.CipherSuiteName(st.CipherSuite))
	if len(st.PeerCertificates) > 0 {
		e = e.Stringer("subject", st.PeerCertificates[0].Subject)
	}
	e.Msg("TLS is on")
}

// needsTLS says whether the current option is to be refused for want of TLS.
func (c *conn) needsTLS() bool {
	return c.s.o.TLSRequired && c.tls == nil && c.option != NBD_OPT_STARTTLS && c.option != NBD_OPT_ABORT
}

// receiveTLS reads all that has come, at least one byte.
func (c *conn) receiveTLS() (n int, err error) {
	for {
		p := c.space()
		for n < len(p) && err == nil {
			var m int
			m, err = c.tls.Read(p[n:])
			c.wire.settle() // it answers a KeyUpdate itself
			n += m
		}
		if n > 0 && err == errNothingStaged {
			return n, nil
		}
		if n > 0 || err != errNothingStaged {
			return n, err
		}
		if err = c.stage.fill(); err != nil {
			return 0, err
		}
	}
}

// stage holds what has come from the socket and TLS has not looked at yet. It is
// the net.Conn of the tls.Conn; all but Read goes to the wire.
type stage struct {
	net.Conn
	c     *conn
	waits bool // in the TLS handshake
	buf   []byte
	r, w  int
}

// errNothingStaged tells tls.Conn to come again. It is temporary, as tls.Conn
// takes any other error for the end.
var errNothingStaged error = nothingStaged{}

type nothingStaged struct{}

func (nothingStaged) Error() string   { return "no TLS record has come yet" }
func (nothingStaged) Timeout() bool   { return true }
func (nothingStaged) Temporary() bool { return true }

// Read is tls.Conn's.
func (st *stage) Read(p []byte) (int, error) {
	if st.r == st.w {
		if !st.waits {
			return 0, errNothingStaged
		}
		if err := st.fill(); err != nil {
			return 0, err
		}
	}
	n := copy(p, st.buf[st.r:st.w])
	st.r += n
	return n, nil
}

// fill reads from the socket once, after sending all replies.
func (st *stage) fill() error {
	if err := st.c.flush(); err != nil {
		return err
	}
	n, err := st.c.wire.receive(st)
	st.w += n
	return err
}

// space is where a read from the socket goes: all that was there is read.
func (st *stage) space() []byte {
	if len(st.buf) == smallStage && st.c.exp != nil {
		st.detach() // there may be room for a large one now
	}
	st.r, st.w = 0, 0
	if st.buf == nil {
		st.attach()
	}
	return st.buf
}

func (st *stage) park() {
	if st.c.wire.raw != nil {
		st.detach()
	}
	st.c.park()
}

// attach gets a buffer: for several records, or if that is too much memory for
// less than one.
func (st *stage) attach() {
	if st.c.exp != nil && st.c.s.take(largeStage, false) {
		st.buf = largeStagePool.Get().(*[largeStage]byte)[:]
	} else {
		st.buf = smallStagePool.Get().(*[smallStage]byte)[:]
	}
}

func (st *stage) detach() {
	switch len(st.buf) {
	case largeStage:
		st.c.s.give(largeStage)
		largeStagePool.Put((*[largeStage]byte)(st.buf))
	case smallStage:
		smallStagePool.Put((*[smallStage]byte)(st.buf))
	}
	st.buf, st.r, st.w = nil, 0, 0
}
