package signature

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/bttnbd/bttnbd/layout"
	"github.com/google/uuid"
)

const imageSize = 4 << 20

// Goal: every row of the table is found under its own name where it stands, and
// no row above it hides it.
func TestTable(t *testing.T) {
	for _, s := range table {
		image := make([]byte, imageSize)
		off := s.offset
		if off < 0 {
			off += imageSize
		}
		copy(image[off:], s.magic)
		if what, found := detect(t, image); !found || what != s.name {
			t.Errorf("%q at %d: found %v %q, want %q", s.magic, s.offset, found, what, s.name)
		}
	}
}

// Goal: images made by the tools that own the formats are recognised.
func TestRealImages(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: needs e2fsprogs, xfsprogs, btrfs-progs, util-linux, fdisk and qemu-utils")
	}
	for _, c := range []struct{ command, want string }{
		{"mkfs.ext4 -q -F IMAGE", "an ext2/3/4 filesystem"},
		{"mkfs.ext4 -q -F -t ext2 -b 1024 IMAGE", "an ext2/3/4 filesystem"},
		{"mkfs.xfs -q -f IMAGE", "an XFS filesystem"},
		{"mkfs.btrfs -q -f IMAGE", "a btrfs filesystem"},
		{"mkswap IMAGE", "swap space"},
		{"echo ,,L | sfdisk -q -X gpt IMAGE", "a GPT partition table"},
		{"echo ,,L | sfdisk -q -X dos IMAGE", "an MBR partition table"},
		{"echo ,,L | sfdisk -q -X gpt IMAGE && dd if=/dev/zero of=IMAGE bs=1M count=1 conv=notrunc status=none", "a GPT partition table"},
		{"qemu-img create -q -f qcow2 IMAGE 512M", "a qcow2 disk image"},
		{"qemu-img create -q -f vmdk IMAGE 512M", "a VMDK disk image"},
		{"qemu-img create -q -f vdi IMAGE 512M", "a VDI disk image"},
		{"qemu-img create -q -f vhdx IMAGE 512M", "a VHDX disk image"},
		{"qemu-img create -q -f vpc IMAGE 512M", "a VHD disk image"},
	} {
		t.Run(c.command, func(t *testing.T) {
			image := filepath.Join(t.TempDir(), "image")
			if err := os.WriteFile(image, nil, 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.Truncate(image, 512<<20); err != nil {
				t.Fatal(err)
			}
			sh := exec.Command("sh", "-c", "PATH=$PATH:/usr/sbin:/sbin; "+strings.ReplaceAll(c.command, "IMAGE", `"$IMAGE"`))
			sh.Env = append(os.Environ(), "IMAGE="+image)
			if out, err := sh.CombinedOutput(); err != nil {
				t.Fatalf("%s: %v: %s (-short runs without these tools)", c.command, err, out)
			}
			f, err := os.Open(image)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			st, err := f.Stat()
			if err != nil {
				t.Fatal(err)
			}
			got, found, err := Detect(f, uint64(st.Size()))
			if err != nil || !found || got.Name != c.want || got.DiskImage != strings.Contains(c.command, "qemu-img") {
				t.Errorf("found %v %+v, %v, want %q", found, got, err, c.want)
			}
		})
	}
}

// Goal: a BTT is found in both flavours, also when only its backup info block is
// left and when the file has a tail that is no whole page.
func TestBTT(t *testing.T) {
	for _, f := range layout.Flavours() {
		for _, tail := range []uint64{0, 512, 4095} {
			size := f.Start + layout.MinArenaSize + tail
			g, err := layout.NewGeometry(layout.MinArenaSize, layout.Params{ExternalLBASize: 4096, Nfree: 256, Align: f.Align})
			if err != nil {
				t.Fatal(err)
			}
			info := g.Info(f, uuid.New(), uuid.Nil, 0)
			image := make([]byte, size)
			info.Encode(image[f.Start:])
			info.Encode(image[f.Start+g.InfoOff:])
			want := "a BTT (" + f.Name + ")"
			if f.Pool {
				want = "a BTT (pmemblk without its pool header)"
			}
			if what, found := detect(t, image); !found || what != want {
				t.Errorf("%s, tail %d: found %v %q, want %q", f.Name, tail, found, what, want)
			}
			clear(image[f.Start : f.Start+layout.InfoSize])
			want = "a BTT of which only a backup info block is left"
			if what, found := detect(t, image); !found || what != want {
				t.Errorf("%s, tail %d, no primary: found %v %q, want %q", f.Name, tail, found, what, want)
			}
		}
	}
}

