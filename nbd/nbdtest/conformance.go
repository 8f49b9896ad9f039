package nbdtest

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"slices"
	"testing"
	"time"

	"github.com/bttnbd/bttnbd/nbd"
)

// Options of [Conformance].
type Options struct {
	// Export is the name of a writable export of 8 MiB to 4 GiB. Its contents
	// are lost.
	Export string

	// ReadOnly is the name of an export that cannot be written, not the same;
	// "" if there is none, and then nothing about such exports is tested.
	ReadOnly string

	// TLS makes all cases run over TLS, begun with NBD_OPT_STARTTLS and this
	// configuration, and adds those about TLS. nil: no TLS.
	TLS *tls.Config

	// TLSRequired says that the server takes nothing else, and adds cases
	// about that.
	TLSRequired bool

	// Complete makes a failure of what the document leaves to a server and this
	// one does not offer. Otherwise such cases pass, and log that.
	Complete bool

	// Deviations lists the cases that are known to fail, with what the server
	// does instead. One that passes after all is a failure.
	Deviations map[string]string

	// Races lists cases that fail at times, with why. They pass either way.
	Races map[string]string

	// Patience bounds how long a case waits for an answer; 0 means 20 s.
	Patience time.Duration
}

// Conformance tests a server against the protocol document, and, where that is
// loose, against what suits all known clients. Each case is a subtest on
// connections of its own, which dial makes; a case's name is stable, and the
// place of its behaviour in the list below the place to look it up.
//
//	handshake/…   options and their replies
//	simple/…      transmission with simple replies
//	structured/…  the same, and more, with structured replies
//	extended/…    the same, and more, with extended headers
//	tls/…         TLS, where Options.TLS is given
func Conformance(t *testing.T, dial func() net.Conn, o Options) {
	if o.Patience == 0 {
		o.Patience = 20 * time.Second
	}
	s := &suite{dial: dial, Options: o}
	known := make(map[string]bool)
	for _, c := range append(cases(), s.tlsCases()...) {
		if o.TLS != nil && c.name == oldClientCase {
			continue
		}
		known[c.name] = true
		t.Run(c.name, func(t *testing.T) {
			defer s.hangUp()
			deviation, expected := o.Deviations[c.name]
			s.Patience = o.Patience
			if expected {
				s.Patience = min(o.Patience, time.Second) // it may be silence that is listed
			}
			err := c.run(s)
			race, uncertain := o.Races[c.name]
			switch {
			case uncertain:
				t.Logf("a race: %s: %v", race, err)
			case errors.Is(err, errNotOffered) && !o.Complete && !expected:
				t.Logf("optional: %v", err)
			case err == nil && expected:
				t.Errorf("conforms, and is listed as deviating: %s", deviation)
			case err != nil && expected:
				t.Logf("known deviation: %s: %v", deviation, err)
			case err != nil:
				t.Error(err)
			}
		})
	}
	for _, listed := range []map[string]string{o.Deviations, o.Races} {
		for name := range listed {
			if !known[name] {
				t.Errorf("there is no case %q", name)
			}
		}
	}
}

// Cases returns the names of all cases, in the order in which they run.
func Cases() []string {
	var names []string
	for _, c := range slices.Concat(cases(), tlsCases, forgetCases, requiredCases) {
		names = append(names, c.name)
	}
	return names
}

// testCase is one behaviour.
type testCase struct {
	name string
	run  func(*suite) error
}

// A form is what transmission looks like.
type form int

const (
	simple form = iota
	structured
	extended
)

func (f form) String() string { return [...]string{"simple", "structured", "extended"}[f] }

func cases() []testCase {
	all := slices.Concat(handshakeCases, metaCases)
	for f := simple; f <= extended; f++ {
		list := commonCases
		if f != simple {
			list = slices.Concat(list, chunkCases)
		}
		if f == extended {
			list = slices.Concat(list, extendedCases)
		}
		for _, c := range list {
			all = append(all, testCase{f.String() + "/" + c.name, func(s *suite) error { return s.transmission(f, c.run) }})
		}
	}
	return all
}

// oldClientCase has a client that cannot ask for TLS.
const oldClientCase = "handshake/export-name-old-client"

// tlsCases are the cases about TLS that suit the server.
func (s *suite) tlsCases() []testCase {
	switch {
	case s.TLS == nil:
		return nil
	case s.TLSRequired:
		return slices.Concat(tlsCases, requiredCases)
	}
	return slices.Concat(tlsCases, forgetCases)
}

// errNotOffered says that a server does not have what the document leaves to it.
var errNotOffered = errors.New("the server does not offer")

func notOffered(what string) error { return fmt.Errorf("%w %s", errNotOffered, what) }

