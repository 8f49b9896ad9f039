package vmtest

import "testing"

// Goal: memory that goes bad under a served image costs the block that was there, and
// nothing else: to read it is an I/O error until it is written, every other block is what
// it was, and the device can be written all over three times, although the bad page is a
// free block by then: whoever gets it takes another one.
//
// The image is a file in memory: the pages of device DAX and of ext4 with -o dax a guest
// without bad memory of its own hands out again, noted as bad or not.
func TestBadMemory(t *testing.T) {
	needGuest(t)
	boot(t, attachMachine(), attachFunctions+`
bttnbd create --size 20M /dev/shm/image
attach a --timeout 30s auto /dev/shm/image
log=/run/bttnbd-attach/${a#/dev/}.log
guest fill $a 7
{ echo "the block that goes bad"; cat /dev/urandom; } | dd of=$a bs=4096 count=1 seek=100 iflag=fullblock oflag=direct
dd if=$a of=/tmp/before bs=409600 count=1 iflag=direct
dd if=$a of=/tmp/behind bs=413696 skip=1 iflag=direct

dmesg -n 1 # the I/O errors to come are no complaint
guest poison /dev/shm/image 20971520 "the block that goes bad"
for try in 1 2; do
	if dd if=$a of=/dev/null bs=4096 count=1 skip=100 iflag=direct; then exit 1; fi
done
dmesg -n 7
touched=$(dmesg | grep -c 'hardware memory corruption fault')
[ $touched -ge 2 ] # a read tries twice
[ $(grep -c 'offset [0-9]*: memory fault: .*bad memory' $log) = 2 ]
dd if=$a bs=409600 count=1 iflag=direct | cmp - /tmp/before
dd if=$a bs=413696 skip=1 iflag=direct | cmp - /tmp/behind

dd if=/usr/bin/guest of=$a bs=4096 count=1 seek=100 oflag=direct
dd if=$a bs=4096 count=1 skip=100 iflag=direct | cmp -n 4096 - /usr/bin/guest
for seed in 8 9 10; do
	guest fill $a $seed
	guest compare $a $seed
done
[ $(dmesg | grep -c 'hardware memory corruption fault') -gt $touched ] # a writer that got it
[ $(grep -c '"level":"error"' $log) = 2 ]
[ "$(state_of $a)" = alive ]
bttnbd detach $a
clean /dev/shm/image
`)
}
