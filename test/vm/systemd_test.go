package vmtest

import (
	"maps"
	"testing"

	"github.com/bttnbd/bttnbd/internal/vm"
)

// systemdPatience bounds a guest that boots systemd twice, half a minute each.
const systemdPatience = 2 * patience

// systemdMachine is a machine that can boot systemd, and has what our package installs.
func systemdMachine(t *testing.T, nvdimms ...vm.NVDIMM) *vm.Machine {
	t.Helper()
	systemd, err := vm.FindSystemd()
	if err != nil {
		t.Fatal(err)
	}
	m := attachMachine(nvdimms...)
	m.Trees = []vm.Tree{systemd}
	m.Tools = append(m.Tools, "lsblk", "wipefs", "mount", "umount", "fsck", "fsck.ext4", "install", "nbdcopy")
	maps.Copy(m.Files, map[string]string{
		"/etc/bttnbd/bttnbd.toml":                        "../../dist/bttnbd.toml",
		"/usr/lib/systemd/system/bttnbd.service":         "../../dist/bttnbd.service",
		"/usr/lib/systemd/system/bttnbd@.service":        "../../dist/bttnbd@.service",
		"/usr/lib/systemd/system/bttnbd.socket":          "../../dist/bttnbd.socket",
		"/usr/lib/systemd/system/bttnbd-attach@.service": "../../dist/bttnbd-attach@.service",
		"/usr/lib/udev/rules.d/60-bttnbd.rules":          "../../dist/60-bttnbd.rules",
		"/usr/lib/sysusers.d/bttnbd.conf":                "../../dist/bttnbd.sysusers",
	})
	return m
}

// systemdFunctions boot systemd as process 1 of a PID namespace, since the guest has a
// process 1 already, the harness's.
//
//	start_systemd    returns when it has booted, with every unit as it should be
//	inside …         runs a command beside it
//	steps            runs the script on stdin beside it
//	stop_systemd     returns when it has shut down
//
// Without a machine-id it would take this for the first boot, and enable every unit.
// What is masked needs hardware, terminals or programs that the guest has not.
const systemdFunctions = `
export SYSTEMD_PAGER=cat SYSTEMD_COLORS=0 SYSTEMD_URLIFY=0
wants=/etc/systemd/system/multi-user.target.wants
mkdir -p $wants /var/lib /var/log/journal /var/tmp /sys/fs/cgroup /srv /data
ln -s /lib/systemd/system/remote-fs.target $wants # as Debian's postinst does
for unit in getty.target systemd-logind.service systemd-update-utmp.service systemd-update-utmp-runlevel.service \
	kmod-static-nodes.service systemd-random-seed.service systemd-sysctl.service systemd-user-sessions.service \
	proc-sys-fs-binfmt_misc.automount systemd-network-generator.service systemd-machine-id-commit.service; do
	ln -s /dev/null /etc/systemd/system/$unit
done
ln -sf /usr/bin/mount /usr/bin/umount /bin
ln -s /usr/bin/fsck /usr/bin/fsck.ext4 /sbin
echo 0123456789abcdef0123456789abcdef >/etc/machine-id
echo 'root:x:0:0:root:/:/bin/sh' >/etc/passwd
printf 'root:x:0:\ndisk:x:6:\n' >/etc/group

start_systemd() {
	unshare -m -p -f sh -c '
		mount --make-rprivate /
		mount -t proc proc /proc
		mount -t tmpfs tmpfs /run
		mount -t tmpfs tmpfs /tmp
		mount -t cgroup2 cgroup2 /sys/fs/cgroup
		exec env -i PATH=$PATH /lib/systemd/systemd
	' </dev/null >/systemd.log 2>&1 & outer=$!
	set +x
	until init=$(cat /proc/$outer/task/$outer/children) && [ -n "$init" ] && inside test -S /run/systemd/private; do usleep 100000; done
	set -x
	inside systemctl is-system-running --wait || { inside systemctl --failed; inside journalctl -n 100; exit 1; }
}
inside() { nsenter -t $init -m -p "$@"; }
steps() {
	cat >/steps
	inside sh -euxc '. /functions; . /steps' || { inside journalctl -t systemd -t bttnbd -t mount -t kernel -n 100; exit 1; }
}
stop_systemd() {
	inside systemctl poweroff
	wait $outer || :
	[ ! -e /proc/$outer ]
}
cat >/functions <<'END'
` + deviceFunctions + `
must_fail() { if "$@"; then echo "succeeded: $*"; exit 1; fi; }
progress() { guest progress /counters 4 200; }
# main_pid UNIT
main_pid() { systemctl show -p MainPID --value "$1"; }
# restarted UNIT OLD: waits until systemd has started it again
restarted() { until [ "$(systemctl show -p ActiveState --value "$1")" = active ] && [ "$(main_pid "$1")" != "$2" ]; do usleep 50000; done; }
END
. /functions
`

