package vmtest

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
)

// volume is a filesystem on an attached image in an NVDIMM, under load.
type volume struct {
	fs     string
	image  string // the NVDIMM
	offset int64  // of the image in it
	count  string // the NVDIMM with the counters of the load
	linux  bool   // Linux's own BTT takes over after the power cut
}

// Goal: when the power fails under a filesystem in use, on an attached image, the
// journal is replayed at the next mount, the filesystem is clean, and all that was
// acknowledged as synced is there: attached again, and on the kernel's own BTT, which
// finds the very same image as /dev/pmemNs.
func TestPowerCutUnderAttach(t *testing.T) {
	needGuest(t)
	volumes := []*volume{
		{fs: "ext4", linux: true}, // its image is the whole content of a raw /dev/pmemN
		{fs: "xfs", offset: daxOffset},
		{fs: "btrfs", offset: daxOffset},
	}
	m := attachMachine()
	script := attachFunctions + "mkdir /v0 /v1 /v2\n"
	load := ""
	for i, v := range volumes {
		v.image, v.count = file(t, v.fs, 160*mib), file(t, "counters", 16*mib)
		m.NVDIMMs = append(m.NVDIMMs, nvdimm(v.image), nvdimm(v.count))
		script += v.found(i) + fmt.Sprintf(`
[ %[3]t = true ] || ndctl create-namespace -f -e namespace$R%[1]d.0 -m devdax --map=mem
bttnbd create $image
attach d auto $image
make %[4]s $d
mount -t %[4]s $d /v%[2]d
dd if=/dev/zero of=/v%[2]d/log bs=1M count=8
`, 2*i, i, v.linux, v.fs)
		load += fmt.Sprintf("GUEST_SYNC=1 guest log /v%d/log /dev/pmem$R%d 4096 %d %d &\n", i, 2*i+1, 400+i, logs)
	}
	g := start(t, m, script+"sync\nset +x\necho; echo writing\n"+load+"wait\n", "writing")
	var acked []counters
	for _, v := range volumes {
		acked = append(acked, mapCounters(t, v.count, logs))
	}
	await(t, g, func() bool {
		for _, c := range acked {
			if c.total() < 200 {
				return false
			}
		}
		return true
	})
	m2 := attachMachine()
	err := g.Freeze(func() (err error) {
		for _, v := range volumes {
			image, count := filepath.Join(t.TempDir(), v.fs), filepath.Join(t.TempDir(), "counters")
			err = errors.Join(err, copyFrom(image, v.image, 0), copyFrom(count, v.count, 0))
			m2.NVDIMMs = append(m2.NVDIMMs, nvdimm(image), nvdimm(count))
		}
		return err
	})
	if err == nil {
		err = g.PowerCut()
	}
	if err != nil {
		t.Fatal(err)
	}
	out := boot(t, m2, attachFunctions+judgeVolumes(volumes))
	check(t, m2.NVDIMMs[0].Path) // as Linux has left it
	t.Log(strings.Join(grep(out, "all there"), "\n"))
}

// found names the image of the volume in the guest.
func (v *volume) found(i int) string {
	if v.linux {
		return fmt.Sprintf("image=/dev/pmem$R%d\n", 2*i)
	}
	return fmt.Sprintf("image=/dev/dax$R%d.0\n", 2*i)
}

// judgeVolumes mounts what the power cut has left, and compares.
func judgeVolumes(volumes []*volume) string {
	script := "mkdir /v\n"
	for i, v := range volumes {
		script += v.found(i)
		if v.linux {
			script += "d=${image}s\n"
		} else {
			script += "clean $image\nattach d auto $image\n"
		}
		script += fmt.Sprintf(`
mount -t %[1]s $d /v
guest verify /v/log /dev/pmem$R%[2]d 4096 %[3]d %[4]d
umount /v
judge %[1]s $d
`, v.fs, 2*i+1, 400+i, logs)
		if !v.linux {
			script += "bttnbd detach $d\nclean $image\n"
		}
	}
	return script
}

// grep returns the lines with a word.
func grep(text, word string) (lines []string) {
	for line := range strings.Lines(text) {
		if strings.Contains(line, word) {
			lines = append(lines, strings.TrimSpace(line))
		}
	}
	return lines
}
