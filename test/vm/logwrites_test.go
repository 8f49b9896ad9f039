package vmtest

import (
	"fmt"
	"regexp"
	"strings"
	"testing"
)

// Goal: at each point at which a filesystem was told that all before is durable, it
// is clean and holds every file synced by then. That takes a server that offers
// FLUSH and FUA and keeps their order, and a device on which any prefix of the
// filesystem's writes outlives a crash. Method: dm-log-writes under ext4 and xfs,
// over the kernel's NBD client on our server; its log is carried out, up to one
// flush or FUA after the other, on a second image, which is copied with its server
// stopped in mid-life; the copy is recovered by another server, mounted, compared,
// and checked.
func TestLogWrites(t *testing.T) {
	for _, c := range []struct {
		fs, make, check string
		sector          int
	}{
		{"ext4", "mkfs.ext4 -q -E nodiscard,lazy_itable_init=0,lazy_journal_init=0", "e2fsck -fn", 4096},
		{"xfs", "mkfs.xfs -q -f -K --unsupported", "xfs_repair -n", 512},
	} {
		t.Run(c.fs, func(t *testing.T) {
			needGuest(t)
			m := newMachine(nvdimm(file(t, "log", 128*mib)), nvdimm(file(t, "devdax", 64*mib)))
			m.Tools = []string{"nbd-client", "dmsetup", "mkfs.ext4", "e2fsck", "mkfs.xfs", "xfs_repair"}
			m.Modules = []string{"dm-log-writes", "xfs"}
			out := boot(t, m, daxFunctions+fmt.Sprintf(logWritesScript, c.fs, c.make, c.check, c.sector, logPoints))
			points := regexp.MustCompile(`(?m)^clean at .*$`).FindAllString(out, -1)
			if len(points) != logPoints {
				t.Errorf("%d points, want %d", len(points), logPoints)
			}
			t.Log(strings.Join(points, "\n"))
		})
	}
}

// logPoints is at how many points of the log the filesystem is looked at.
const logPoints = 6

// logWritesScript takes the filesystem, how it is made, how it is checked, the
// sector size, and logPoints.
const logWritesScript = `
fs=%s mkfs='%s' fsck='%s' sector=%d points=%d files=16
set +x
modprobe -r nbd
modprobe nbd nbds_max=32
modprobe dm-log-writes
modprobe $fs
log=/dev/pmem$R0
ndctl create-namespace -f -e namespace$R1.0 -m devdax --map=mem >/dev/null
bttnbd create --sector-size $sector $dax
serve src $dax
connect src /dev/nbd0 $sector
dmsetup create --noudevsync logged --table "0 $(blockdev --getsz /dev/nbd0) log-writes /dev/nbd0 $log"
mark() { dmsetup message logged 0 mark $1; }

$mkfs /dev/dm-0
mark 0
mkdir -p /live /dead /want
mount -t $fs /dev/dm-0 /live
for i in $(seq $files); do
	yes "file $i" | head -c $((i * 5000)) >/want/$i
	mkdir /live/$i
	dd if=/want/$i of=/live/$i/file bs=4k conv=fsync 2>/dev/null
	mark $i
	dd if=/dev/urandom of=/live/churn bs=4k count=$i seek=$((i %% 5)) conv=notrunc 2>/dev/null
	[ $((i %% 3)) != 0 ] || { mv /live/churn /live/$i/churn; rm -r /live/$((i - 2))/churn || true; }
done 2>/dev/null
umount /live
dmsetup remove --noudevsync logged
nbd-client -d /dev/nbd0
kill $pid_src
wait $pid_src
bttcheck --progress never $dax

bttnbd create --size $(cat /sys/bus/dax/devices/${dax##*/}/size) --sector-size $sector /tmp/b.btt
serve b /tmp/b.btt
connect b /dev/nbd1 $sector
guest points $log $points >/tmp/points
from=0 n=2
while read to mark; do
	guest replay /dev/nbd1 $log $from $to
	from=$to
	kill -STOP $pid_b
	cp /tmp/b.btt /tmp/c.btt
	kill -CONT $pid_b
	bttcheck --progress never /tmp/c.btt
	serve c /tmp/c.btt
	connect c /dev/nbd$n $sector
	mount -t $fs /dev/nbd$n /dead
	for i in $(seq $mark); do cmp /want/$i /dead/$i/file; done
	umount /dead
	$fsck /dev/nbd$n >/tmp/fsck 2>&1 || { cat /tmp/fsck; exit 1; }
	nbd-client -d /dev/nbd$n
	kill $pid_c
	wait $pid_c
	echo "clean at entry $to, with $mark files synced"
	n=$((n + 1))
done </tmp/points
nbd-client -d /dev/nbd1
kill $pid_b
wait $pid_b
`
