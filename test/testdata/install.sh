#!/bin/sh
# install.sh DIRECTORY PACKAGE: installs the package with dpkg into this very system,
# uses it, removes and purges it, and looks for what is left. All of it happens in an
# overlay on DIRECTORY, in a mount namespace that ends with this script, so that the
# system itself does not change. Needs root; call it with `unshare --mount`.
set -eu
dir=$1
mount -t tmpfs tmpfs "$dir"
mkdir "$dir/upper" "$dir/work" "$dir/root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$dir/upper,workdir=$dir/work" "$dir/root"
for d in proc dev; do mount --rbind "/$d" "$dir/root/$d"; done
for d in run tmp; do mount -t tmpfs tmpfs "$dir/root/$d"; done
cp "$2" "$dir/root/tmp/bttnbd.deb"

in_root() { chroot "$dir/root" "$@"; }
fail() {
	echo "FAIL: $*" >&2
	exit 1
}
# Containers often leave out man pages and documents.
add() {
	in_root dpkg --path-include='/usr/share/man/*' --path-include='/usr/share/doc/*' -i /tmp/bttnbd.deb
}
# What is there of the package, but its user, dpkg's own notes, and the pages that
# man keeps since they were shown.
left() {
	(cd "$dir/upper" && find . \( -name '*bttnbd*' -o -name '*bttcheck*' \) ! -path './var/lib/dpkg/*' ! -path './var/cache/man/*')
}

[ -z "$(in_root dpkg-query -W bttnbd 2>/dev/null)" ] || in_root dpkg -P bttnbd

echo '== install'
add
[ -z "$(in_root dpkg -V bttnbd)" ] || fail 'dpkg -V finds differences'
in_root bttnbd version
in_root bttcheck --version
[ "$(in_root stat -c '%U:%G %a' /var/lib/bttnbd)" = 'bttnbd:bttnbd 700' ] || fail 'the directory of images'

echo '== man pages'
for page in $(in_root dpkg -L bttnbd | grep '^/usr/share/man/.*\.gz$'); do
	warnings=$(in_root env LC_ALL=C.UTF-8 MANROFFSEQ=t man --warnings=mac,font,char,number,syntax,missing,escape,tab,di -E UTF-8 -l "$page" 2>&1 >/dev/null)
	[ -z "$warnings" ] || fail "$page: $warnings"
done
in_root man -w bttnbd-serve bttcheck 5 bttnbd-format

echo '== units'
for unit in bttnbd.service bttnbd@x.service bttnbd.socket bttnbd-attach@srv-x.service; do
	complaints=$(in_root systemd-analyze verify "$unit" 2>&1 | grep -i bttnbd || true)
	[ -z "$complaints" ] || fail "$complaints"
done

echo '== completion'
in_root bash -c '. /usr/share/bash-completion/completions/bttnbd && complete -p bttnbd' | grep bttnbd
in_root bttnbd __complete ser 2>/dev/null | grep -q '^serve' || fail 'no completion for "bttnbd ser"'

echo '== the server, as the unit runs it'
as_user() { in_root setpriv --reuid=bttnbd --regid=bttnbd --clear-groups "$@"; }
in_root install -d -o bttnbd -g bttnbd /run/bttnbd
in_root install -o bttnbd -g bttnbd -m 600 /dev/null /var/lib/bttnbd/disk.btt
in_root bttnbd create --size 32M /var/lib/bttnbd/disk.btt
# shellcheck disable=SC2016
as_user bttnbd serve --config /etc/bttnbd/bttnbd.toml --run 'nbdinfo --size "nbd+unix:///disk.btt?socket=/run/bttnbd/nbd.sock"'
as_user bttcheck /var/lib/bttnbd/disk.btt

echo '== into another root, whose users are others'
in_root mkdir -p /tmp/other/etc /tmp/other/var/lib/dpkg/info /tmp/other/var/lib/dpkg/updates /tmp/other/var/lib/dpkg/triggers
in_root touch /tmp/other/var/lib/dpkg/status
in_root sh -c 'echo "bttnbd:x:4321:4322::/var/lib/bttnbd:/usr/sbin/nologin" >/tmp/other/etc/passwd; echo "bttnbd:x:4322:" >/tmp/other/etc/group'
in_root dpkg --root=/tmp/other --force-script-chrootless --force-depends -i /tmp/bttnbd.deb
[ "$(in_root stat -c '%u:%g %a' /tmp/other/var/lib/bttnbd)" = '4321:4322 700' ] || fail 'the directory of images in another root'

echo '== remove: what the administrator made stays'
echo '# mine' >>"$dir/root/etc/bttnbd/bttnbd.toml"
in_root dpkg -r bttnbd
grep -q '# mine' "$dir/root/etc/bttnbd/bttnbd.toml" || fail 'the changed configuration is gone'
[ -e "$dir/root/var/lib/bttnbd/disk.btt" ] || fail 'the image is gone'

echo '== purge: nothing is left but images'
in_root dpkg -P bttnbd
[ -e "$dir/root/var/lib/bttnbd/disk.btt" ] || fail 'the image is gone'
[ "$(left)" = ./var/lib/bttnbd ] || fail "left after a purge: $(left)"
echo '== done'
