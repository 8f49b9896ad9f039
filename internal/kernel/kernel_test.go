package kernel

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/mdlayher/netlink"
	"github.com/pmorjan/kmod"
	"github.com/ulikunitz/xz"
	"golang.org/x/sys/unix"

	"github.com/bttnbd/bttnbd/nbd"
	"github.com/bttnbd/bttnbd/nbd/nbdtest"
)

// Goal: names of devices are read as people write them, links included, and nothing
// else is taken for one.
func TestParseDevice(t *testing.T) {
	for s, index := range map[string]int{"nbd0": 0, "/dev/nbd12": 12} {
		d, err := ParseDevice(s)
		if err != nil || d.Index != index || d.Path() != "/dev/nbd"+strings.TrimLeft(s, "/devnb") {
			t.Errorf("%s: %+v, %v", s, d, err)
		}
	}
	for s, path := range map[string]string{"ublkb0": "/dev/ublkb0", "/dev/ublkb12": "/dev/ublkb12", "/dev/nbd3": "/dev/nbd3"} {
		d, err := ParseDevice(s)
		if err != nil || d.Path() != path || d.IsUblk() != strings.Contains(s, "ublk") {
			t.Errorf("%s: %+v, %v", s, d, err)
		}
	}
	for _, s := range []string{"", "nbd", "nbd-1", "nbd0p1", "ublkb", "ublkb0p1", "ublkc0", "/dev/ublkb3p2", "/dev/nbd3p2", "/dev/sda", "/dev/nbd99999999999", "/tmp/nbd0", "disk.img"} {
		if d, err := ParseDevice(s); err == nil {
			t.Errorf("%s: is %s", s, d.Path())
		} else if partition := strings.Contains(s, "p"); partition == errors.Is(err, ErrNoDevice) && s != "/tmp/nbd0" {
			t.Errorf("%s: %v", s, err)
		}
	}
}

