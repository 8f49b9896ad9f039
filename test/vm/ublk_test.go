package vmtest

import (
	"fmt"
	"regexp"
	"strings"
	"testing"

	"github.com/bttnbd/bttnbd/internal/vm"
)

// ublkMachine is a machine for ublk devices, if its kernel has them: that of Debian 12,
// Linux 6.1, has not, and there tests see to the error.
func ublkMachine(t *testing.T, nvdimms ...vm.NVDIMM) (m *vm.Machine, has bool) {
	t.Helper()
	k, err := vm.FindKernel("")
	if err != nil {
		t.Fatal(err)
	}
	m = attachMachine(nvdimms...)
	m.Tools = append(m.Tools, "blkdiscard") // busybox has one, which cannot zero
	if has = !strings.HasPrefix(k.Release, "6.1."); has {
		m.Modules = append(m.Modules, "ublk_drv")
	}
	return m, has
}

// noUblk is all that there is to see on a kernel without the driver.
const noUblk = deviceFunctions + `
bttnbd create --size 20M /tmp/a.btt
must_fail bttnbd attach --ublk auto /tmp/a.btt 2>/tmp/none.log
grep 'cannot load the kernel module ublk_drv: this kernel has none .*; or attach without --ublk$' /tmp/none.log
[ ! -e /sys/module/nbd ]
must_fail bttnbd detach /dev/ublkb0 2>/tmp/detach.log
grep 'no ublk device is attached: .*/dev/ublk-control' /tmp/detach.log
attach a auto /tmp/a.btt
[ $a = /dev/nbd0 ]
bttnbd detach $a
clean /tmp/a.btt
`

// ublkKills is how often the server is killed: ten times, or more if that is asked for.
func ublkKills(t *testing.T) int { return max(10, kills(t)) }

// Goal: the server of a mounted filesystem on a ublk device is killed again and again, and
// each time attached anew, and nobody notices but for the wait: no error in the kernel's
// log, nothing that was acknowledged is lost, fio finds its checksums. Neither a copy of
// the image nor another one revives the device, nor NBD; and while it waits nobody lays
// its image out anew, grows it, or serves it to others who write. Linux's own BTT finds in
// the image what was written.
func TestUblkRestart(t *testing.T) {
	needGuest(t)
	const size = 80 * mib
	m, has := ublkMachine(t, nvdimm(file(t, "fsdax", 192*mib)), nvdimm(file(t, "raw", size)))
	if !has {
		boot(t, m, noUblk)
		return
	}
	out := bootFor(t, patience+2*patience/3, m, attachFunctions+fmt.Sprintf(`
kills=%d
mkdir /a
# a server that is killed before there is a disk leaves a number that is taken
bttnbd create --size 20M /tmp/left.btt
bttnbd attach --ublk --foreground /dev/ublkb5 /tmp/left.btt >/dev/null &
left=$!
until [ -e /dev/ublkc5 ]; do usleep 2000; done
kill -9 $left
wait $left || true
attach a --ublk /dev/ublkb5 /tmp/left.btt
[ $a = /dev/ublkb5 ]
bttnbd detach $a
ndctl create-namespace -f -e namespace$R0.0 -m fsdax --map=mem
mkfs.ext4 -q -b 4096 /dev/pmem$R0
mount -t ext4 -o dax /dev/pmem$R0 /mnt
bttnbd create --size %d /mnt/a.btt
attach a --ublk --connections 2 auto /mnt/a.btt
[ $a = /dev/ublkb0 ]
[ $(cat /sys/block/ublkb0/queue/logical_block_size) = 4096 ]
grep '"durability":"dax"' /run/bttnbd-attach/ublkb0.log
make ext4 $a
mount -t ext4 $a /a

# the image is taken
must_fail bttnbd attach --ublk auto /mnt/a.btt 2>/tmp/again.log
grep "attached as $a already" /tmp/again.log
must_fail bttnbd attach auto /mnt/a.btt
must_fail bttnbd grow --size 100M /mnt/a.btt
must_fail bttnbd detach $a 2>/tmp/detach.log
grep "is mounted on /a" /tmp/detach.log

begin_load
set +x
for i in $(seq $kills); do
	kill -9 $(server_of $a)
	[ $((i %% 2)) = 0 ] || until [ "$(state_of $a)" = dead ]; do usleep 10000; done
	before=$(now)
	attach b --ublk auto /mnt/a.btt
	[ $b = $a ]
	acked=$(progress)
	echo "kill $i: 200 writes done $(awk "BEGIN { print $(now) - $before }") s after the attach began, $acked acknowledged"
done
set -x

# what is not what the filesystem has seen
kill -9 $(server_of $a)
until [ "$(state_of $a)" = dead ]; do usleep 10000; done
cp /mnt/a.btt /tmp/copy.btt
must_fail bttnbd attach --ublk auto /tmp/copy.btt 2>/tmp/copy.log
grep 'another file with the same UUID' /tmp/copy.log
bttnbd create --size 32M /tmp/other.btt
must_fail bttnbd attach --ublk $a /tmp/other.btt 2>/tmp/other.log
grep "$a is in use: /mnt/a.btt is attached there" /tmp/other.log
must_fail bttnbd attach --ublk /dev/ublkb5 /mnt/a.btt
must_fail bttnbd attach --ublk --read-only auto /mnt/a.btt
must_fail bttnbd attach auto /mnt/a.btt 2>/tmp/nbd.log
grep "$a is attached from this very image" /tmp/nbd.log
# what would take it away from under the device, which waits for it as it is
must_fail bttnbd grow --size 100M /mnt/a.btt 2>/tmp/grow.log
grep "waits for it in this size: .*(bttnbd attach --ublk $a /mnt/a.btt)" /tmp/grow.log
must_fail bttnbd create --force /mnt/a.btt 2>/tmp/create.log
grep "waits for it as it was: .*(bttnbd attach --ublk $a /mnt/a.btt)" /tmp/create.log
must_fail bttnbd serve --run true /mnt/a.btt 2>/tmp/serve.log
grep "waits for it as it was" /tmp/serve.log
bttnbd serve --read-only --run true /mnt/a.btt
bttnbd serve --run true /tmp/copy.btt
must_fail bttnbd detach $a
clean /mnt/a.btt
# an orderly end under a mounted filesystem, and again
attach b --ublk $a /mnt/a.btt
progress
pid=$(server_of $a)
kill $pid
until [ "$(state_of $a)" = dead ]; do usleep 10000; done
attach b --ublk $a /mnt/a.btt
progress

touch /tmp/stop
wait $fio
kill -9 $log
must_fail wait $log
guest verify /a/log /tmp/counters 4096 300 4
cp /usr/bin/guest /a/guest
(cd /a; sha256sum log guest v*) >/tmp/sums
umount /a
judge ext4 $a
bttnbd detach $a
[ -z "$(ls /run/bttnbd-attach)" ]
[ ! -e $a ]
must_fail bttnbd detach $a
clean /mnt/a.btt

# the same image under Linux's own BTT
dd if=/mnt/a.btt of=/dev/pmem$R1 bs=1M
ndctl disable-namespace namespace$R1.0
ndctl enable-namespace namespace$R1.0
mount -t ext4 -o ro /dev/pmem${R1}s /a
(cd /a; sha256sum -c /tmp/sums)
`, ublkKills(t), int64(size)))
	revived := regexp.MustCompile(`(?m)^kill \d+:.*$`).FindAllString(out, -1)
	if len(revived) != ublkKills(t) {
		t.Errorf("%d kills survived, want %d", len(revived), ublkKills(t))
	}
	for _, line := range revived {
		t.Log(line)
	}
}

