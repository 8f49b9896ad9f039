package vmtest

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// daxOffset is where the content of a devdax or fsdax namespace begins, when the
// kernel keeps its page structures in memory (--map=mem): at the first boundary of
// 2 MiB after the superblock at 4096.
const daxOffset = 2 * mib

// daxScript makes the first NVDIMM a filesystem with DAX on /mnt and the second one
// a device DAX, and defines what the tests need to serve on them.
const daxScript = `
ndctl create-namespace -f -e namespace$R0.0 -m fsdax --map=mem
ndctl create-namespace -f -e namespace$R1.0 -m devdax --map=mem
mkfs.ext4 -q -b 4096 /dev/pmem$R0
mount -t ext4 -o dax /dev/pmem$R0 /mnt
` + daxFunctions

// serve NAME ARGUMENTS… starts a server on /tmp/NAME and waits until it is ready.
const daxFunctions = `
modprobe nbd
dax=/dev/dax$R1.0
serve() {
	name=$1
	shift
	rm -f /tmp/$name.uri
	bttnbd serve --listen unix:/tmp/$name "$@" >/tmp/$name.uri 2>/tmp/$name.log &
	eval pid_$name=$!
	until [ -s /tmp/$name.uri ]; do
		kill -0 $! || { cat /tmp/$name.log; exit 1; }
		usleep 10000
	done
	cat /tmp/$name.log
}
connect() { nbd-client -unix /tmp/$1 $2 -C 2 -b $3; }
`

// Goal: on a filesystem with DAX and on device DAX the server finds persistent memory
// (MAP_SYNC); all that it acknowledged to a kernel NBD client outlives its kill; then
// a filesystem on each device stays whole; a second owner is refused; and bttcheck
// finds no damage at any point.
func TestServerOnDAX(t *testing.T) {
	needGuest(t)
	m := newMachine(nvdimm(file(t, "fsdax", 128*mib)), nvdimm(file(t, "devdax", 32*mib)))
	m.Tools = []string{"mkfs.ext4", "e2fsck", "nbd-client"}
	boot(t, m, daxScript+`
bttnbd create $dax
bttnbd info $dax
serve fs --create 32M /mnt/a.btt
serve dev $dax
for name in fs dev; do grep '"durability":"dax"' /tmp/$name.log; done
check() { bttcheck --progress never /mnt/a.btt; bttcheck --progress never $dax; }

# one owner
must_fail timeout 60 bttnbd serve --listen unix:/tmp/second $dax 2>/tmp/second.log
grep "in use by pid $pid_dev" /tmp/second.log
must_fail bttcheck $dax

# killed in the middle of writes
connect fs /dev/nbd0 4096
connect dev /dev/nbd1 4096
truncate -s 64K /tmp/c0 /tmp/c1
dmesg -n 1 # what the kernel says next are errors that are meant
guest log /dev/nbd0 /tmp/c0 4096 700 4 2>/dev/null & log0=$!
guest log /dev/nbd1 /tmp/c1 4096 710 4 2>/dev/null & log1=$!
# each counter has its first byte
until [ $(tr -d '\0' </tmp/c0 | wc -c) -ge 8 ] && [ $(tr -d '\0' </tmp/c1 | wc -c) -ge 8 ]; do usleep 10000; done
kill -9 $pid_fs $pid_dev
must_fail wait $log0
must_fail wait $log1
nbd-client -d /dev/nbd0
nbd-client -d /dev/nbd1
dmesg -n 5
check

# nothing is lost
serve fs /mnt/a.btt
serve dev $dax
connect fs /dev/nbd2 4096
connect dev /dev/nbd3 4096
guest verify /dev/nbd2 /tmp/c0 4096 700 4
guest verify /dev/nbd3 /tmp/c1 4096 710 4

for i in 2 3; do
	mkfs.ext4 -q /dev/nbd$i
	mkdir /m$i
	mount -t ext4 /dev/nbd$i /m$i
	for f in a b c d; do cp /bin/busybox /m$i/$f; done
	rm /m$i/b
	sync
	umount /m$i
	e2fsck -fn /dev/nbd$i
	mount -t ext4 /dev/nbd$i /m$i
	for f in a c d; do cmp /bin/busybox /m$i/$f; done
	umount /m$i
	nbd-client -d /dev/nbd$i
done
kill $pid_fs $pid_dev
wait $pid_fs
wait $pid_dev
check

# read-only, where the kernel allows no private mapping
serve dev --read-only $dax
kill $pid_dev
wait $pid_dev
`)
}

// Goal: when a filesystem with DAX has no block left for a sparse image, the write
// that needs one fails and nothing else: the server lives, all that was acknowledged
// is there, and with space again the next write succeeds.
func TestFullDAXFilesystem(t *testing.T) {
	needGuest(t)
	m := newMachine(nvdimm(file(t, "fsdax", 64*mib)), nvdimm(file(t, "devdax", 32*mib)))
	m.Tools = []string{"mkfs.ext4", "nbd-client"}
	boot(t, m, daxScript+`
serve fs --create 48M /mnt/a.btt
connect fs /dev/nbd0 4096
dd if=/dev/zero of=/mnt/filler bs=1M count=$(($(df -m /mnt | tail -n 1 | awk '{ print $4 }') - 8))
sync
truncate -s 64K /tmp/c0
dmesg -n 1 # what the kernel says next are errors that are meant
must_fail guest log /dev/nbd0 /tmp/c0 4096 800 4
df /mnt
cat /tmp/fs.log
guest verify /dev/nbd0 /tmp/c0 4096 800 4
rm /mnt/filler
sync
dmesg -n 5
guest fill /dev/nbd0 801
guest compare /dev/nbd0 801
nbd-client -d /dev/nbd0
kill $pid_fs
wait $pid_fs
bttcheck --progress never /mnt/a.btt
`)
}