// Goal: under a real systemd the unit of an attached image does what docs/attach.md
// says. Within its sandbox it loads the module, attaches, and keeps its memory; udev
// names the device and its partitions, for as long as they are there; a filesystem of
// fstab goes on while the server is restarted, killed, or stopped for a while, and its
// mount is never stopped for that; at shutdown it is unmounted before the device goes,
// and at the next boot it is there again.
func TestSystemdAttach(t *testing.T) {
	needGuest(t)
	m := systemdMachine(t, nvdimm(file(t, "fsdax", 192*mib)))
	bootFor(t, systemdPatience, m, systemdFunctions+`
ndctl create-namespace -f -e namespace$R0.0 -m fsdax --map=mem
mkfs.ext4 -q -b 4096 /dev/pmem$R0
echo "/dev/pmem$R0 /srv ext4 dax 0 2" >/etc/fstab
ln -s /dev/null /etc/systemd/system/modprobe@nbd.service # the server has to do it
start_systemd
steps <<'END'
bttnbd create --size 80M /srv/disk.btt
unit=bttnbd-attach@$(systemd-escape --path /srv/disk.btt).service
uuid=$(bttnbd info --json /srv/disk.btt | tr -d ' ",' | awk -F: '$1 == "uuid" { print $2; exit }')
link=/dev/disk/by-bttuuid/$uuid
[ ! -e /sys/module/nbd ]
systemctl enable --now $unit
udevadm settle
[ $(readlink -f $link) = /dev/nbd0 ]
pid=$(main_pid $unit)
[ $(cat /proc/$pid/oom_score_adj) = -1000 ]
[ $(awk '$1 == "VmLck:" { print $2 }' /proc/$pid/status) -gt 32768 ]
if journalctl -o cat -u $unit | grep 'not protected'; then exit 1; fi
grep '^Seccomp:.2' /proc/$pid/status

# names of partitions
printf '1M,32M\n,\n' | sfdisk -q $link
udevadm settle
[ $(readlink -f $link-part2) = /dev/nbd0p2 ]
mkfs.ext4 -q -L second -U 01234567-89ab-cdef-0123-456789abcdef $link-part2
udevadm settle
[ "$(lsblk -nro NAME,FSTYPE,LABEL,UUID $link-part2)" = "nbd0p2 ext4 second 01234567-89ab-cdef-0123-456789abcdef" ]
[ $(readlink -f /dev/disk/by-label/second) = /dev/nbd0p2 ]
wipefs -q -a $link-part2 $link
udevadm settle
[ ! -e $link-part1 ]
[ ! -e /dev/disk/by-label/second ]

# names go with the device, and come back
systemctl stop $unit
udevadm settle
[ ! -e $link ]
[ ! -e /sys/block/nbd0/pid ]
clean /srv/disk.btt
udevadm monitor --kernel --subsystem-match=block >/srv/events & monitor=$!
until grep '^KERNEL - ' /srv/events; do usleep 50000; done
systemctl start $unit
udevadm settle
[ -b $link ]
# the kernel's own, which comes before the device has its identifier, is not the last
timeout 60 sh -c "until [ \$(grep -c 'change.*/nbd0 ' /srv/events) -ge 2 ]; do usleep 50000; done"
kill $monitor

mkfs.ext4 -q -L data $link
echo "$link /data ext4 _netdev 0 2" >>/etc/fstab
systemctl daemon-reload
systemctl start data.mount
dd if=/dev/zero of=/data/log bs=1M count=16
sync
truncate -s 64K /counters
guest log /data/log /counters 4096 300 4 & log=$!
progress
mounted=$(systemctl show -p InvocationID -p ActiveState data.mount)
on() { [ "$(systemctl show -p InvocationID -p ActiveState data.mount)" = "$mounted" ]; }

# restarts, of a busy filesystem and of an idle one
for i in 1 2; do
	old=$(main_pid $unit)
	systemctl restart $unit
	[ $(main_pid $unit) != $old ]
	progress
done
on
for i in 1 2; do
	old=$(main_pid $unit)
	kill -9 $old
	restarted $unit $old
	progress
done
on
systemctl stop $unit
[ "$(state_of /dev/nbd0)" = dead ]
must_fail systemctl is-active $unit
[ -b $link ]
systemctl start $unit
progress
on
kill -9 $log
must_fail wait $log
systemctl restart $unit
on
guest verify /data/log /counters 4096 300 4
END
stop_systemd
[ ! -e /sys/block/nbd0/pid ]
mount -t ext4 -o dax /dev/pmem$R0 /srv
clean /srv/disk.btt
umount /srv
if dmesg | grep 'I/O error'; then exit 1; fi

start_systemd
steps <<'END'
systemctl is-active data.mount
grep '^/dev/nbd0 /data ext4' /proc/mounts
guest verify /data/log /counters 4096 300 4
END
stop_systemd
[ ! -e /sys/block/nbd0/pid ]
`)
}

