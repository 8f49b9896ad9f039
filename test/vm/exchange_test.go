package vmtest

import (
	"fmt"
	"strings"
	"testing"

	"github.com/bttnbd/bttnbd/internal/vm"
)

// Goal: what `bttnbd create` made and bttnbd filled comes up in Linux by itself and
// holds the same bytes; so does what it makes in the guest on a raw /dev/pmemN; Linux
// and ndctl find no fault with it; and what Linux then writes bttnbd reads, to the byte.
func TestOurImagesInLinux(t *testing.T) {
	needGuest(t)
	const ours, linux, filled = 100, 200, 2 // seeds, and how many images we fill
	images := []string{
		create(t, "kernel-4096", 32*mib),
		create(t, "kernel-512", 32*mib, "--sector-size", "512"),
		create(t, "empty-4096", 32*mib),
		create(t, "empty-512", 32*mib, "--sector-size", "512"),
		file(t, "raw", 32*mib),
	}
	m := newMachine()
	m.Tools = []string{"fio"}
	script := `bttnbd create --sector-size 512 /dev/pmem$R4
bttcheck --progress never /dev/pmem$R4
ndctl disable-namespace namespace$R4.0
ndctl enable-namespace namespace$R4.0
ndctl list -Ni
# of an empty image every byte is zero
for r in $R2 $R3 $R4; do
	head -c $(blockdev --getsize64 /dev/pmem${r}s) /dev/zero | cmp - /dev/pmem${r}s
done
fio --name=verify --filename=/dev/pmem${R3}s --direct=1 --rw=randwrite --bsrange=512-64k --thread \
	--ioengine=psync --size=8M --verify=crc32c --verify_fatal=1 --output=/tmp/fio || { cat /tmp/fio; exit 1; }
`
	for i, image := range images {
		m.NVDIMMs = append(m.NVDIMMs, nvdimm(image))
		if i < filled {
			writePattern(t, image, ours+uint64(i))
			script += fmt.Sprintf("guest compare /dev/pmem${R%d}s %d\n", i, ours+i)
		}
		script += fmt.Sprintf("guest fill /dev/pmem${R%[1]d}s %[2]d\nguest compare /dev/pmem${R%[1]d}s %[2]d\n", i, linux+i)
	}
	boot(t, m, script+"ndctl check-namespace -f all\n")
	for i, image := range images {
		check(t, image)
		comparePattern(t, image, linux+uint64(i))
		check(t, image)
	}
}

// Goal: BTTs that Linux made, with every sector size it knows, and filled are found
// clean, served to the byte, rewritten, and after that still good for Linux and ndctl.
func TestLinuxImagesHere(t *testing.T) {
	needGuest(t)
	const linux, ours = 300, 400 // seeds
	cases := []struct {
		sector  int
		labels  bool // QEMU gives the NVDIMM a label area, and so Linux makes a 2.0
		version string
	}{
		{512, false, "1.1"},
		{520, false, "1.1"},
		{528, false, "1.1"},
		{4096, false, "1.1"},
		{4104, false, "1.1"},
		{4160, false, "1.1"},
		{4224, false, "1.1"},
		{512, true, "2.0"},
		{4096, true, "2.0"},
		{4104, true, "2.0"},
	}
	m := newMachine()
	made, again := "", ""
	for i, c := range cases {
		d := vm.NVDIMM{}
		if c.labels {
			d.LabelSize = labelSize
		}
		d.Path = file(t, "linux.img", 32*mib+d.LabelSize)
		m.NVDIMMs = append(m.NVDIMMs, d)
		made += fmt.Sprintf(`ndctl create-namespace -f -e namespace$R%[1]d.0 -m sector -l %[2]d
guest fill /dev/pmem${R%[1]d}s %[3]d
`, i, c.sector, linux+i)
		again += fmt.Sprintf("guest compare /dev/pmem${R%d}s %d\n", i, ours+i)
	}
	boot(t, m, made)
	for i, d := range m.NVDIMMs {
		check(t, d.Path)
		comparePattern(t, d.Path, linux+uint64(i))
		if info := run(t, bttnbd, "info", d.Path); !strings.Contains(info, "version "+cases[i].version) {
			t.Errorf("Linux made something else than version %s:\n%s", cases[i].version, info)
		}
		writePattern(t, d.Path, ours+uint64(i))
		check(t, d.Path)
	}
	boot(t, m, again+"ndctl check-namespace -f all\n")
}

// Goal: an image of format uefi is good for Linux as the content of a namespace whose
// label says that a BTT of version 2.0 is there.
func TestOurUEFIImageInLinux(t *testing.T) {
	needGuest(t)
	const ours, linux, size = 450, 460, 32 * mib // seeds, and bytes without the label area
	sectors := []int{512, 4096}
	m := newMachine()
	labels, script := "", ""
	for i, sector := range sectors {
		path := file(t, "labelled", size+labelSize)
		m.NVDIMMs = append(m.NVDIMMs, vm.NVDIMM{Path: path, LabelSize: labelSize})
		labels += fmt.Sprintf("ndctl create-namespace -f -e namespace$R%d.0 -m sector -l %d\n", i, sector)
		script += fmt.Sprintf(`guest compare /dev/pmem${R%[1]d}s %[2]d
guest fill /dev/pmem${R%[1]d}s %[3]d
`, i, ours+i, linux+i)
	}
	boot(t, m, labels)
	for i, sector := range sectors {
		image := create(t, "uefi", size, "--format", "uefi", "--sector-size", fmt.Sprint(sector))
		writePattern(t, image, ours+uint64(i))
		replace(t, m.NVDIMMs[i].Path, image, 0)
	}
	boot(t, m, script+"ndctl check-namespace -f all\n")
	for i, d := range m.NVDIMMs {
		check(t, d.Path)
		comparePattern(t, d.Path, linux+uint64(i))
	}
}
