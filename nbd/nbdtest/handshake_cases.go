package nbdtest

import (
	"bytes"
	"fmt"
	"io"
	"strings"

	"github.com/bttnbd/bttnbd/nbd"
)

var handshakeCases = []testCase{
	{"handshake/greeting", func(s *suite) error {
		flags, err := s.connect().Greet(3)
		if err == nil && (flags&1 == 0 || flags&^3 != 0) {
			err = fmt.Errorf("handshake flags %#x", flags)
		}
		return err
	}},
	{"handshake/unknown-client-flag-drops", func(s *suite) error {
		c := s.connect()
		if _, err := c.Greet(3 | 1<<7); err != nil {
			return err
		}
		c.Write(Option(nbd.NBD_OPT_LIST, nil))
		return closed(c, "client flag 7")
	}},
	{"handshake/unknown-option", func(s *suite) error {
		return s.option(0xfffffff0, make([]byte, 5000), nbd.NBD_REP_ERR_UNSUP)
	}},
	{"handshake/peek-export", func(s *suite) error {
		return s.option(nbd.NBD_OPT_PEEK_EXPORT, nil, nbd.NBD_REP_ERR_UNSUP)
	}},
	{"handshake/abort", func(s *suite) error {
		c, err := s.greet()
		if err != nil {
			return err
		}
		all, err := c.Haggle(nbd.NBD_OPT_ABORT, nil)
		if err != nil || all[0].Type != nbd.NBD_REP_ACK {
			return fmt.Errorf("%v, %w", all, err)
		}
		return closed(c, "abort")
	}},
	{"handshake/abort-with-data", func(s *suite) error {
		return s.option(nbd.NBD_OPT_ABORT, []byte("bye"), nbd.NBD_REP_ACK)
	}},
	{"handshake/list", (*suite).list},
	{"handshake/list-with-data", func(s *suite) error {
		return s.option(nbd.NBD_OPT_LIST, []byte("x"), nbd.NBD_REP_ERR_INVALID)
	}},
	{"handshake/info-and-go-agree", (*suite).infoAndGo},
	{"handshake/info-of-unknown-wishes", func(s *suite) error {
		return s.option(nbd.NBD_OPT_INFO, InfoData(s.Export, 4711, 0xffff), nbd.NBD_REP_ACK)
	}},
	{"handshake/go-to-unknown-export", func(s *suite) error {
		return s.option(nbd.NBD_OPT_GO, InfoData("no such export"), nbd.NBD_REP_ERR_UNKNOWN)
	}},
	{"handshake/go-malformed", func(s *suite) error {
		return s.option(nbd.NBD_OPT_GO, []byte{0, 0, 0, 9, 'a', 0, 0}, nbd.NBD_REP_ERR_INVALID)
	}},
	{"handshake/go-with-too-few-wishes", func(s *suite) error {
		b := InfoData(s.Export)
		b[len(b)-1] = 2
		return s.option(nbd.NBD_OPT_GO, b, nbd.NBD_REP_ERR_INVALID)
	}},
	{"handshake/go-to-long-name", func(s *suite) error {
		return s.option(nbd.NBD_OPT_GO, InfoData(strings.Repeat("n", 5000)), nbd.NBD_REP_ERR_INVALID, nbd.NBD_REP_ERR_UNKNOWN, nbd.NBD_REP_ERR_TOO_BIG)
	}},
	{"handshake/go-to-nul-in-name", func(s *suite) error {
		return s.option(nbd.NBD_OPT_GO, InfoData("a\x00b"), nbd.NBD_REP_ERR_INVALID, nbd.NBD_REP_ERR_UNKNOWN)
	}},
	{"handshake/bad-option-magic-drops", func(s *suite) error {
		c, err := s.greet()
		if err != nil {
			return err
		}
		c.Write(make([]byte, 16))
		return closed(c, "an option without its magic")
	}},
	{"handshake/export-name", func(s *suite) error { return s.exportName(nbd.NBD_FLAG_C_FIXED_NEWSTYLE, 134) }},
	{oldClientCase, func(s *suite) error { return s.exportName(0, 134) }},
	{"handshake/export-name-no-zeroes", func(s *suite) error { return s.exportName(3, 10) }},
	{"handshake/export-name-unknown-drops", func(s *suite) error {
		c, err := s.greet()
		if err != nil {
			return err
		}
		c.Write(Option(nbd.NBD_OPT_EXPORT_NAME, []byte("no such export")))
		return closed(c, "an unknown export")
	}},
	{"handshake/structured", func(s *suite) error {
		return s.offered(nbd.NBD_OPT_STRUCTURED_REPLY, nil, nbd.NBD_REP_ACK)
	}},
	{"handshake/structured-with-data", func(s *suite) error {
		return s.offered(nbd.NBD_OPT_STRUCTURED_REPLY, []byte("x"), nbd.NBD_REP_ERR_INVALID)
	}},
	{"handshake/extended", func(s *suite) error {
		return s.offered(nbd.NBD_OPT_EXTENDED_HEADERS, nil, nbd.NBD_REP_ACK)
	}},
	{"handshake/extended-with-data", func(s *suite) error {
		return s.offered(nbd.NBD_OPT_EXTENDED_HEADERS, []byte("x"), nbd.NBD_REP_ERR_INVALID)
	}},
	{"handshake/structured-after-extended", func(s *suite) error {
		return s.offeredIn(extended, nbd.NBD_OPT_STRUCTURED_REPLY, nil, nbd.NBD_REP_ERR_EXT_HEADER_REQD)
	}},
}

