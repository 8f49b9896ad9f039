package clienttest

import (
	"strings"
	"testing"
)

// Goal: nbd-client, whose handshake is its own, lists the exports by their names,
// over TCP and over a unix socket. What the kernel then does is test/vm's matter.
func TestNbdClientList(t *testing.T) {
	need(t, "nbd-client")
	img := create(t, tmpfs(t), 32*mib, 4096)
	named := image{"alpha=" + img.path, img.sector}
	tcp := serveOn(t, "tcp:0", named)
	port := tcp.uri[strings.LastIndex(tcp.uri, ":")+1 : strings.LastIndex(tcp.uri, "/")]
	if out := run(t, "nbd-client", "-l", "localhost", port); !strings.Contains(out, "alpha\n") {
		t.Errorf("nbd-client -l:\n%s", out)
	}
	tcp.stop(t)
	unix := serve(t, named)
	if out := run(t, "nbd-client", "-l", "-u", unix.socket); !strings.Contains(out, "alpha\n") {
		t.Errorf("nbd-client -l -u:\n%s", out)
	}
}