// Goal: what a filesystem and its tools ask of a ublk device arrives: flushes and FUA are
// counted by the server, and what is discarded or zeroed is zero entries in the map. A
// device without writes takes none. Sectors of 512 are blocks of 512. An image on which a
// server has died is let go by detach, also with a mounted filesystem if that is forced.
func TestUblkRequestsArrive(t *testing.T) {
	needGuest(t)
	m, has := ublkMachine(t, nvdimm(file(t, "devdax", 48*mib)))
	if !has {
		boot(t, m, noUblk)
		return
	}
	boot(t, m, deviceFunctions+requestFunctions+`
ndctl create-namespace -f -e namespace$R0.0 -m devdax --map=dev
image=/dev/dax$R0.0 device=/dev/ublkb3
bttnbd create $image
# serve for one round of COMMANDS, and print the server's own count
round() {
	rm -f /tmp/ready
	bttnbd attach --ublk --foreground $device $image >/tmp/ready 2>/tmp/served & server=$!
	until [ -s /tmp/ready ]; do usleep 10000; done
	"$@"
	kill $server
	wait $server
	grep 'requests served' /tmp/served
	[ $(count failures) = 0 ]
}

fill() { dd if=/dev/urandom of=$device bs=1M count=32 oflag=direct; }
round fill
none=$(zeros)

round filesystem
[ $(count flush) -ge 4 ]
[ $(count fua) -ge 4 ]
[ $(count trim) -ge 1 ]
[ $(zeros) -gt $((none + 4000)) ]

round fill
[ $(zeros) -lt 4000 ]
discard() { blkdiscard -o 1048576 -l 16777216 $device; }
round discard
[ $(count trim) -ge 1 ]
[ $(zeros) -ge 4096 ]

round fill
zero() {
	/usr/bin/blkdiscard -z -o 1048576 -l 16777216 $device
	dd if=$device bs=1M skip=1 count=16 iflag=direct | tr -d '\0' | wc -c | grep -x 0
}
round zero
[ $(count write_zeroes) -ge 1 ]
[ $(zeros) -ge 4096 ]
clean $image

# blocks of 512, verified
bttnbd create --size 40M --sector-size 512 /tmp/small.btt
attach s --ublk --durability process auto /tmp/small.btt
[ $(cat /sys/block/${s#/dev/}/queue/logical_block_size) = 512 ]
fio --name=verify --filename=$s --direct=1 --rw=randwrite --bsrange=512-64k --iodepth=16 --ioengine=libaio --size=8M \
	--verify=crc32c --verify_fatal=1 --output=/tmp/fio || { cat /tmp/fio; exit 1; }
guest fill $s 77
guest compare $s 77
sum() { dd if=$s bs=1M iflag=direct | sha256sum; }
sum >/tmp/sum
bttnbd list --json
[ $(bttnbd list | grep -c alive) = 1 ]
bttnbd detach $s
clean /tmp/small.btt

# read-only, and the image is not changed
cp /tmp/small.btt /tmp/small.old
attach s --ublk --read-only auto /tmp/small.btt
must_fail dd if=/dev/zero of=$s bs=4k count=1 oflag=direct
sum | cmp - /tmp/sum
bttnbd detach $s
cmp /tmp/small.btt /tmp/small.old

# a server that has died: nobody has to wait for another one
attach s --ublk auto /tmp/small.btt
kill -9 $(server_of $s)
until [ "$(state_of $s)" = dead ]; do usleep 10000; done
bttnbd detach $s
[ ! -e $s ]
attach s --ublk auto /tmp/small.btt
mkfs.ext4 -q $s
mount -t ext4 -o ro,noload $s /mnt # which writes nothing at its end
bttnbd detach --force $s
until clean /tmp/small.btt; do usleep 10000; done
umount /mnt
[ -z "$(ls /run/bttnbd-attach)" ]
`)
}

