package vmtest

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"testing"
)

// usableSize is what `bttnbd info` says that a client sees, in bytes.
func usableSize(t *testing.T, image string) int64 {
	t.Helper()
	var info struct {
		UsableSize int64 `json:"usable_size"`
	}
	if err := json.Unmarshal([]byte(run(t, bttnbd, "info", "--json", image)), &info); err != nil {
		t.Fatal(err)
	}
	return info.UsableSize
}

// Goal: Linux attaches an image that has grown, into arenas of different sizes, with
// the size that it has, finds in it what was there, and zeros behind, and writes to all
// of it; also with a rest behind the last arena that is too small for another one, and
// when a power failure has left the link to the new arenas in one info block only.
// ndctl finds no fault.
func TestGrownImagesInLinux(t *testing.T) {
	needGuest(t)
	const ours, linux = 1300, 1400 // seeds
	cases := []struct {
		sector string
		grow   []string // one after the other
		file   int64    // size of the file in the end, in bytes; 0: the last of those
		half   bool     // the last growth is cut off before the primary is written
		fill   bool     // Linux writes to all of it
	}{
		{sector: "4096", grow: []string{"37M", "64M"}, fill: true},
		{sector: "512", grow: []string{"48M"}},
		{sector: "4096", grow: []string{"38M"}, file: 48 * mib, fill: true},
		{sector: "4096", grow: []string{"48M"}, half: true},
	}
	m, script := newMachine(), ""
	var images []string
	for i, c := range cases {
		image := create(t, "grown", 20*mib, "--sector-size", c.sector)
		writePattern(t, image, ours+uint64(i))
		old := usableSize(t, image)
		var before []byte
		for _, size := range c.grow {
			before = primary(t, image)
			run(t, bttnbd, "grow", "--size", size, image)
		}
		if c.half {
			restorePrimary(t, image, before)
		} else {
			check(t, image)
		}
		if c.file != 0 {
			if err := os.Truncate(image, c.file); err != nil {
				t.Fatal(err)
			}
		}
		now := usableSize(t, image)
		if grown := now > old; grown == c.half {
			t.Errorf("case %d: %d bytes, and %d before", i, now, old)
		}
		images = append(images, image)
		m.NVDIMMs = append(m.NVDIMMs, nvdimm(image))
		script += fmt.Sprintf(`[ $(blockdev --getsize64 /dev/pmem${R%[1]d}s) = %[2]d ]
head -c %[3]d /dev/pmem${R%[1]d}s >/tmp/old
guest compare /tmp/old %[4]d
`, i, now, old, ours+i)
		if !c.half { // both ends of what is new
			script += fmt.Sprintf("tail -c +%[2]d /dev/pmem${R%[1]d}s | head -c 1048576 >/tmp/new\ntail -c 1048576 /dev/pmem${R%[1]d}s >>/tmp/new\nhead -c 2097152 /dev/zero | cmp - /tmp/new\n", i, old+1)
		}
		if c.fill {
			script += fmt.Sprintf("guest fill /dev/pmem${R%[1]d}s %[2]d\nguest compare /dev/pmem${R%[1]d}s %[2]d\n", i, linux+i)
		}
	}
	// ndctl says that the two info blocks of the last image differ, and is content.
	boot(t, m, script+"ndctl check-namespace -f all\n")
	for i, image := range images {
		if cases[i].half {
			run(t, bttnbd, "grow", image)
		} else {
			check(t, image)
		}
		if cases[i].fill {
			comparePattern(t, image, linux+uint64(i))
		}
		check(t, image)
	}
}

// primary is the primary info block of a kernel image.
func primary(t *testing.T, image string) []byte {
	t.Helper()
	b, err := os.ReadFile(image)
	if err != nil {
		t.Fatal(err)
	}
	return b[4096:8192]
}