// option sends an option and fails unless it is answered with one of the replies
// in the end, and the session goes on.
func (s *suite) option(option uint32, data []byte, replies ...uint32) error {
	return s.optionIn(simple, option, data, replies...)
}

// offered is option of what a server may leave out.
func (s *suite) offered(option uint32, data []byte, replies ...uint32) error {
	return s.offeredIn(simple, option, data, replies...)
}

func (s *suite) offeredIn(f form, option uint32, data []byte, replies ...uint32) error {
	err := s.optionIn(f, option, data, replies...)
	if u, ok := err.(*unwanted); ok && u.got == nbd.NBD_REP_ERR_UNSUP {
		return notOffered(fmt.Sprintf("option %d", option))
	}
	return err
}

// unwanted is another reply to an option than it deserves.
type unwanted struct {
	option, got uint32
	want        []uint32
}

func (u *unwanted) Error() string {
	return fmt.Sprintf("option %d is answered %#x, want %#x", u.option, u.got, u.want)
}

func (s *suite) optionIn(f form, option uint32, data []byte, replies ...uint32) error {
	c, err := s.negotiating(f)
	if err != nil {
		return err
	}
	all, err := c.Haggle(option, data)
	if err != nil {
		return err
	}
	last := all[len(all)-1]
	wanted := false
	for _, r := range replies {
		wanted = wanted || r == last.Type
	}
	if !wanted {
		return &unwanted{option, last.Type, replies}
	}
	if option == nbd.NBD_OPT_ABORT {
		return nil
	}
	if _, err := c.Go(s.Export); err != nil {
		return fmt.Errorf("go afterwards: %w", err)
	}
	return nil
}

// negotiating returns a connection on which the form has been agreed on.
func (s *suite) negotiating(f form) (*Client, error) {
	c, err := s.greet()
	if err != nil || f == simple {
		return c, err
	}
	if f == structured {
		err = c.UseStructured()
	} else {
		err = c.UseExtended()
	}
	if refused, ok := err.(*OptionError); ok && refused.Type == nbd.NBD_REP_ERR_UNSUP {
		return nil, notOffered(f.String())
	}
	return c, err
}

func (s *suite) list() error {
	c, err := s.greet()
	if err != nil {
		return err
	}
	all, err := c.Haggle(nbd.NBD_OPT_LIST, nil)
	if err != nil {
		return err
	}
	if all[len(all)-1].Type == nbd.NBD_REP_ERR_POLICY {
		return notOffered("a list of its exports")
	}
	want := append([]byte{0, 0, 0, byte(len(s.Export))}, s.Export...)
	for _, r := range all {
		if r.Type == nbd.NBD_REP_SERVER && bytes.HasPrefix(r.Data, want) {
			return nil
		}
	}
	return fmt.Errorf("export %q is not among %d replies", s.Export, len(all))
}

func (s *suite) infoAndGo() error {
	c, err := s.greet()
	if err != nil {
		return err
	}
	all, err := c.Haggle(nbd.NBD_OPT_INFO, InfoData(s.Export, nbd.NBD_INFO_NAME, nbd.NBD_INFO_DESCRIPTION, nbd.NBD_INFO_BLOCK_SIZE))
	if err != nil {
		return err
	}
	info, err := ParseInfo(all)
	if err != nil {
		return err
	}
	then, err := c.Go(s.Export)
	if err == nil && info != then {
		err = fmt.Errorf("info tells %+v, go %+v", info, then)
	}
	return err
}

func (s *suite) exportName(flags uint32, size int) error {
	c, err := s.greetWith(flags)
	if err != nil {
		return err
	}
	c.Write(Option(nbd.NBD_OPT_EXPORT_NAME, []byte(s.Export)))
	b := make([]byte, size)
	if _, err := io.ReadFull(c, b); err != nil {
		return err
	}
	if size > 10 && !bytes.Equal(b[10:], make([]byte, 124)) {
		return fmt.Errorf("the zeros are % x", b[10:])
	}
	if r, err := c.Do(Read(1, 0, 512)); err != nil || r.Err != 0 {
		return fmt.Errorf("read afterwards: %v, %w", r.Err, err)
	}
	return nil
}
