package nbd

import (
	"fmt"
	"strings"
)

// optMetaContext lists the metadata contexts that match the queries, each in a
// reply of its own, and for SET selects them.
//
//	0             4      4+n               8+n
//	+-------------+------+-----------------+--------------+-------+-----
//	| name length | name | number of       | query length | query | …
//	|             |      | queries         |              |       |
//	+-------------+------+-----------------+--------------+-------+-----
//
// LIST takes the name of a namespace, "base:", for all in it, and no query at
// all for everything. SET takes full names alone. Queries that match nothing are
// ignored, as those to unknown namespaces must be.
func (c *conn) optMetaContext(data []byte) error {
	set := c.option == NBD_OPT_SET_META_CONTEXT
	if set {
		c.agreed.contexts, c.agreed.contextsFor = 0, "" // also when what follows fails
		if !c.agreed.chunks() {
			return c.refuse(NBD_REP_ERR_INVALID, "NBD_OPT_STRUCTURED_REPLY or NBD_OPT_EXTENDED_HEADERS must come first")
		}
	}
	r := reader{b: data}
	name := r.bytes(r.uint32())
	found, valid := matchQueries(&r, set)
	if !valid || !validName(name) {
		return c.refuse(NBD_REP_ERR_INVALID, "malformed option data")
	}
	if c.s.lookup(c, name) == nil {
		return c.refuse(NBD_REP_ERR_UNKNOWN, fmt.Sprintf("no export %.80q", name))
	}
	for i, ctx := range contextTable {
		if found&(1<<i) == 0 {
			continue
		}
		id := uint32(0) // reserved in LIST
		if set {
			id = uint32(i) + 1
		}
		b := append(be.AppendUint32(nil, id), ctx.namespace+ctx.leaf...)
		if err := c.optReply(NBD_REP_META_CONTEXT, b); err != nil {
			return err
		}
	}
	if set {
		c.agreed.contexts, c.agreed.contextsFor = found, string(name)
	}
	return c.optReply(NBD_REP_ACK, nil)
}

// matchQueries reads the number of queries and the queries, and returns the
// contexts that they match; valid is false when they are malformed.
func matchQueries(r *reader, set bool) (found contexts, valid bool) {
	n := r.uint32()
	if n == 0 && !set {
		found = 1<<len(contextTable) - 1
	}
	for ; n > 0 && !r.bad; n-- {
		query := r.bytes(r.uint32())
		if !validName(query) {
			return 0, false
		}
		for i, ctx := range contextTable {
			leaf, ok := strings.CutPrefix(string(query), ctx.namespace)
			if ok && (leaf == ctx.leaf || leaf == "" && !set) {
				found |= 1 << i
			}
		}
	}
	return found, r.done()
}
