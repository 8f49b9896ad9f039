// Package kernel is the Linux side of a device /dev/nbdN: what is asked of the
// kernel, and what it tells. Of /dev/ublkbN it knows what all disks have.
//
//	module.go     the modules nbd and ublk_drv, loaded if they are missing
//	netlink.go    connect, reconnect, disconnect (generic netlink, family "nbd")
//	device.go     what sysfs knows about /dev/nbdN
//	receivers.go  whether it listens on the connections
//	users.go      who uses it: mounts, swap, other devices
//	negotiate.go  the handshake that the kernel leaves to user space
//	memory.go     a process that the kernel waits for when it is out of memory
//
// The kernel speaks transmission alone, with simple replies. A connection is a
// socket that has been through the handshake; the kernel takes a reference of its
// own, so the caller closes its descriptor.
//
// A device outlives its connections: it holds its configuration until it is
// disconnected. When all connections are dead, requests wait for new ones for the
// dead-connection timeout. A request that was on its way when its connection died
// is sent again only once the request timeout has passed since it was sent first.
package kernel
