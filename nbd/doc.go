// Package nbd is a Network Block Device server: the fixed newstyle handshake
// and the transmission phase of the NBD protocol document (proto.md of the
// nbd project), over any [net.Conn]. It knows a [Backend], never what is
// behind it.
//
// # A connection
//
//	client                         server                  file
//	  |  <-- greeting ---------------|                      handshake.go
//	  |  --- client flags ---------->|
//	  |  --- option ---------------->|   one at a time,
//	  |  <-- option replies ---------|   until GO or EXPORT_NAME
//	  |  --- STARTTLS -------------->|   if it wants to          tls.go
//	  |                              |
//	  |  --- request --------------->|   any number in flight   transmission.go
//	  |  <-- reply or chunks --------|
//	  |  --- NBD_CMD_DISC ---------->|
//
// One goroutine serves a connection from greeting to close. It reads into one
// buffer, and decodes, validates and executes requests out of that buffer, in
// order, without handing them to another goroutine. WRITE requests that are
// complete in the buffer one after the other become one [Backend.WriteGroup].
// Replies gather in a second buffer, which is sent when the read buffer holds
// no complete request any more. So a client that keeps n requests in flight
// costs about one read and one write for n requests, and a client that sends
// one at a time waits for no other goroutine to wake. Calls of a plain socket do not
// wait, and most of them pass Go's scheduler by (internal/socket); waiting is the
// runtime's.
//
// # What a client can cost
//
// A slow client holds its own goroutine and nothing of the backend: no backend
// call is under way while the server waits for a socket. The buffers
// (workspace.go) are its own only from the first byte of a message until all is
// answered; while it is idle it has none. A client that stops in between loses its
// connection after [Options].WriteTimeout, and where the large buffers of all of
// them together reach MaxMemory, everybody goes on in small ones: slower, but
// nobody waits for anybody. Deadlines are set when a read or write has to wait
// (wire.go), so a client that keeps the server busy costs no timer. One that is quick
// is looked out for before the connection sleeps, where that takes nothing from
// anybody (busypoll.go).
// Connections are counted, in total and for a peer (peer.go), and the rates of an
// export are shared by all its clients (limits.go).
//
// The exports of a running server may change under the clients of all that stay:
// [Server.SetExports].
//
// # What is spoken
//
// Options: EXPORT_NAME, ABORT, LIST, STARTTLS, INFO and GO, with the information types
// EXPORT, NAME, DESCRIPTION and BLOCK_SIZE; STRUCTURED_REPLY, EXTENDED_HEADERS,
// LIST_META_CONTEXT and SET_META_CONTEXT (terms.go, meta.go). Every other option
// is answered NBD_REP_ERR_UNSUP. Commands: READ, WRITE, DISC, FLUSH, TRIM, CACHE,
// WRITE_ZEROES and BLOCK_STATUS, with compact or extended headers, and simple
// replies or chunks (reply.go). NBD_CMD_FLAG_FUA is accepted on all. The table
// in docs/protocol.md has the details.
//
// # Errors
//
// validate.go decides about every request before the backend sees it, and
// errno.go turns what a backend returns into one of the eight error numbers
// that the protocol knows. An error a request runs into is that request's
// reply and leaves the connection alone. The connection is closed, without a
// reply, only where the stream cannot be followed any more (bad magic, a
// payload beyond [maxDiscard], an error after the first bytes of a READ have
// been sent) or where the document demands it.
//
// # Panics
//
// A panic in a backend is not recovered: a failed assertion stops the process.
// Connections run with [runtime/debug.SetPanicOnFault], so that a backend on
// mapped memory can catch the fault of a bad page itself.
package nbd