// files makes a tree.
func files(t *testing.T, tree map[string]string) (root string) {
	t.Helper()
	root = t.TempDir()
	for name, text := range tree {
		name = filepath.Join(root, name)
		err := os.MkdirAll(filepath.Dir(name), 0o755)
		if err == nil {
			err = os.WriteFile(name, []byte(text), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return root
}

// Goal: the threads that read replies for a device are counted, by the names that both
// kernels give them, and no others; and it shows when there are none to be seen.
func TestReceivers(t *testing.T) {
	root := files(t, map[string]string{
		"proc/2/comm":       "kthreadd\n",
		"proc/67/comm":      "kworker/u5:0+nbd7-recv\n",
		"proc/137/comm":     "nbd7-recv+nbd7-recv\n",
		"proc/138/comm":     "kworker/R-nbd7-recv+nbd7-recv\n",
		"proc/139/comm":     "nbd7-recv\n",
		"proc/140/comm":     "kworker/u5:1-nbd7-recv\n",
		"proc/141/comm":     "kworker/u5:2+nbd77-recv\n",
		"proc/142/comm":     "kworker/u5:2+nbd17-recv\n",
		"proc/143/comm":     "kworker/u5:3+events_unbound\n",
		"proc/self/comm":    "kworker/u5:9+nbd7-recv\n",
		"proc/sys/comm":     "kworker/u5:9+nbd7-recv\n",
		"proc/144/exe/comm": "kworker/u5:9+nbd7-recv\n",
	})
	if n, ok := DeviceIn(root, 7).Receivers(); n != 3 || !ok {
		t.Errorf("%d receivers, %v; want 3", n, ok)
	}
	if n, ok := DeviceIn(root, 1).Receivers(); n != 0 || !ok {
		t.Errorf("%d receivers, %v; want none", n, ok)
	}
	container := files(t, map[string]string{"proc/2/comm": "sh\n"})
	if _, ok := DeviceIn(container, 7).Receivers(); ok {
		t.Error("a container sees the kernel's threads")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for n, want := range map[int]bool{2: false, 3: true, 4: false} {
		if got := DeviceIn(root, 7).AwaitReceivers(ctx, n); got != want {
			t.Errorf("awaiting %d of 3: %v", n, got)
		}
	}
	if !DeviceIn(container, 7).AwaitReceivers(ctx, 1) {
		t.Error("waits for what it cannot see")
	}
}

// Goal: everybody who holds the device or a partition of it is named.
func TestUsers(t *testing.T) {
	root := files(t, map[string]string{
		"sys/block/nbd0/dev":                     "43:0\n",
		"sys/block/nbd0/pid":                     "17\n",
		"sys/block/nbd0/nbd0p1/dev":              "43:1\n",
		"sys/block/nbd0/nbd0p2/dev":              "43:2\n",
		"sys/block/nbd0/nbd0p2/holders/dm-0/dev": "253:0\n",
		"sys/block/nbd1/dev":                     "43:16\n",
		"sys/block/nbd10/dev":                    "43:160\n",
		"sys/block/nbd10/pid":                    "4\n",
		"proc/17/status":                         "Name:\tx\nTgid:\t12\nPid:\t17\n",
		"proc/swaps":                             "Filename Type Size Used Priority\n/dev/nbd0p1    partition 1 0 -2\n",
		"proc/self/mountinfo": `22 1 43:16 / / rw - ext4 /dev/root rw
23 22 43:0 / /mnt/a\040b rw,noatime shared:1 - ext4 /dev/nbd0 rw
24 22 0:40 / /mnt/c rw - btrfs /dev/nbd0p2 rw
25 22 0:41 / /mnt/d rw - btrfs /dev/nbd10 rw
`,
	})
	users, err := DeviceIn(root, 0).Users()
	want := []string{
		"/dev/nbd0 is mounted on /mnt/a b",
		"/dev/nbd0p1 is swap (end that with swapoff /dev/nbd0p1)",
		"/dev/nbd0p2 is mounted on /mnt/c",
		"/dev/nbd0p2 is part of /dev/dm-0",
	}
	if err != nil || !reflect.DeepEqual(users, want) {
		t.Errorf("%q, %v", users, err)
	}
	devices, err := devices(root, prefixNBD, Device.Connected)
	if err != nil || len(devices) != 2 || devices[0].Index != 0 || devices[1].Index != 10 {
		t.Errorf("connected: %v, %v", devices, err)
	}
	if pid := devices[0].PID(); pid != 12 {
		t.Errorf("the process of thread 17 is %d", pid)
	}
	if pid := devices[1].PID(); pid != 4 {
		t.Errorf("a process that is gone was %d", pid)
	}
}

// Goal: a module is found in each of the forms in which distributions ship it.
func TestDecompressModule(t *testing.T) {
	module := bytes.Repeat([]byte("\x7fELF and so on "), 1000)
	var gz, x, zst bytes.Buffer
	gw := gzip.NewWriter(&gz)
	xw, err := xz.NewWriter(&x)
	if err != nil {
		t.Fatal(err)
	}
	zw, err := zstd.NewWriter(&zst)
	if err != nil {
		t.Fatal(err)
	}
	for _, w := range []io.WriteCloser{gw, xw, zw} {
		if _, err := w.Write(module); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
	}
	for name, r := range map[string]*bytes.Buffer{"nbd.ko.gz": &gz, "nbd.ko.xz": &x, "nbd.ko.zst": &zst} {
		cut := bytes.NewReader(r.Bytes()[:r.Len()/2])
		if got, err := decompress(name, r); err != nil || !bytes.Equal(got, module) {
			t.Errorf("%s: %d bytes, %v", name, len(got), err)
		}
		if _, err := decompress(name, cut); err == nil {
			t.Errorf("%s: half a file is taken for a module", name)
		}
	}
	if _, err := decompress("nbd.ko.lz4", &gz); err == nil {
		t.Error("an unknown form is no error")
	}
}

// Goal: the file with the module's options is found among those of others.
func TestModuleOptions(t *testing.T) {
	root := files(t, map[string]string{
		"a.conf": "options nbdx max=1\n# options nbd nothing\n",
		"b.conf": "blacklist foo\n options nbd nbds_max=32\n",
		"c.txt":  "options nbd nbds_max=64\n",
	})
	if file := moduleOptions(root, "nbd"); filepath.Base(file) != "b.conf" {
		t.Errorf("found %q", file)
	}
}

// Goal: who cannot load the module is told what to do.
func TestAdviseModule(t *testing.T) {
	for err, word := range map[error]string{
		unix.EPERM: "run as root", kmod.ErrModuleNotFound: "install", unix.EKEYREJECTED: "secure boot", unix.ENOEXEC: "dmesg",
	} {
		if got := adviseModule("nbd", err); !errors.Is(got, err) || !strings.Contains(got.Error(), word) {
			t.Errorf("%v: %v", err, got)
		}
	}
	if got := adviseModule(moduleUblk, kmod.ErrModuleNotFound); !strings.Contains(got.Error(), "Linux 6.4 or later") || strings.Contains(got.Error(), "install") {
		t.Errorf("no package has ublk_drv for an old kernel: %v", got)
	}
}

// Goal: the kernel is told what it documents, under the numbers that it documents.
func TestSetupEncoding(t *testing.T) {
	s := Setup{Timeout: 1500 * 1e6, DeadTimeout: 600 * 1e9, Backend: "x", Sockets: []int{7, 9}}
	ae := netlink.NewAttributeEncoder()
	s.encode(ae)
	data, err := ae.Encode()
	if err != nil {
		t.Fatal(err)
	}
	ad, err := netlink.NewAttributeDecoder(data)
	if err != nil {
		t.Fatal(err)
	}
	var fds []int
	got := map[uint16]any{}
	for ad.Next() {
		switch ad.Type() {
		case 4, 8:
			got[ad.Type()] = ad.Uint64()
		case 10:
			got[10] = ad.String()
		case 7:
			ad.Nested(func(list *netlink.AttributeDecoder) error {
				for list.Next() {
					list.Nested(func(item *netlink.AttributeDecoder) error {
						for item.Next() {
							fds = append(fds, int(item.Uint32()))
						}
						return nil
					})
				}
				return nil
			})
		}
	}
	if err := ad.Err(); err != nil {
		t.Fatal(err)
	}
	if want := (map[uint16]any{4: uint64(2), 8: uint64(600), 10: "x"}); !reflect.DeepEqual(got, want) || !reflect.DeepEqual(fds, []int{7, 9}) {
		t.Errorf("attributes %v, sockets %v", got, fds)
	}
}

// Goal: the client's handshake understands a server, and its refusals.
func TestNegotiate(t *testing.T) {
	const size = 1 << 20
	s, err := nbd.NewServer([]nbd.Export{{Name: "a", Size: size, MinBlock: 512, PreferredBlock: 8192, MultiConn: true, Backend: nbdtest.NewMemory(size)}}, nbd.Options{})
	if err != nil {
		t.Fatal(err)
	}
	negotiate := func(name string) (Export, error) {
		ours, theirs := net.Pipe()
		defer ours.Close()
		go s.ServeConn(context.Background(), theirs)
		return Negotiate(ours, name)
	}
	e, err := negotiate("a")
	if err != nil || e.Size != size || e.MinBlock != 512 || e.Preferred != 8192 || e.Flags&nbd.NBD_FLAG_CAN_MULTI_CONN == 0 || e.Flags&nbd.NBD_FLAG_SEND_DF != 0 {
		t.Errorf("%+v, %v", e, err)
	}
	if _, err := negotiate("b"); !errors.Is(err, ErrNoExport) {
		t.Errorf("no such export: %v", err)
	}
}

// Goal: whatever a server says, the client ends with an error or a sane export.
func FuzzNegotiate(f *testing.F) {
	greeting := be.AppendUint64(be.AppendUint64(nil, nbd.NBDMAGIC), nbd.IHAVEOPT)
	greeting = append(greeting, 0, 3)
	answer := func(reply uint32, data ...byte) []byte {
		b := be.AppendUint64(nil, nbd.NBD_OPTION_REPLY)
		b = be.AppendUint32(be.AppendUint32(b, nbd.NBD_OPT_GO), reply)
		return append(be.AppendUint32(b, uint32(len(data))), data...)
	}
	info := answer(nbd.NBD_REP_INFO, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 5)
	f.Add(append(append(bytes.Clone(greeting), info...), answer(nbd.NBD_REP_ACK)...))
	f.Add(append(bytes.Clone(greeting), answer(nbd.NBD_REP_ERR_TLS_REQD, 'n', 'o', '\n')...))
	f.Add(greeting)
	f.Fuzz(func(t *testing.T, stream []byte) {
		_, err := Negotiate(struct {
			io.Reader
			io.Writer
		}{bytes.NewReader(stream), io.Discard}, "x")
		if err != nil && strings.ContainsAny(err.Error(), "\n\r") {
			t.Errorf("more than a line: %q", err)
		}
	})
}
