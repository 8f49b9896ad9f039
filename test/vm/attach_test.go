package vmtest

import (
	"strings"
	"testing"

	"github.com/bttnbd/bttnbd/internal/vm"
)

// filesystemTools are those that make and judge filesystems.
var filesystemTools = []string{"mkfs.ext4", "e2fsck", "mkfs.xfs", "xfs_repair", "mkfs.btrfs", "btrfs", "sfdisk", "blkid", "lsblk", "wipefs", "fio"}

// attachMachine is a machine with filesystems.
func attachMachine(nvdimms ...vm.NVDIMM) *vm.Machine {
	m := newMachine(nvdimms...)
	m.Tools = filesystemTools
	m.Modules = []string{"xfs", "btrfs"}
	return m
}

// attachFunctions hide what is different with each filesystem.
//
//	attach NAME ARGUMENTS…   sets NAME to the device
//	make FS DEVICE
//	judge FS DEVICE          fails on the smallest fault
const attachFunctions = attachModules + deviceFunctions

const attachModules = `
modprobe libcrc32c
modprobe xfs
modprobe btrfs
# xfsprogs wants 300 MiB, but for its own tests
export TEST_DIR=1 TEST_DEV=1 QA_CHECK_FS=1
`

const deviceFunctions = `
attach() {
	name=$1
	shift
	bttnbd attach "$@" >/tmp/attached
	eval $name=$(cat /tmp/attached)
	[ "$(wc -l </tmp/attached)" = 1 ]
	[ -b $(cat /tmp/attached) ]
}
make() {
	case $1 in
	ext4) mkfs.ext4 -q $2 ;;
	xfs) mkfs.xfs -q -f $2 ;;
	btrfs) mkfs.btrfs -q -f $2 ;;
	esac
}
judge() {
	case $1 in
	ext4) e2fsck -fn $2 ;;
	xfs) xfs_repair -n $2 ;;
	btrfs) btrfs check -p $2 ;;
	esac
}
server_of() { bttnbd list --json | tr -d ' ,"' | awk -F: -v d=$1 '$1 == "device" { on = $2 == d } on && $1 == "pid" { print $2 }'; }
state_of() { bttnbd list | awk -v d=$1 '$1 == d { print $3 }'; }
clean() { bttcheck --progress never "$1"; }

# On the filesystem at /a, until /tmp/stop is there, as $log and $fio: a load that knows
# what was acknowledged, and one that verifies all it reads.
begin_load() {
	dd if=/dev/zero of=/a/log bs=1M count=16
	sync
	truncate -s 64K /tmp/counters
	guest log /a/log /tmp/counters 4096 300 4 & log=$!
	while [ ! -e /tmp/stop ]; do
		fio --name=v --directory=/a --size=1m --rw=randwrite --bs=4k --direct=1 --verify=crc32c --verify_backlog=16 --verify_fatal=1 \
			>/tmp/fio.log || { cat /tmp/fio.log; exit 1; }
	done & fio=$!
}
progress() { guest progress /tmp/counters 4 200; }
now() { cut -d' ' -f1 /proc/uptime; }
`