// restorePrimary puts it back, as it is when the power fails before it is written.
func restorePrimary(t *testing.T, image string, raw []byte) {
	t.Helper()
	f, err := os.OpenFile(image, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(raw, 4096); err != nil {
		t.Fatal(err)
	}
}

// Goal: an attached image grows under its device, while ext4 is mounted there and
// written to, named by its path or by the device; ext4 then grows with its own tool and
// loses nothing. An image that has grown while its device was waiting for a server is
// attached as a larger device. A BTT on a block device that has become larger grows, but
// not over data, and not while it is attached.
func TestGrowAndResizeFilesystem(t *testing.T) {
	needGuest(t)
	m := newMachine(nvdimm(file(t, "plain", 208*mib)))
	m.Tools, m.Modules = []string{"mkfs.ext4", "e2fsck", "resize2fs", "losetup"}, []string{"loop"}
	_, functions, _ := strings.Cut(attachFunctions, "QA_CHECK_FS=1\n")
	boot(t, m, functions+`
mib() { echo $(($(blockdev --getsize64 $1) >> 20)); }
size_of_fs() { df -m /a | tail -n 1 | awk '{ print $2 }'; }
mkdir /plain /a
mkfs.ext4 -q -b 4096 /dev/pmem$R0
mount -t ext4 /dev/pmem$R0 /plain
bttnbd create --size 48M /plain/a.btt
attach a auto /plain/a.btt
mkfs.ext4 -q $a
mount -t ext4 $a /a
cp /usr/bin/guest /a/1
set +x
while [ ! -e /tmp/stop ]; do
	dd if=/usr/bin/guest of=/a/busy bs=64k conv=fsync 2>/dev/null && cmp /usr/bin/guest /a/busy || echo bad >>/tmp/bad
	echo >>/tmp/rounds
done &
writer=$!
set -x
until [ -e /tmp/rounds ]; do usleep 10000; done

must_fail bttnbd grow --size 50M /plain/a.btt 2>/tmp/grow.log
grep 'give it --size 64M or more' /tmp/grow.log
[ $(mib $a) = 46 ]
bttnbd grow --size 80M /plain/a.btt 2>/tmp/grow.log
cat /tmp/grow.log
grep "$a has grown" /tmp/grow.log
[ $(mib $a) = 77 ]
resize2fs $a
[ $(size_of_fs) -gt 60 ]
cp /usr/bin/guest /a/2
bttnbd grow --size 112M --json $a
[ $(mib $a) = 108 ]
resize2fs $a
cp /usr/bin/guest /a/3
[ $(cat /sys/block/${a#/dev/}/queue/max_sectors_kb) = 4096 ]

# the server dies, the image grows, the next server finds the device
kill -9 $(server_of $a)
until [ "$(state_of $a)" = dead ]; do usleep 10000; done
must_fail bttnbd grow --size 144M $a 2>/tmp/grow.log
grep "nobody serves $a: attach it again first: bttnbd attach $a /plain/a.btt" /tmp/grow.log
must_fail bttnbd create --force /plain/a.btt 2>/tmp/create.log
grep "waits for it as it was: .*(bttnbd attach $a /plain/a.btt)" /tmp/create.log
must_fail bttnbd serve --run true /plain/a.btt 2>/tmp/serve.log
grep "waits for it as it was" /tmp/serve.log
bttnbd grow --size 144M /plain/a.btt
attach again auto /plain/a.btt
[ $again = $a ]
[ $(mib $a) = 139 ]
resize2fs $a
[ $(size_of_fs) -gt 110 ]
cp /usr/bin/guest /a/4
touch /tmp/stop
wait $writer
[ ! -e /tmp/bad ]
umount /a
e2fsck -fn $a
mount -t ext4 $a /a
for f in 1 2 3 4 busy; do cmp /usr/bin/guest /a/$f; done
umount /a
bttnbd detach $a
clean /plain/a.btt
bttnbd info --fast /plain/a.btt
rm /plain/a.btt
if dmesg | grep 'I/O error'; then exit 1; fi

# a block device
modprobe loop
truncate -s 24M /plain/disk
losetup /dev/loop0 /plain/disk
bttnbd create /dev/loop0
must_fail bttnbd grow /dev/loop0 2>/tmp/grow.log
grep 'make the device larger first' /tmp/grow.log
truncate -s 44M /plain/disk
losetup -c /dev/loop0
attach b auto /dev/loop0
must_fail bttnbd grow $b 2>/tmp/grow.log
grep 'only a file grows while it is attached' /tmp/grow.log
bttnbd detach $b
printf x | dd of=/dev/loop0 bs=1 seek=30000000
must_fail bttnbd grow /dev/loop0 2>/tmp/grow.log
grep 'the first byte that is not zero is at offset 30000000' /tmp/grow.log
bttnbd grow --force /dev/loop0
bttcheck --progress never /dev/loop0 | grep '2 arenas'
losetup -d /dev/loop0
`)
}