// Goal: zeros and data of no known format have no name, and boot code is not a
// partition table.
func TestUnknown(t *testing.T) {
	for _, c := range []struct {
		name string
		size int
		set  map[int]byte
	}{
		{"empty", 0, nil},
		{"one byte", 1, map[int]byte{0: 1}},
		{"zeros", imageSize, nil},
		{"first byte", imageSize, map[int]byte{0: 1}},
		{"boot code", imageSize, map[int]byte{446: 0x31, 510: 0x55, 511: 0xAA}},
		{"empty partition table", imageSize, map[int]byte{510: 0x55, 511: 0xAA}},
	} {
		image := make([]byte, c.size)
		for off, b := range c.set {
			image[off] = b
		}
		if what, found := detect(t, image); found {
			t.Errorf("%s: found %q", c.name, what)
		}
	}
}

// Goal: the first byte other than zero is found wherever it stands, also beside the
// borders of pages and of what is read at once, and nothing outside the range counts.
func TestFirstByte(t *testing.T) {
	const size = 2*window + 4097
	image := make([]byte, size)
	r := bytes.NewReader(image)
	if at, found, err := FirstByte(t.Context(), r, 0, size); found || err != nil {
		t.Errorf("zeros: found %v at %d, %v", found, at, err)
	}
	for _, want := range []uint64{0, 1, 4095, 4096, window - 1, window, 2*window - 1, 2 * window, size - 2, size - 1} {
		image[want] = 0x80
		if at, found, err := FirstByte(t.Context(), r, 0, size); !found || at != want || err != nil {
			t.Errorf("found %v at %d, %v, want %d", found, at, err, want)
		}
		if at, found, err := FirstByte(t.Context(), r, want, 1); !found || at != want || err != nil {
			t.Errorf("from itself: found %v at %d, %v, want %d", found, at, err, want)
		}
		if at, found, err := FirstByte(t.Context(), r, 0, want); found || err != nil {
			t.Errorf("before %d: found %v at %d, %v", want, found, at, err)
		}
		if at, found, err := FirstByte(t.Context(), r, want+1, size-want-1); found || err != nil {
			t.Errorf("behind %d: found %v at %d, %v", want, found, at, err)
		}
		image[want] = 0
	}
}

// Goal: a search that is cancelled says why, and does not say "all zeros".
func TestFirstByteCancelled(t *testing.T) {
	why := errors.New("enough")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(why)
	if _, _, err := FirstByte(ctx, bytes.NewReader(make([]byte, imageSize)), 0, imageSize); !errors.Is(err, why) {
		t.Errorf("error %v, want %v", err, why)
	}
}

// Goal: every cut of a recognisable image is judged without a panic.
func TestShort(t *testing.T) {
	image := bytes.Repeat([]byte(btt), 1024)
	for size := range image {
		if what, found := detect(t, image[:size]); found != (size >= len(btt)) {
			t.Fatalf("size %d: found %v %q", size, found, what)
		}
	}
}

// Goal: a read error is an answer of its own and not "nothing found".
func TestReadError(t *testing.T) {
	bad := errors.New("medium error")
	if _, _, err := Detect(failing{bad}, imageSize); !errors.Is(err, bad) {
		t.Errorf("error %v, want %v", err, bad)
	}
	if _, _, err := FirstByte(t.Context(), failing{bad}, 0, imageSize); !errors.Is(err, bad) {
		t.Errorf("first byte: error %v, want %v", err, bad)
	}
}

type failing struct{ err error }

func (f failing) ReadAt([]byte, int64) (int, error) { return 0, f.err }

func detect(t *testing.T, image []byte) (string, bool) {
	t.Helper()
	c, found, err := Detect(bytes.NewReader(image), uint64(len(image)))
	if err != nil {
		t.Fatal(err)
	}
	return c.Name, found
}