// Goal: one command makes an image a block device, on a DAX file, on device DAX and
// on a file in the page cache; ext4, xfs and btrfs live on it, with trim that reaches
// the map; partitions work; and the device goes when it is detached, no earlier.
func TestAttachFilesystems(t *testing.T) {
	needGuest(t)
	m := attachMachine(nvdimm(file(t, "fsdax", 192*mib)), nvdimm(file(t, "devdax", 160*mib)), nvdimm(file(t, "plain", 192*mib)))
	out := boot(t, m, attachFunctions+`
ndctl create-namespace -f -e namespace$R0.0 -m fsdax --map=mem
ndctl create-namespace -f -e namespace$R1.0 -m devdax --map=mem
mkdir /dax /plain /a /b /c
mkfs.ext4 -q -b 4096 /dev/pmem$R0
mount -t ext4 -o dax /dev/pmem$R0 /dax
mkfs.ext4 -q -b 4096 /dev/pmem$R2
mount -t ext4 /dev/pmem$R2 /plain
bttnbd create --size 128M /dax/a.btt
bttnbd create /dev/dax$R1.0
bttnbd create --size 128M --sector-size 512 /plain/c.btt

[ ! -e /sys/module/nbd ]
attach a --timeout 30s auto /dax/a.btt
attach b --timeout 30s --connections 1 auto /dev/dax$R1.0
attach c --log-level debug /dev/nbd7 /plain/c.btt
[ $c = /dev/nbd7 ]
grep '"durability":"dax"' /run/bttnbd-attach/${a#/dev/}.log
grep '"durability":"dax"' /run/bttnbd-attach/${b#/dev/}.log
grep '"durability":"msync"' /run/bttnbd-attach/nbd7.log
[ $(cat /sys/block/${a#/dev/}/queue/logical_block_size) = 4096 ]
[ $(cat /sys/block/nbd7/queue/logical_block_size) = 512 ]
[ $(cat /sys/block/nbd7/queue/max_sectors_kb) = 4096 ]
for i in "xfs $a /a" "btrfs $b /b" "ext4 $c /c"; do
	set -- $i
	make $1 $2
	[ "$(/usr/bin/blkid -o value -s TYPE $2)" = $1 ] # busybox has one, too
	mount -t $1 $2 $3
	fio --name=v --directory=$3 --size=4m --rw=randwrite --bs=4k --direct=1 --iodepth=4 --ioengine=psync --fsync=64 \
		--verify=crc32c --verify_fatal=1 --do_verify=1 >/tmp/fio.log || { cat /tmp/fio.log; exit 1; }
	for f in 1 2 3; do cp /usr/bin/guest $3/$f; done
	rm $3/2
	sync
	fstrim $3
	must_fail bttnbd detach $2 2>/tmp/detach.log
	grep "is mounted on $3" /tmp/detach.log
	umount $3
	judge $1 $2
	mount -t $1 $2 $3
	for f in 1 3; do cmp /usr/bin/guest $3/$f; done
	umount $3
done
[ $(bttnbd list | grep -c alive) = 3 ]

# the server is there when memory is short
pid=$(server_of $a)
[ $(cat /proc/$pid/oom_score_adj) = -1000 ]
[ $(awk '$1 == "VmLck:" { print $2 }' /proc/$pid/status) -gt 4096 ]
bttnbd list --json

# the image is taken, and so is the device
must_fail bttnbd attach auto /dax/a.btt 2>/tmp/again.log
grep "attached as $a already" /tmp/again.log
must_fail bttnbd attach $a /plain/c.btt
must_fail bttcheck /dax/a.btt

# trim reaches the map, where there can be zero entries
dd if=/dev/urandom of=$a bs=1M count=8 oflag=direct
blkdiscard $a
dd if=$a bs=1M count=8 iflag=direct | tr -d '\0' | wc -c | grep -x 0

# partitions
echo '1M,32M
,' | sfdisk -q $a
until [ -b ${a}p2 ]; do usleep 10000; done
mkfs.ext4 -q ${a}p2
mount -t ext4 ${a}p2 /a
must_fail bttnbd detach $a 2>/tmp/detach.log
grep "${a}p2 is mounted on /a" /tmp/detach.log
lsblk -bnro NAME,TYPE,SIZE,LOG-SEC,MOUNTPOINT $a >/tmp/lsblk
cat /tmp/lsblk
n=${a#/dev/}
grep -x "$n disk $(($(cat /sys/block/$n/size) * 512)) 4096 " /tmp/lsblk
grep -x "${n}p1 part 33554432 4096 " /tmp/lsblk
grep "^${n}p2 part .* 4096 /a$" /tmp/lsblk
umount /a

# signatures: found, named, and removed from the device itself
mkfs.ext4 -q -F -L data -U 01234567-89ab-cdef-0123-456789abcdef ${a}p2
/usr/bin/blkid ${a}p2 | grep 'LABEL="data" UUID="01234567-89ab-cdef-0123-456789abcdef" .* TYPE="ext4"'
[ "$(wipefs -n ${a}p2 -O TYPE,LABEL | tail -n 1 | tr -s ' ')" = "ext4 data" ]
wipefs -q -a ${a}p2
[ -z "$(wipefs -n ${a}p2)" ]
[ -z "$(/usr/bin/blkid -p -o value -s TYPE ${a}p2)" ]
wipefs -n $a | grep dos
wipefs -q -a $a
[ ! -e ${a}p2 ]
[ -z "$(wipefs -n $a)" ]

# swap
mkswap $b
swapon $b
must_fail bttnbd detach $b 2>/tmp/detach.log
grep 'is swap' /tmp/detach.log
swapoff $b

for d in $a $b $c; do bttnbd detach $d; done
must_fail bttnbd detach $a
[ -z "$(ls /run/bttnbd-attach)" ]
clean /dax/a.btt
clean /dev/dax$R1.0
clean /plain/c.btt
if dmesg | grep 'I/O error'; then exit 1; fi
if dmesg | grep 'timed out'; then exit 1; fi

# read-only, and the image is not changed
cp /plain/c.btt /plain/c.old
attach c --read-only auto /plain/c.btt
must_fail dd if=/dev/zero of=$c bs=4k count=1 oflag=direct
mount -t ext4 -o ro $c /c
cmp /usr/bin/guest /c/1
umount /c
bttnbd detach $c
cmp /plain/c.btt /plain/c.old

# another server's export
bttnbd serve --listen unix:/tmp/s /plain/c.btt >/tmp/uri 2>/tmp/serve.log &
until [ -s /tmp/uri ]; do usleep 10000; done
attach d auto "$(cat /tmp/uri)"
bttnbd list
mount -t ext4 $d /c
cmp /usr/bin/guest /c/1
umount /c
bttnbd detach $d
kill $!
wait $!
`)
	if n := strings.Count(out, `"state": "alive"`); n != 3 {
		t.Errorf("list --json has %d devices alive", n)
	}
}
