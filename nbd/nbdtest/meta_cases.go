package nbdtest

import (
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/bttnbd/bttnbd/nbd"
)

const (
	list = nbd.NBD_OPT_LIST_META_CONTEXT
	set  = nbd.NBD_OPT_SET_META_CONTEXT

	allocation = "base:allocation"
)

var metaCases = []testCase{
	{"meta/list-all", func(s *suite) error { return s.contexts(list, true) }},
	{"meta/list-namespace", func(s *suite) error { return s.contexts(list, true, "base:") }},
	{"meta/list-one", func(s *suite) error { return s.contexts(list, true, allocation) }},
	{"meta/list-unknown-namespace", func(s *suite) error { return s.contexts(list, false, "x-nobody:has-this") }},
	{"meta/list-unknown-leaf", func(s *suite) error { return s.contexts(list, false, "base:nothing") }},
	{"meta/set", func(s *suite) error { return s.contexts(set, true, "x-nobody:has-this", allocation, allocation) }},
	{"meta/set-nothing", func(s *suite) error { return s.contexts(set, false) }},
	{"meta/set-namespace-selects-nothing", func(s *suite) error { return s.contexts(set, false, "base:") }},
	{"meta/set-unknown-namespace", func(s *suite) error { return s.contexts(set, false, "x-nobody:has-this") }},
	{"meta/set-before-structured", func(s *suite) error {
		return s.offered(set, MetaData(s.Export, allocation), nbd.NBD_REP_ERR_INVALID, nbd.NBD_REP_ERR_EXT_HEADER_REQD)
	}},
	{"meta/unknown-export", func(s *suite) error {
		return s.offeredIn(structured, set, MetaData("no such export", allocation), nbd.NBD_REP_ERR_UNKNOWN)
	}},
	{"meta/malformed-name", func(s *suite) error {
		return s.offeredIn(structured, set, []byte{0, 0, 0, 99, 'a', 0, 0, 0, 0}, nbd.NBD_REP_ERR_INVALID)
	}},
	{"meta/malformed-query", func(s *suite) error {
		b := MetaData(s.Export, allocation)
		return s.offeredIn(structured, set, b[:len(b)-1], nbd.NBD_REP_ERR_INVALID)
	}},
	{"meta/fewer-queries-than-told", func(s *suite) error {
		b := MetaData(s.Export)
		b[len(b)-1] = 3
		return s.offeredIn(structured, list, b, nbd.NBD_REP_ERR_INVALID)
	}},
	{"meta/set-replaces", func(s *suite) error {
		return s.statusAfter(func(c *Client) { c.MetaContexts(set, s.Export) }, nbd.NBD_EINVAL)
	}},
	{"meta/failed-set-replaces", func(s *suite) error {
		return s.statusAfter(func(c *Client) { c.MetaContexts(set, "no such export", allocation) }, nbd.NBD_EINVAL)
	}},
	{"meta/list-replaces-nothing", func(s *suite) error {
		return s.statusAfter(func(c *Client) { c.MetaContexts(list, s.Export) }, 0)
	}},
	{"meta/set-survives-unknown-option", func(s *suite) error {
		return s.statusAfter(func(c *Client) { c.Haggle(0xfffffff0, nil) }, 0)
	}},
}

// contexts fails unless an option tells of base:allocation, or tells of nothing
// from base.
func (s *suite) contexts(option uint32, found bool, queries ...string) error {
	c, err := s.negotiating(structured)
	if err != nil {
		return err
	}
	ids, err := c.MetaContexts(option, s.Export, queries...)
	if err != nil {
		return unsupported(err)
	}
	_, told := ids[allocation]
	if told != found || !found && len(ids) > 0 {
		return fmt.Errorf("%q finds %v", queries, slices.Collect(maps.Keys(ids)))
	}
	if _, err := c.Go(s.Export); err != nil {
		return fmt.Errorf("go afterwards: %w", err)
	}
	return nil
}

// statusAfter fails unless a BLOCK_STATUS ends with the error when something was
// done after base:allocation had been selected.
func (s *suite) statusAfter(do func(*Client), want nbd.Errno) error {
	c, err := s.negotiating(structured)
	if err != nil {
		return err
	}
	if _, err := c.MetaContexts(set, s.Export, allocation); err != nil {
		return unsupported(err)
	}
	do(c)
	if _, err := c.Go(s.Export); err != nil {
		return err
	}
	a, err := c.Ask(Command(nbd.NBD_CMD_BLOCK_STATUS, 1, 0, 4096))
	if err == nil && a.Err != want {
		err = fmt.Errorf("block status: %v, want %v", a.Err, want)
	}
	return err
}

// unsupported is err, as something not offered if it says so.
func unsupported(err error) error {
	var refused *OptionError
	if errors.As(err, &refused) && refused.Type == nbd.NBD_REP_ERR_UNSUP {
		return notOffered("metadata contexts")
	}
	return err
}
