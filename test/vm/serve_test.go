package vmtest

import (
	"strings"
	"testing"
)

// Goal: what depends on the kernel works on an older one too: a client comes over
// vsock; in the sandbox, as another user, exports come and go on SIGHUP, and the socket
// goes at the end.
func TestServeOnOldKernel(t *testing.T) {
	needGuest(t)
	m := newMachine()
	m.Modules = []string{"vsock_loopback"}
	m.Tools = []string{"nbdinfo"}
	out := boot(t, m, `
modprobe vsock_loopback
bttnbd create --size 32M /tmp/a.btt
bttnbd serve --sandbox require --listen vsock:10809 --run 'echo $uri; nbdinfo --size "$uri"' /tmp/a.btt

mkdir /images /run/nbd
chown 1000:1000 /images /run/nbd
bttnbd create --size 32M /images/a
bttnbd create --size 32M /images/b
mv /images/b /b
bttnbd serve --sandbox require --user 1000 --group 1000 --listen unix:/run/nbd/s --pid-file /run/nbd/pid --exports-dir /images >/uris 2>/log &
until grep -q nbd+unix /uris; do usleep 10000; done
grep -q 'Uid:.1000.1000' /proc/$(cat /run/nbd/pid)/status
chown 1000 /b
mv /b /images
rm /images/a
kill -HUP $(cat /run/nbd/pid)
until grep -q '"reloaded"' /log; do usleep 10000; done
nbdinfo --size 'nbd+unix:///b?socket=/run/nbd/s'
must_fail nbdinfo --size 'nbd+unix:///a?socket=/run/nbd/s'
kill $(cat /run/nbd/pid)
wait %1
[ ! -e /run/nbd/s ]
[ ! -e /run/nbd/pid ]
`)
	if !strings.Contains(out, "nbd+vsock://1:10809/\n") {
		t.Errorf("no URI for vsock:\n%s", out)
	}
}