// Goal: the unit of an attached image works with --ublk as docs/attach.md says, within its
// sandbox: it loads the module, and a filesystem goes on while the server is restarted,
// killed, or stopped for a while; at shutdown it is unmounted before the device goes. On a
// kernel without the driver the unit fails, and says why.
func TestSystemdUblk(t *testing.T) {
	needGuest(t)
	m := systemdMachine(t, nvdimm(file(t, "fsdax", 192*mib)))
	u, has := ublkMachine(t)
	m.Modules = u.Modules
	script := `
must_fail systemctl start $unit
systemctl stop $unit # no further attempts
journalctl -o cat -u $unit | grep 'cannot load the kernel module ublk_drv: this kernel has none'
systemctl reset-failed
END
`
	if has {
		script = `
[ ! -e /dev/ublk-control ]
systemctl enable --now $unit
pid=$(main_pid $unit)
[ $(awk '$1 == "VmLck:" { print $2 }' /proc/$pid/status) -gt 32768 ]
if journalctl -o cat -u $unit | grep 'not protected'; then exit 1; fi
mkfs.ext4 -q /dev/ublkb7
echo "/dev/ublkb7 /data ext4 _netdev 0 2" >>/etc/fstab
systemctl daemon-reload
systemctl start data.mount
dd if=/dev/zero of=/data/log bs=1M count=16
sync
truncate -s 64K /counters
guest log /data/log /counters 4096 300 4 & log=$!
progress
for i in 1 2; do
	old=$(main_pid $unit)
	systemctl restart $unit
	[ $(main_pid $unit) != $old ]
	progress
	old=$(main_pid $unit)
	kill -9 $old
	restarted $unit $old
	progress
done
systemctl stop $unit
[ "$(state_of /dev/ublkb7)" = dead ]
systemctl start $unit
progress
kill -9 $log
must_fail wait $log
guest verify /data/log /counters 4096 300 4
END
`
	}
	bootFor(t, systemdPatience, m, systemdFunctions+`
ndctl create-namespace -f -e namespace$R0.0 -m fsdax --map=mem
mkfs.ext4 -q -b 4096 /dev/pmem$R0
echo "/dev/pmem$R0 /srv ext4 dax 0 2" >/etc/fstab
mkdir -p /etc/systemd/system/bttnbd-attach@.service.d
cat >/etc/systemd/system/bttnbd-attach@.service.d/ublk.conf <<'END'
[Service]
ExecStart=
ExecStart=/usr/bin/bttnbd attach --ublk --foreground /dev/ublkb7 %f
END
start_systemd
steps <<'END'
bttnbd create --size 80M /srv/disk.btt
unit=bttnbd-attach@$(systemd-escape --path /srv/disk.btt).service
`+script+`
stop_systemd
[ ! -e /dev/ublkb7 ]
mount -t ext4 -o dax /dev/pmem$R0 /srv
clean /srv/disk.btt
umount /srv
if dmesg | grep 'I/O error'; then exit 1; fi
`)
}
