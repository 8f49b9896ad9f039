// Package ublk makes block devices /dev/ublkbN of Linux 6.4 and later that this process
// serves, with the driver ublk_drv.
//
//	control.go   devices are made, started, stopped, revived (/dev/ublk-control)
//	server.go    the queues of a device, a thread each
//	queue.go     the data path
//	uapi.go      the driver's structures (include/uapi/linux/ublk_cmd.h)
//	ring.go      io_uring, by which the driver is spoken to
//
// A request is a command that the server has given the driver beforehand, one a tag, and
// that completes when there is a request. Its answer and the next such command are one.
// Many requests need one system call, and none needs a socket or a kernel thread.
//
// # Life of a device
//
//	     Add            Start                   Stop            Delete
//	---------> added ---------> live <-------------+---> dead --------->
//	                             | server ends     |
//	                             v                 |
//	                          quiesced ------------+
//	                             ^ BeginRecovery, NewServer, EndRecovery: live again
//
// While a device is quiesced requests wait, without any end. Those that the server had
// and had not answered come again: it is gone by then, the driver sees to it, so none is
// executed after its second copy.
package ublk
