package nbdtest

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"

	"github.com/bttnbd/bttnbd/nbd"
)

// StartTLS is NBD_OPT_STARTTLS and the TLS handshake. The Conn of c is a
// [tls.Conn] afterwards.
func (c *Client) StartTLS(config *tls.Config) error {
	all, err := c.Haggle(nbd.NBD_OPT_STARTTLS, nil)
	if err != nil {
		return fmt.Errorf("STARTTLS: %w", err)
	}
	if last := all[len(all)-1]; last.IsError() {
		return &OptionError{last.Type, string(last.Data)}
	}
	return c.shakeHands(config)
}

func (c *Client) shakeHands(config *tls.Config) error {
	t := tls.Client(c.Conn, config)
	if err := t.Handshake(); err != nil {
		return fmt.Errorf("TLS: %w", err)
	}
	c.Conn = t
	return nil
}

// tlsCases run where Options.TLS is given.
var tlsCases = []testCase{
	{"tls/starttls-then-everything", (*suite).overTLS},
	{"tls/close-notify-at-the-end", (*suite).closeNotify},
	{"tls/starttls-with-data", func(s *suite) error {
		return s.inClear(nbd.NBD_OPT_STARTTLS, []byte("x"), nbd.NBD_REP_ERR_INVALID)
	}},
	{"tls/starttls-twice", func(s *suite) error {
		return s.option(nbd.NBD_OPT_STARTTLS, nil, nbd.NBD_REP_ERR_INVALID)
	}},
	{"tls/clear-bytes-behind-starttls-are-not-obeyed", (*suite).injected},
	{"tls/garbage-instead-of-a-handshake-drops", (*suite).garbage},
	{"tls/version-1.1-is-refused", (*suite).oldTLS},
}

// forgetCases need a server that takes options in clear.
var forgetCases = []testCase{
	{"tls/forgets-structured-replies", func(s *suite) error { return s.forgets((*Client).UseStructured) }},
	{"tls/forgets-extended-headers", func(s *suite) error { return s.forgets((*Client).UseExtended) }},
	{"tls/forgets-contexts", (*suite).forgetsContexts},
}

// requiredCases run where Options.TLSRequired is set.
var requiredCases = []testCase{
	{"tls/required-for-list", func(s *suite) error { return s.tlsRequired(nbd.NBD_OPT_LIST, nil) }},
	{"tls/required-for-go", func(s *suite) error { return s.tlsRequired(nbd.NBD_OPT_GO, InfoData(s.Export)) }},
	{"tls/required-for-info", func(s *suite) error { return s.tlsRequired(nbd.NBD_OPT_INFO, InfoData(s.Export)) }},
	{"tls/required-for-structured", func(s *suite) error { return s.tlsRequired(nbd.NBD_OPT_STRUCTURED_REPLY, nil) }},
	{"tls/required-for-unknown-options", func(s *suite) error { return s.tlsRequired(0xfffffff0, make([]byte, 5000)) }},
	{"tls/required-for-export-name", func(s *suite) error {
		c, err := s.greetInClear(3)
		if err != nil {
			return err
		}
		c.Write(Option(nbd.NBD_OPT_EXPORT_NAME, []byte(s.Export)))
		return closed(c, "EXPORT_NAME in clear")
	}},
	{"tls/not-required-for-abort", func(s *suite) error {
		c, err := s.greetInClear(3)
		if err != nil {
			return err
		}
		all, err := c.Haggle(nbd.NBD_OPT_ABORT, nil)
		if err != nil || all[0].Type != nbd.NBD_REP_ACK {
			return fmt.Errorf("%v, %w", all, err)
		}
		return nil
	}},
}

// inClear sends an option before STARTTLS, which must still be possible after the
// answer.
func (s *suite) inClear(option uint32, data []byte, reply uint32) error {
	c, err := s.greetInClear(3)
	if err != nil {
		return err
	}
	all, err := c.Haggle(option, data)
	if err != nil {
		return err
	}
	if last := all[len(all)-1]; last.Type != reply {
		return &unwanted{option, last.Type, []uint32{reply}}
	}
	if err := c.StartTLS(s.TLS); err != nil {
		return err
	}
	_, err = c.Go(s.Export)
	return err
}

func (s *suite) tlsRequired(option uint32, data []byte) error {
	return s.inClear(option, data, nbd.NBD_REP_ERR_TLS_REQD)
}

// overTLS moves more than many TLS records in both directions, and many requests
// at once.
func (s *suite) overTLS() error {
	x, err := s.enter(simple, s.Export)
	if err != nil {
		return err
	}
	p := fill(7, 1<<20)
	x.ok(Write(1, 4096, p), "large write")
	if a := x.ok(Read(2, 4096, 1<<20), "large read"); x.err == nil && string(a.Data) != string(p) {
		return errors.New("a large read brings other data than was written")
	}
	var all []Request
	for i := range uint64(100) {
		all = append(all, Write(i, i*512, fill(int(i), 512)))
	}
	if x.err != nil {
		return x.err
	}
	if err := x.Send(all...); err != nil {
		return err
	}
	answered := make(map[uint64]bool)
	for range all { // in any order
		r, err := x.Recv(0)
		if err != nil || r.Err != 0 || answered[r.Cookie] {
			return fmt.Errorf("reply %+v to one of %d writes, %w", r, len(all), err)
		}
		answered[r.Cookie] = true
	}
	return nil
}

