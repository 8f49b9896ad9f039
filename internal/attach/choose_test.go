package attach

import (
	"strings"
	"testing"

	"github.com/bttnbd/bttnbd/internal/kernel"
)

// Goal: who cannot have an image attached, as a device has its UUID, is told whether that
// serves or waits, and this file or a copy of it; and what can be done then, and only that.
func TestHolderRefuses(t *testing.T) {
	ublk, nbd := kernel.UblkOf(1<<19), kernel.DeviceOf(1<<19)
	known := State{Source: "/copy.btt", Inode: "1:2"}
	for _, c := range []struct {
		h     holder
		inode string
		want  string
	}{
		{holder{ublk, true, known, true}, "1:3", "/t.btt is a copy of /copy.btt (another file with the same UUID), which DEV serves: bttnbd detach DEV first"},
		{holder{nbd, true, known, false}, "1:3", "/t.btt is a copy of /copy.btt (another file with the same UUID), which DEV waits for: attach that one, or bttnbd detach DEV first"},
		{holder{ublk, true, known, false}, "1:2", "DEV is attached from this very image, and waits for it: bttnbd attach --ublk auto /t.btt, or bttnbd detach DEV first"},
		{holder{nbd, true, known, false}, "1:2", "DEV is attached from this very image, and waits for it: bttnbd attach auto /t.btt, or bttnbd detach DEV first"},
		{holder{ublk, true, known, true}, "1:2", "DEV is attached from this very image: bttnbd detach DEV first"},
		{holder{ublk, false, State{}, true}, "1:2", "DEV is attached from this image, or a copy of it: bttnbd detach DEV first"},
		{holder{nbd, false, State{}, false}, "1:2", "DEV is attached from this image, or a copy of it: bttnbd attach auto /t.btt, or bttnbd detach DEV first"},
	} {
		want := strings.ReplaceAll(c.want, "DEV", c.h.dev.Path())
		if got := c.h.refuse("/t.btt", c.inode).Error(); got != want {
			t.Errorf("says\n%s\nwant\n%s", got, want)
		}
	}
}