// suite is a run of all cases.
type suite struct {
	Options
	dial func() net.Conn
	open []net.Conn // of the present case
}

func (s *suite) hangUp() {
	for _, c := range s.open {
		c.Close()
	}
	s.open = nil
}

// connect returns a connection before the greeting.
func (s *suite) connect() *Client {
	nc := s.dial()
	s.open = append(s.open, nc)
	nc.SetDeadline(time.Now().Add(s.Patience))
	return &Client{Conn: nc}
}

// greet returns a connection behind the greeting, and with TLS if that is wanted.
func (s *suite) greet() (*Client, error) {
	return s.greetWith(nbd.NBD_FLAG_C_FIXED_NEWSTYLE | nbd.NBD_FLAG_C_NO_ZEROES)
}

// greetWith is greet with other client flags.
func (s *suite) greetWith(flags uint32) (*Client, error) {
	c, err := s.greetInClear(flags)
	if err == nil && s.TLS != nil {
		err = c.StartTLS(s.TLS)
	}
	return c, err
}

func (s *suite) greetInClear(flags uint32) (*Client, error) {
	c := s.connect()
	_, err := c.Greet(flags)
	return c, err
}

// session is a connection in transmission. After the first failure, err, it does
// nothing more.
type session struct {
	*Client
	suite *suite
	form  form
	info  Info
	ids   map[string]uint32 // of metadata contexts
	err   error
}

// enter takes a new connection to transmission in the form, with base:allocation
// selected where the server has it.
func (s *suite) enter(f form, export string, queries ...string) (*session, error) {
	c, err := s.greet()
	if err != nil {
		return nil, err
	}
	switch f {
	case structured:
		err = c.UseStructured()
	case extended:
		err = c.UseExtended()
	}
	var refused *OptionError
	if errors.As(err, &refused) && refused.Type == nbd.NBD_REP_ERR_UNSUP {
		return nil, notOffered(f.String())
	} else if err != nil {
		return nil, err
	}
	x := &session{Client: c, suite: s, form: f}
	if len(queries) > 0 {
		x.ids, err = c.MetaContexts(nbd.NBD_OPT_SET_META_CONTEXT, export, queries...)
		if errors.As(err, &refused) && refused.Type == nbd.NBD_REP_ERR_UNSUP {
			x.ids, err = nil, nil
		}
		if err != nil {
			return nil, err
		}
	}
	x.info, err = c.Go(export)
	return x, err
}

// transmission runs a case in the form.
func (s *suite) transmission(f form, run func(*session) error) error {
	var queries []string
	if f != simple {
		queries = []string{"base:allocation"}
	}
	x, err := s.enter(f, s.Export, queries...)
	if err != nil {
		return err
	}
	if x.info.Size < 8<<20 || x.info.Size > 4<<30 {
		return fmt.Errorf("an export of %d bytes does not suit this suite", x.info.Size)
	}
	if err := run(x); err != nil {
		return err
	}
	return x.err
}

// ask is Client.Ask with the flags that the form needs.
func (x *session) ask(r Request, what string) Answer {
	if x.err != nil {
		return Answer{}
	}
	if x.form == extended {
		r = r.Extend()
	}
	a, err := x.Ask(r)
	if err != nil {
		x.err = fmt.Errorf("%s: %w", what, err)
	}
	return a
}

// want is ask of what must end with one of the errors.
func (x *session) want(r Request, what string, errnos ...nbd.Errno) Answer {
	a := x.ask(r, what)
	if x.err == nil && !slices.Contains(errnos, a.Err) {
		x.err = fmt.Errorf("%s: %v, want %v", what, a.Err, errnos)
	}
	return a
}

// ok is ask of what must succeed.
func (x *session) ok(r Request, what string) Answer { return x.want(r, what, 0) }

// wantClosed fails unless the server ends the connection, without another byte.
func (x *session) wantClosed(what string) {
	if x.err == nil {
		x.err = closed(x.Client, what)
	}
}

func closed(c *Client, what string) error {
	n, err := c.Conn.Read(make([]byte, 1))
	var ne net.Error
	switch {
	case n > 0:
		return fmt.Errorf("%s: the server goes on talking", what)
	case errors.As(err, &ne) && ne.Timeout():
		return fmt.Errorf("%s: the connection stays open", what)
	}
	return nil
}

// offers says whether a transmission flag is set.
func (x *session) offers(flag uint16) bool { return x.info.Flags&flag != 0 }

// fill returns n bytes that differ with seed and place.
func fill(seed, n int) []byte {
	p := make([]byte, n)
	for i := range p {
		p[i] = byte(seed*131+i*7+i>>8) | 1
	}
	return p
}
