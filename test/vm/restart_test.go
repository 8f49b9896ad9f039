package vmtest

import (
	"fmt"
	"os"
	"regexp"
	"strconv"
	"testing"
	"time"
)

// kills is how often the server is killed in one test: BTTNBD_ATTACH_KILLS, or 3.
func kills(t *testing.T) int {
	s := os.Getenv("BTTNBD_ATTACH_KILLS")
	if s == "" {
		return 3
	}
	n, err := strconv.Atoi(s)
	if err != nil || n < 1 {
		t.Fatalf("BTTNBD_ATTACH_KILLS=%s: want a number", s)
	}
	return n
}

// killTime is far above what one kill takes, with the wait for what was on its way.
const killTime = 20 * time.Second

// Goal: the server of a mounted filesystem in use is killed again and again, and
// each time attached anew, and nobody notices but for the wait: no error in the
// kernel's log, nothing that was acknowledged is lost, fio finds its checksums. The
// same for hand-overs. A copy of the image does not revive the device.
func TestAttachRestart(t *testing.T) {
	needGuest(t)
	m := attachMachine(nvdimm(file(t, "fsdax", 192*mib)))
	out := bootFor(t, patience+time.Duration(kills(t))*killTime, m, attachFunctions+fmt.Sprintf(`
kills=%d
mkdir /a
ndctl create-namespace -f -e namespace$R0.0 -m fsdax --map=mem
mkfs.ext4 -q -b 4096 /dev/pmem$R0
mount -t ext4 -o dax /dev/pmem$R0 /mnt
bttnbd create --size 80M /mnt/a.btt
attach a --timeout 2s --connections 3 auto /mnt/a.btt
make ext4 $a
mount -t ext4 $a /a

begin_load
set +x
for i in $(seq $kills); do
	kill -9 $(server_of $a)
	until [ "$(state_of $a)" = dead ]; do usleep 10000; done
	before=$(now)
	attach b --timeout 2s auto /mnt/a.btt 2>/tmp/attach.log
	[ $b = $a ]
	acked=$(progress)
	echo "kill $i: 200 writes done $(awk "BEGIN { print $(now) - $before }") s after the attach began, $acked acknowledged"
done
set -x

# another image with the same UUID is not what the filesystem has seen
kill -9 $(server_of $a)
until [ "$(state_of $a)" = dead ]; do usleep 10000; done
cp /mnt/a.btt /tmp/copy.btt
must_fail bttnbd attach auto /tmp/copy.btt 2>/tmp/copy.log
grep 'another file with the same UUID' /tmp/copy.log
bttnbd create --size 32M /tmp/other.btt
must_fail bttnbd attach $a /tmp/other.btt
must_fail bttnbd detach $a
clean /mnt/a.btt
attach b --timeout 2s $a /mnt/a.btt
progress

# hand-overs
set +x
for i in 1 2 3; do
	old=$(server_of $a)
	bttnbd attach --timeout 2s --replace auto /mnt/a.btt 2>/tmp/replace.log
	grep 'taken over' /tmp/replace.log
	[ $(server_of $a) != $old ]
	progress
done
set -x

# what fails, with a copy of the image first: the old one goes on
old=$(server_of $a)
for image in copy other; do
	must_fail bttnbd attach --replace $a /tmp/$image.btt 2>/tmp/replace.log
	grep "$a is served from /mnt/a.btt, and /tmp/$image.btt is another file" /tmp/replace.log
done
must_fail bttnbd attach --replace auto /tmp/copy.btt 2>/tmp/replace.log
grep 'has this backend' /tmp/replace.log
must_fail bttnbd attach --replace --read-only auto /mnt/a.btt 2>/tmp/replace.log
grep 'read-only' /tmp/replace.log
[ $(server_of $a) = $old ]
progress

touch /tmp/stop
wait $fio
kill -9 $log
must_fail wait $log
guest verify /a/log /tmp/counters 4096 300 4
umount /a
judge ext4 $a
bttnbd detach $a
clean /mnt/a.btt
`, kills(t)))
	for _, line := range regexp.MustCompile(`(?m)^(kill \d+:|bttnbd: .*taken over).*$`).FindAllString(out, -1) {
		t.Log(line)
	}
}