// Goal: under a real systemd the units of the server do what docs/operations.md says,
// within their sandbox: an image each in its directory, reload, a restart after a kill,
// a socket that starts the server.
func TestSystemdServe(t *testing.T) {
	needGuest(t)
	bootFor(t, systemdPatience, systemdMachine(t), systemdFunctions+`
start_systemd
steps <<'END'
systemd-sysusers
install -d -m 700 -o bttnbd -g bttnbd /var/lib/bttnbd
new() {
	install -o bttnbd -g bttnbd -m 600 /dev/null $1
	bttnbd create --size 20M $1
}
dd if=/dev/urandom of=/srv/data bs=1M count=16
# works URI: what is written is read
works() {
	nbdcopy /srv/data "$1"
	nbdcopy "$1" /srv/copy
	cmp -n 16777216 /srv/data /srv/copy
}

new /var/lib/bttnbd/disk.btt
systemctl enable --now bttnbd
works 'nbd+unix:///disk.btt?socket=/run/bttnbd/nbd.sock'
new /var/lib/bttnbd/later.btt
must_fail nbdcopy 'nbd+unix:///later.btt?socket=/run/bttnbd/nbd.sock' /srv/copy
systemctl reload bttnbd
until nbdcopy 'nbd+unix:///later.btt?socket=/run/bttnbd/nbd.sock' /srv/copy; do usleep 100000; done
old=$(main_pid bttnbd)
grep "^CapBnd:.0*$" /proc/$old/status
[ "$(ls -l /proc/$old | awk '$9 == "cwd" { print $3; exit }')" = bttnbd ]
kill -9 $old
restarted bttnbd $old
nbdcopy 'nbd+unix:///disk.btt?socket=/run/bttnbd/nbd.sock' /srv/copy
cmp -n 16777216 /srv/data /srv/copy
systemctl stop bttnbd
[ ! -e /run/bttnbd ]
clean /var/lib/bttnbd/disk.btt

# an instance
cat >/etc/bttnbd/db.toml <<EOF
listen = ["unix:/run/bttnbd@db/nbd.sock"]
exports-dir = ["/var/lib/bttnbd/db"]
EOF
install -d -m 700 -o bttnbd -g bttnbd /var/lib/bttnbd/db
new /var/lib/bttnbd/db/a.btt
systemctl start bttnbd@db
works 'nbd+unix:///a.btt?socket=/run/bttnbd@db/nbd.sock'
systemctl stop bttnbd@db
clean /var/lib/bttnbd/db/a.btt

# the socket
sed -i '/^listen/d' /etc/bttnbd/bttnbd.toml
systemctl enable --now bttnbd.socket
must_fail systemctl is-active bttnbd
works 'nbd+unix:///disk.btt?socket=/run/bttnbd.sock'
systemctl is-active bttnbd
systemctl stop bttnbd.socket bttnbd
if journalctl -o cat -u 'bttnbd*' | grep -e '"warn"' -e '"error"' | grep -v 'NOT SAFE'; then exit 1; fi
systemctl reset-failed
END
stop_systemd
`)
}
