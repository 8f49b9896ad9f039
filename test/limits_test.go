package clienttest

import "testing"

// Goal: every limit that is given to serve is one.
// Method: what each does in all its cases is tested in package nbd; here one case shows
// that the flag arrives there.
func TestLimits(t *testing.T) {
	needLibnbd(t)
	const prologue = `
import nbd, socket, sys, time
uri, path = sys.argv[1], sys.argv[2]
def connect():
    h = nbd.NBD()
    h.connect_uri(uri)
    return h
def fails(request):
    try:
        request()
    except (nbd.Error, OSError):
        return
    raise Exception("success")
def seconds(request):
    start = time.monotonic()
    request()
    return time.monotonic() - start
`
	img := create(t, tmpfs(t), 32*mib, 4096)
	for _, c := range []struct {
		name   string
		flags  []string
		script string
	}{
		{"connections", []string{"--max-connections", "1"}, "h = connect(); fails(connect); h.shutdown()"},
		{"connections of a peer", []string{"--max-connections-per-peer", "2"}, "a = connect(); b = connect(); fails(connect)"},
		{"slot freed", []string{"--max-connections", "1"}, `
for i in range(50):
    h = connect()
    h.pread(512, 0)
    h.aio_disconnect(0)
    while not h.aio_is_closed(): h.poll(100)
`},
		{"handshake", []string{"--handshake-timeout", "200ms"}, `
s = socket.socket(socket.AF_UNIX)
s.connect(path)
s.settimeout(30)
while s.recv(100): pass
`},
		{"idle", []string{"--idle-timeout", "200ms"}, `
h = connect()
while h.aio_is_ready(): h.poll(100)
fails(lambda: h.pread(512, 0))
`},
		{"requests a second", []string{"--limit-iops", "20"}, `
h = connect()
took = seconds(lambda: [h.pread(512, 0) for i in range(50)]) # 20 of them at once
assert 1 < took < 20, took
`},
		{"bytes a second", []string{"--limit-rate", "1M"}, `
h = connect()
took = seconds(lambda: [h.pread(1 << 18, 0) for i in range(10)]) # 4 of them at once
assert 1 < took < 20, took
`},
		{"little memory", []string{"--max-memory", "1"}, `
h = connect()
h.pwrite(b"m" * (1 << 20), 0)
assert h.pread(1 << 20, 0) == b"m" * (1 << 20)
`},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := serve(t, img, c.flags...)
			run(t, python, "-c", prologue+c.script, s.uri, s.socket)
			s.stop(t)
		})
	}
}
