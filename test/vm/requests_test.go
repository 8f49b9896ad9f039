package vmtest

import "testing"

// requestFunctions are for what arrives at the server of $device, which serves $image.
//
//	zeros        entries of the map that are zero
//	count WHAT   the server's own count, of which /tmp/served has the log
//	filesystem   has ext4 ask for everything that a filesystem asks for
const requestFunctions = `
zeros() { bttnbd info --json $image | tr -d ' ,' | awk -F: '$1 == "\"zero_entries\"" { print $2; exit }'; }
count() { grep 'requests served' /tmp/served | tr -d '"{}' | tr ',' '\n' | awk -F: -v k=$1 '$1 == k { print $2 }'; }
filesystem() {
	mkfs.ext4 -q -E nodiscard $device
	mount -t ext4 $device /mnt
	for i in 1 2 3 4; do dd if=/dev/urandom of=/mnt/$i bs=64K count=8 conv=fsync; done
	rm /mnt/2
	sync
	fstrim /mnt
	umount /mnt
}
`

// Goal: what a filesystem and its tools ask for arrives: flushes and FUA writes are
// counted by the server, and what fstrim, blkdiscard and (from Linux 6.12 on) zeroing
// give back is zero entries in the map afterwards. What the path of an image that is not
// there gets is an answer about that, and not about the kernel module that is missing.
func TestAttachRequestsArrive(t *testing.T) {
	needGuest(t)
	m := attachMachine(nvdimm(file(t, "devdax", 48*mib)))
	m.Tools = append(m.Tools, "blkdiscard") // busybox has one, which cannot zero
	boot(t, m, deviceFunctions+requestFunctions+`
must_fail bttnbd attach auto /tmp/missing.btt 2>/tmp/missing.log
grep '/tmp/missing.btt: no such file' /tmp/missing.log
[ ! -e /sys/module/nbd ]

ndctl create-namespace -f -e namespace$R0.0 -m devdax --map=dev
image=/dev/dax$R0.0 device=/dev/nbd0
bttnbd create $image
# serve for one round of COMMANDS, and print the server's own count
round() {
	rm -f /tmp/ready
	bttnbd attach --foreground /dev/nbd0 $image >/tmp/ready 2>/tmp/served & server=$!
	until [ -s /tmp/ready ]; do usleep 10000; done
	"$@"
	kill $server
	wait $server
	grep 'requests served' /tmp/served
}

fill() { dd if=/dev/urandom of=/dev/nbd0 bs=1M count=32 oflag=direct; }
round fill
none=$(zeros)

round filesystem
[ $(count flush) -ge 4 ]
[ $(count fua) -ge 4 ]
[ $(count trim) -ge 1 ]
[ $(count failures) = 0 ]
[ $(zeros) -gt $((none + 4000)) ]

round fill
[ $(zeros) -lt 4000 ]
discard() { blkdiscard -o 1048576 -l 16777216 /dev/nbd0; }
round discard
[ $(count trim) -ge 1 ]
discarded=$(zeros)
[ $discarded -ge 4096 ]

round fill
zero() { /usr/bin/blkdiscard -z -o 1048576 -l 16777216 /dev/nbd0; }
case $(uname -r) in
6.1.*) ;;
*)
	round zero
	[ $(count write_zeroes) -ge 1 ]
	[ $(zeros) -ge 4096 ]
	;;
esac
clean $image
`)
}
