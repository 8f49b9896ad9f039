package clienttest

import (
	"encoding/json"
	"fmt"
	"testing"
)

// Goal: ndctl, the kernel developers' own tool, accepts the info blocks of what we
// create, and again after use.
func TestNdctl(t *testing.T) {
	need(t, "ndctl", "qemu-io")
	for _, format := range []string{"kernel", "uefi"} {
		for _, sector := range []int{512, 4096, 520, 528, 4104, 4160, 4224, 16384} {
			if testing.Short() && sector != 512 && sector != 4104 {
				continue
			}
			t.Run(fmt.Sprintf("%s/%d", format, sector), func(t *testing.T) {
				img := create(t, tmpfs(t), 64*mib, sector, "--format", format)
				acceptedByNdctl(t, img)
				s := serve(t, img)
				qemuIO(t, s.uri, "write -P 1 0 8M", "discard 0 1M")
				s.stop(t)
				acceptedByNdctl(t, img)
			})
		}
	}
}

// acceptedByNdctl fails the test unless ndctl finds a BTT and verifies it (-V).
func acceptedByNdctl(t *testing.T, img image) {
	t.Helper()
	out := run(t, "ndctl", "read-infoblock", "-i", img.path, "-j", "-V")
	var blocks []struct {
		Signature string
		Sector    int `json:"external_lbasize"`
	}
	if err := json.Unmarshal([]byte(out), &blocks); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if len(blocks) != 1 || blocks[0].Signature != "BTT_ARENA_INFO" || blocks[0].Sector != img.sector {
		t.Errorf("ndctl read-infoblock shows:\n%s", out)
	}
}
