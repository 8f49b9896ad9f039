package vmtest

import "testing"

// Goal: attach loads the kernel's module as distributions ship it: compressed with xz
// (Debian 13) or zstd (Arch, Ubuntu), and nothing of it as a plain file.
// What is no module any more is told by its name. (busybox prefers its own programs to
// others of that name.)
func TestAttachLoadsCompressedModule(t *testing.T) {
	needGuest(t)
	m := newMachine()
	m.Tools = []string{"xz", "zstd", "depmod"}
	boot(t, m, deviceFunctions+`
bttnbd create --size 20M /tmp/a.btt
dir=/lib/modules/$(uname -r)
plain=$(find $dir -name nbd.ko)
cp $plain /tmp/nbd.ko

load() {
	[ -z "$(find $dir -name nbd.ko)" ]
	/usr/bin/depmod
	grep "/nbd.ko.$1:" $dir/modules.dep
	[ ! -e /sys/module/nbd ]
	attach a auto /tmp/a.btt
	[ -e /sys/module/nbd ]
	dd if=/dev/urandom of=$a bs=4k count=4 oflag=direct
	bttnbd detach $a
	rmmod nbd
}
/usr/bin/xz --check=crc32 --lzma2=dict=1MiB $plain
load xz
rm $plain.xz
zstd -q /tmp/nbd.ko -o $plain.zst
load zst
rm $plain.zst
clean /tmp/a.btt

# one that was cut short
/usr/bin/xz --check=crc32 -c /tmp/nbd.ko | head -c 4096 >$plain.xz
/usr/bin/depmod
must_fail bttnbd attach auto /tmp/a.btt 2>/tmp/short.log
cat /tmp/short.log
grep "cannot load the kernel module nbd: .*nbd.ko.xz: " /tmp/short.log
`)
}
