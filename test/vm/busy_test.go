package vmtest

import "testing"

// Goal: where processor time is short, so that the kernel's threads come late, it
// listens all the same on every connection of a device that attach has made or revived:
// no request waits for its timeout. And a server ends when its device is detached.
//
// The kernel's thread that makes threads gets what others leave; Linux 6.1 then reads
// from two of four connections, if it is given them at once.
func TestAttachOnBusyMachine(t *testing.T) {
	needGuest(t)
	m := newMachine()
	m.QEMU = []string{"-smp", "4"}
	boot(t, m, deviceFunctions+`
for i in 0 1; do bttnbd create --size 20M --sector-size 512 /tmp/$i.btt; done
modprobe nbd
set +x
for i in 1 2 3; do (while :; do :; done) & done
set -x
renice -n 19 -p 2

listening() { cat /proc/[0-9]*/comm 2>/dev/null | grep -c "+$1-recv"; }
check() {
	[ $(listening $1) = 4 ]
	for cpu in 0 1 2 3; do taskset -c $cpu dd if=/dev/$1 of=/dev/null bs=4k count=4 iflag=direct; done
}
for i in 0 1; do
	attach a --connections 4 --timeout 20s /dev/nbd$i /tmp/$i.btt 2>/tmp/attach.log
	check nbd$i
done
kill -9 $(server_of /dev/nbd0)
until [ "$(state_of /dev/nbd0)" = dead ]; do usleep 10000; done
attach a --timeout 20s auto /tmp/0.btt 2>/tmp/attach.log
[ $a = /dev/nbd0 ]
check nbd0
for i in 0 1; do bttnbd detach /dev/nbd$i; done
[ -z "$(ls /run/bttnbd-attach)" ]
for i in 0 1; do clean /tmp/$i.btt; done
if dmesg | grep 'timed out'; then exit 1; fi
`)
}
