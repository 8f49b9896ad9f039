package clienttest

import "testing"

// Goal: fio's checksums hold under every pattern of access that its NBD engine has.
func TestFio(t *testing.T) {
	need(t, "fio")
	jobs := map[string][]string{
		"random writes":    {"--rw=randwrite", "--bs=4k", "--size=32M", "--verify=crc32c", "--do_verify=1", "--verify_fatal=1"},
		"mixed sizes":      {"--rw=randwrite", "--bsrange=512-64k", "--bs_unaligned=1", "--size=16M", "--verify=crc32c", "--do_verify=1", "--verify_fatal=1"},
		"large":            {"--rw=write", "--bs=1M", "--size=48M", "--verify=crc32c", "--do_verify=1", "--verify_fatal=1"},
		"flush each":       {"--rw=randwrite", "--bs=4k", "--size=8M", "--fsync=1", "--verify=crc32c", "--do_verify=1", "--verify_fatal=1"},
		"trims and writes": {"--rw=randtrimwrite", "--bs=4k", "--size=16M"},
		"four connections": {"--rw=randrw", "--bs=4k", "--size=8M", "--offset_increment=8M", "--numjobs=4", "--thread",
			"--group_reporting", "--verify=crc32c", "--do_verify=1", "--verify_fatal=1"},
	}
	onEveryImage(t, 64*mib, func(t *testing.T, img image) {
		s := serve(t, img)
		for name, job := range jobs {
			t.Run(name, func(t *testing.T) {
				run(t, "fio", append([]string{"--name=fio", "--ioengine=nbd", "--uri=" + s.uri, "--iodepth=16"}, job...)...)
			})
		}
		s.stop(t)
		img.check(t)
	})
}