// Goal: when the power fails while our server writes to persistent memory, on a
// filesystem with DAX and on device DAX, the filesystem is clean and everything that
// the server has acknowledged is there.
func TestPowerCutUnderServerOnDAX(t *testing.T) {
	needGuest(t)
	const seed = 900
	files := []string{file(t, "fsdax", 128*mib), file(t, "devdax", 32*mib), file(t, "c0", 16*mib), file(t, "c1", 16*mib)}
	m := newMachine()
	for _, f := range files {
		m.NVDIMMs = append(m.NVDIMMs, nvdimm(f))
	}
	m.Tools = []string{"mkfs.ext4", "e2fsck", "nbd-client"}
	const devSector = 512
	logsOf := func(verb string) string {
		return fmt.Sprintf(`
connect fs /dev/nbd0 4096
connect dev /dev/nbd1 %[2]d
guest %[1]s /dev/nbd0 /dev/pmem$R2 4096 %[3]d %[4]d &
guest %[1]s /dev/nbd1 /dev/pmem$R3 %[2]d %[3]d %[4]d
wait $!
`, verb, devSector, seed, logs)
	}
	g := start(t, m, daxScript+fmt.Sprintf(`
bttnbd create --sector-size %d $dax
serve dev $dax
serve fs --create 32M /mnt/a.btt
set +x
echo; echo serving
`, devSector)+logsOf("log"), "serving")
	onDev := target{path: files[1], offset: daxOffset, acked: mapCounters(t, files[3], logs), sector: devSector, seed: seed}
	onFS := mapCounters(t, files[2], logs)
	cutOften(t, g, []target{onDev})
	await(t, g, func() bool { return onFS.total() > 100 })
	if err := g.PowerCut(); err != nil {
		t.Fatal(err)
	}
	t.Logf("the last one after %d writes on the filesystem", onFS.total())
	boot(t, m, daxFunctions+`
mount -t ext4 -o dax /dev/pmem$R0 /mnt # replays the journal
umount /mnt
e2fsck -fn /dev/pmem$R0
mount -t ext4 -o dax /dev/pmem$R0 /mnt
bttcheck --progress never /mnt/a.btt
bttcheck --progress never $dax
serve fs /mnt/a.btt
serve dev $dax
`+logsOf("verify")+`
kill $pid_fs $pid_dev
wait $pid_fs
wait $pid_dev
bttcheck --progress never /mnt/a.btt
bttcheck --progress never $dax
`)
}

// Goal: a read-only server on device DAX, which allows no private mapping, serves an
// image that needs no recovery, and refuses one that does with the reason.
func TestReadOnlyDeviceDAX(t *testing.T) {
	needGuest(t)
	dev := file(t, "devdax", 32*mib)
	m := newMachine(nvdimm(file(t, "fsdax", 64*mib)), nvdimm(dev))
	m.Tools = []string{"mkfs.ext4", "nbd-client"}
	boot(t, m, daxScript+"bttnbd create $dax\nserve dev --read-only $dax\n")
	interruptWrite(t, dev, daxOffset)
	boot(t, m, daxFunctions+`
bttcheck --progress never $dax | grep interrupted
must_fail timeout 60 bttnbd serve --read-only --listen unix:/tmp/dev $dax 2>/tmp/dev.log
cat /tmp/dev.log
grep 'opened read-only' /tmp/dev.log
serve dev $dax
kill $pid_dev
wait $pid_dev
if bttcheck --progress never $dax | grep interrupted; then exit 1; fi
serve dev --read-only $dax
`)
}

// Goal: package pmem keeps its promises on real DAX as its own tests state them, but
// for those that are about msync, and the one that QEMU's cache-line flushes, which
// fault on nothing, cannot pass.
func TestPmemOnDAX(t *testing.T) {
	needGuest(t)
	binary := filepath.Join(t.TempDir(), "pmem.test")
	build := exec.Command("go", "test", "-c", "-o", binary, "../../pmem")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %v\n%s", build, err, out)
	}
	m := newMachine(nvdimm(file(t, "fsdax", 128*mib)), nvdimm(file(t, "devdax", 32*mib)))
	m.Tools = []string{"mkfs.ext4"}
	m.Files["/usr/bin/pmem.test"] = binary
	boot(t, m, daxScript+`
cd /mnt
TMPDIR=/mnt pmem.test -test.short -test.timeout 2m \
	-test.skip '^(TestDurability|TestMsyncNotesEveryOperation|TestGroupCommitOnFile|TestProtectedPage|TestOpenDropsCache)$'
`)
}