// closeNotify disconnects and wants to be told that this was not an attacker's
// doing.
func (s *suite) closeNotify() error {
	c, err := s.greetInClear(3)
	if err != nil {
		return err
	}
	records, err := c.StartWatchedTLS(s.TLS)
	if err != nil {
		return err
	}
	if _, err := c.Go(s.Export); err != nil {
		return err
	}
	if err := c.Send(Command(nbd.NBD_CMD_DISC, 0, 0, 0)); err != nil {
		return err
	}
	if _, err := io.Copy(io.Discard, c); err != nil {
		return fmt.Errorf("after NBD_CMD_DISC: %w", err)
	}
	if !records.EndInAlert() {
		return errors.New("after NBD_CMD_DISC the connection ends without close_notify")
	}
	return nil
}

// TLSRecords notes what records a TLS connection receives. [tls.Conn] takes the
// end of the stream for an orderly end, with close_notify or without.
type TLSRecords struct {
	net.Conn
	head []byte // of the last record, 5 bytes when complete
	left int    // of it
}

// StartWatchedTLS is StartTLS, and returns the records.
func (c *Client) StartWatchedTLS(config *tls.Config) (*TLSRecords, error) {
	if _, err := c.Haggle(nbd.NBD_OPT_STARTTLS, nil); err != nil {
		return nil, err
	}
	r := &TLSRecords{Conn: c.Conn}
	c.Conn = r
	return r, c.shakeHands(config)
}

func (t *TLSRecords) Read(p []byte) (int, error) {
	n, err := t.Conn.Read(p)
	for p = p[:n]; len(p) > 0; {
		if t.left == 0 {
			if len(t.head) == 5 {
				t.head = t.head[:0]
			}
			t.head, p = append(t.head, p[0]), p[1:]
			if len(t.head) == 5 {
				t.left = int(be.Uint16(t.head[3:]))
			}
			continue
		}
		m := min(t.left, len(p))
		t.left, p = t.left-m, p[m:]
	}
	return n, err
}

// EndInAlert says whether the last record was whole and an alert. With TLS 1.3 it
// does not say so of itself, but no other that a server sends at the end is as
// short: 2 bytes, the type, and a tag of 16.
func (t *TLSRecords) EndInAlert() bool {
	if len(t.head) != 5 || t.left != 0 {
		return false
	}
	return t.head[0] == 21 || t.head[0] == 23 && be.Uint16(t.head[3:]) == 2+1+16
}

// injected sends a LIST in clear behind STARTTLS, as somebody in the middle can. A
// server may hang up, or throw it away; it must not answer it as if the client had
// sent it.
func (s *suite) injected() error {
	c, err := s.greetInClear(3)
	if err != nil {
		return err
	}
	c.Write(append(Option(nbd.NBD_OPT_STARTTLS, nil), Option(nbd.NBD_OPT_LIST, nil)...))
	if r, err := c.RecvOption(); err != nil {
		return hungUp(err)
	} else if r.Type != nbd.NBD_REP_ACK {
		return &unwanted{nbd.NBD_OPT_STARTTLS, r.Type, []uint32{nbd.NBD_REP_ACK}}
	}
	if err := c.shakeHands(s.TLS); err != nil {
		return hungUp(err)
	}
	if all, err := c.Haggle(nbd.NBD_OPT_ABORT, nil); err != nil {
		return hungUp(err)
	} else if len(all) != 1 {
		return errors.New("the injected option was obeyed")
	}
	return nil
}

// hungUp is err, unless that is the end of the connection and no timeout.
func hungUp(err error) error {
	var ne net.Error
	if errors.As(err, &ne) && ne.Timeout() {
		return err
	}
	return nil
}

func (s *suite) garbage() error {
	c, err := s.greetInClear(3)
	if err != nil {
		return err
	}
	if _, err := c.Haggle(nbd.NBD_OPT_STARTTLS, nil); err != nil {
		return err
	}
	c.Write(Option(nbd.NBD_OPT_LIST, make([]byte, 1000)))
	_, err = io.Copy(io.Discard, c) // an alert, perhaps
	return hungUp(err)
}

func (s *suite) oldTLS() error {
	c, err := s.greetInClear(3)
	if err != nil {
		return err
	}
	old := s.TLS.Clone()
	old.MinVersion, old.MaxVersion = tls.VersionTLS10, tls.VersionTLS11
	if err := c.StartTLS(old); err == nil {
		return errors.New("TLS 1.1 is spoken")
	}
	return nil
}

// forgets agrees on something in clear, which must be forgotten with TLS: a READ
// is answered simply.
func (s *suite) forgets(agree func(*Client) error) error {
	c, err := s.greetInClear(3)
	if err != nil {
		return err
	}
	if err := agree(c); err != nil {
		return notOffered("this form")
	}
	if err := c.StartTLS(s.TLS); err != nil {
		return err
	}
	c.Structured, c.Extended = false, false
	if _, err := c.Go(s.Export); err != nil {
		return err
	}
	if r, err := c.Do(Read(1, 0, 512)); err != nil || r.Err != 0 {
		return fmt.Errorf("a simple READ: %v, %w", r.Err, err)
	}
	return nil
}

func (s *suite) forgetsContexts() error {
	c, err := s.greetInClear(3)
	if err != nil {
		return err
	}
	if err := c.UseStructured(); err != nil {
		return notOffered("structured replies")
	}
	if _, err := c.MetaContexts(nbd.NBD_OPT_SET_META_CONTEXT, s.Export, "base:allocation"); err != nil {
		return notOffered("contexts")
	}
	if err := c.StartTLS(s.TLS); err != nil {
		return err
	}
	c.Structured = false
	if err := c.UseStructured(); err != nil {
		return err
	}
	if _, err := c.Go(s.Export); err != nil {
		return err
	}
	a, err := c.Ask(Command(nbd.NBD_CMD_BLOCK_STATUS, 1, 0, 4096))
	if err == nil && a.Err != nbd.NBD_EINVAL {
		err = fmt.Errorf("BLOCK_STATUS: %v, want EINVAL", a.Err)
	}
	return err
}
