package vmtest

import (
	"regexp"
	"testing"
)

// Goal: a guest that runs out of memory and swaps to an attached device goes on: what
// was swapped out comes back, no request waits for its timeout. For that, all threads
// of the server are marked as ones that others wait for, and its heap and the stacks of
// its threads are there beforehand.
func TestSwapOnAttachedDevice(t *testing.T) {
	needGuest(t)
	m := newMachine(nvdimm(file(t, "devdax", 160*mib)))
	m.Memory = "512M"
	out := boot(t, m, deviceFunctions+`
ndctl create-namespace -f -e namespace$R0.0 -m devdax --map=dev
bttnbd create /dev/dax$R0.0
attach a --timeout 30s auto /dev/dax$R0.0
pid=$(server_of $a)

# PF_MEMALLOC_NOIO and PF_LOCAL_THROTTLE, in the flags of each thread
[ $(ls /proc/$pid/task | wc -l) -ge 16 ]
for flags in $(cut -d' ' -f9 /proc/$pid/task/*/stat); do [ $((flags & 0x180000)) = $((0x180000)) ]; done

# what is left of the memory is 60 MiB; the rest is taken by what cannot be swapped
mkswap $a
swapon $a
mount -t ramfs none /mnt
dd if=/dev/zero of=/mnt/ballast bs=1M count=$(( $(awk '$1 == "MemAvailable:" { print int($2 / 1024) }' /proc/meminfo) - 60 ))
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
