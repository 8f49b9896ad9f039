// Package attach keeps an image, or an export of another server, attached as
// /dev/nbdN.
//
//	service.go   the life of a device: connected or revived, kept, let go
//	choose.go    which device: the one asked for, a free one, or the one that waits
//	image.go     an image, served in this process over socket pairs
//	link.go      one such connection, which ends between two requests
//	remote.go    an export of another server
//	receivers.go connections, so that the kernel listens on each
//	control.go   hand-over to another process
//	state.go     what is remembered in /run/bttnbd-attach
//	waiting.go   which device waits for an image that somebody is about to write to
//	ublk.go      all of this, but remotes and hand-over, for /dev/ublkbN
//	ublklist.go  which of those there are, and how they end
//
// # Who outlives whom
//
//	filesystem ── /dev/nbdN ── connections ── this process ── image
//
// The device and what is mounted on it outlive this process. When it dies, its
// ends of the connections close, and requests wait in the kernel. Its successor
// finds the device by the backend identifier, the UUID of the BTT, and gives it new
// connections. In a hand-over the connections themselves are passed on, each at
// the end of a request: the kernel notices nothing.
//
// # No request twice
//
// A request without an answer is sent again by the kernel, on another connection
// if there is one. The first copy must not be executed after the second: by then
// newer data may be in its place. So what came in on a connection goes no further
// while another one, which the kernel has given up, is still being served
// (link.fence).
package attach
