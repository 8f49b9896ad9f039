// Package socket calls sockets without telling Go's scheduler each time.
//
// Before a system call, [syscall.Read] marks its thread as one that may be away for
// long, and wakes the runtime's monitor thread (sysmon) if that sleeps because nothing
// runs. The monitor then looks around, every 20 µs at first, until nothing runs again.
// A server that answers one request at a time so wakes a second thread with its own
// work. Without that, a request of 4 KiB takes 9 to 10 µs of CPU instead of 13
// (docs/performance.md).
//
// A call that never waits needs none of it. So the calls here pass MSG_DONTWAIT,
// whatever the mode of the socket, and are bare. But somebody has to look after
// goroutines that do not end: where each processor has one, only the monitor sees to
// it that the others get their turn. So every few calls without a wait between them
// ([Calls]) one is made as usual.
//
// Who knows that something comes soon may look again and again instead of waiting
// ([Again], [Pause]).
package socket
