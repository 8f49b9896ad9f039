package nbd

import (
	"crypto/tls"
	"time"

	"github.com/rs/zerolog"
)

// What holds where [Options] leave their zero.
const (
	DefaultHandshakeTimeout = 30 * time.Second
	DefaultWriteTimeout     = 60 * time.Second
	DefaultBusyPoll         = 50 * time.Microsecond
	DefaultMaxConnections   = 1024
	DefaultMaxMemory        = 256 << 20
)

// MaxBusyPoll bounds Options.BusyPoll: for so long a connection that polls is blind to
// its end.
const MaxBusyPoll = time.Millisecond

// Options of a [Server]. The zero value is good.
type Options struct {
	// Log receives connections at debug level, and what went wrong with them
	// and with accepting at warn level. The zero Logger is silent.
	Log zerolog.Logger

	// TLS is what NBD_OPT_STARTTLS answers with; nil refuses it. Versions
	// below 1.2 are never spoken. Who may connect is the Config's business:
	// ClientAuth, ClientCAs, VerifyConnection; certificates that change while
	// serving come from GetCertificate or GetConfigForClient.
	TLS *tls.Config

	// TLSRequired refuses everything but STARTTLS and ABORT until TLS is on. It
	// needs TLS.
	TLSRequired bool

	// Admit, if not nil, says whether a client may know of an export. For others
	// it does not exist. tls is nil in clear. Admit is called from any goroutine
	// and must not call the Server.
	Admit func(export string, tls *tls.ConnectionState) bool

	// HandshakeTimeout bounds the time from connecting to transmission, TLS
	// included. 0 means DefaultHandshakeTimeout; a negative one is no bound.
	HandshakeTimeout time.Duration

	// IdleTimeout ends a connection in transmission that has sent nothing for
	// so long. 0 is no bound: an idle client is a good client, and costs a
	// socket and a goroutine.
	IdleTimeout time.Duration

	// WriteTimeout bounds how long a client may hold memory of the server
	// without moving on: what is being sent to it, at most 260 KiB, and what
	// it has begun to send, at most 1 MiB, must be through within that time.
	// 0 means DefaultWriteTimeout; a negative one is no bound.
	WriteTimeout time.Duration

	// BusyPoll is for how long a connection whose client goes on quickly looks at
	// its socket before it sleeps, MaxBusyPoll at most. It does so only where the machine
	// has a processor to spare. 0 means DefaultBusyPoll; a negative one is none.
	BusyPoll time.Duration

	// MaxConnections bounds the connections of the server. Where all are
	// taken, a new one takes the place of the one that has been longest in its
	// handshake, and is closed at once when all are in transmission. 0 means
	// DefaultMaxConnections; a negative one is no bound.
	MaxConnections int

	// MaxConnectionsPerPeer bounds the connections of one peer: an IPv4
	// address, the /64 of an IPv6 address, the user of a local process, or a
	// vsock CID. One too many is closed at once. 0 or less is no bound.
	MaxConnectionsPerPeer int

	// MaxMemory bounds the bytes of all large buffers together. Where they are
	// used up, connections go on in buffers of 9 KiB: slower, and never
	// waiting for one another. A connection over TCP or a unix socket that waits
	// for its client's next request has no buffers. 0 means DefaultMaxMemory; a
	// negative one leaves small buffers alone.
	MaxMemory int64

	// Latency has [Server.Stats] tell how long requests took, for two looks at the
	// clock a batch of requests.
	Latency bool
}

// withDefaults returns o with its zeros filled in.
func (o Options) withDefaults() Options {
	if o.HandshakeTimeout == 0 {
		o.HandshakeTimeout = DefaultHandshakeTimeout
	}
	if o.WriteTimeout == 0 {
		o.WriteTimeout = DefaultWriteTimeout
	}
	if o.BusyPoll == 0 {
		o.BusyPoll = DefaultBusyPoll
	}
	if o.MaxConnections == 0 {
		o.MaxConnections = DefaultMaxConnections
	}
	if o.MaxMemory == 0 {
		o.MaxMemory = DefaultMaxMemory
	}
	if o.TLS != nil {
		o.TLS = o.TLS.Clone()
		o.TLS.MinVersion = max(o.TLS.MinVersion, tls.VersionTLS12)
		o.TLS.DynamicRecordSizingDisabled = true // it is for web pages
	}
	return o
}
