package vmtest

import (
	"os"
	"regexp"
	"testing"

	"github.com/bttnbd/bttnbd/internal/vm"
)

// protected is the begin of a script: an image attached as $a, by a server that is
// marked as one that others wait for, in each of its threads (PF_MEMALLOC_NOIO and
// PF_LOCAL_THROTTLE in their flags), and starve, which leaves so many MiB of memory
// and gives the rest to what cannot be swapped.
const protected = attachFunctions + `
ndctl create-namespace -f -e namespace$R0.0 -m devdax --map=dev
bttnbd create --progress never /dev/dax$R0.0
attach a --timeout 30s auto /dev/dax$R0.0
pid=$(server_of $a)
[ $(ls /proc/$pid/task | wc -l) -ge 16 ]
for flags in $(cut -d' ' -f9 /proc/$pid/task/*/stat); do [ $((flags & 0x180000)) = $((0x180000)) ]; done
starve() {
	mount -t ramfs none /mnt
	dd if=/dev/zero of=/mnt/ballast bs=1M count=$(( $(awk '$1 == "MemAvailable:" { print int($2 / 1024) }' /proc/meminfo) - $1 ))
}
`

func memoryMachine(t *testing.T) *vm.Machine {
	m := attachMachine(nvdimm(file(t, "devdax", 160*mib)))
	m.Memory = "1G" // its programs take half of it
	return m
}

// Goal: a filesystem on an attached device is written to in a guest that has next to no
// memory left, so that each page needs another one written before: all goes on, what
// comes back is what was written, and no request waits for its timeout.
func TestStarvedFilesystem(t *testing.T) {
	needGuest(t)
	boot(t, memoryMachine(t), protected+`
mkfs.ext4 -q $a
mkdir /a
mount -t ext4 $a /a
dd if=/dev/urandom of=/a/first bs=1M count=20
sync
starve 40
for f in 1 2 3 4; do cp /a/first /a/$f; done
sync
for f in 1 2 3 4; do cmp /a/first /a/$f; done
rm /mnt/ballast
umount /a
e2fsck -fn $a
bttnbd detach $a
clean /dev/dax$R0.0
if dmesg | grep 'timed out'; then exit 1; fi
`)
}

// Goal: to see how far swap on an attached device goes: what was swapped out comes
// back, and no request waits for its timeout. It does in most runs, docs/attach.md.
func TestSwapOnAttachedDevice(t *testing.T) {
	if os.Getenv("BTTNBD_SWAP") == "" {
		t.Skip("swap on an attached device is not promised (docs/attach.md); BTTNBD_SWAP=1 tries it")
	}
	needGuest(t)
	out := boot(t, memoryMachine(t), protected+`
mkswap $a
swapon $a
starve 60
GODEBUG=asyncpreemptoff=1 guest crowd 105 3
[ $(awk '$1 == "pswpout" { print $2 }' /proc/vmstat) -gt 2000 ]
grep pswp /proc/vmstat
rm /mnt/ballast
swapoff $a
bttnbd detach $a
clean /dev/dax$R0.0
if dmesg | grep 'timed out'; then exit 1; fi
`)
	t.Log(regexp.MustCompile(`(?m)^pswp.*$`).FindAllString(out, -1))
}
