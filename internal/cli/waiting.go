package cli

import (
	"fmt"

	"github.com/bttnbd/bttnbd/internal/attach"
	"github.com/bttnbd/bttnbd/internal/kernel"
	"github.com/bttnbd/bttnbd/pmem"
)

// waiting is [attach.Waiting], but in tests.
var waiting = attach.Waiting

// refuseWaited refuses to write to an image for which a device waits that has lost its
// server: the filesystem there has to find the image as it was. r has it open for
// writing.
func refuseWaited(r *pmem.Region) error {
	d, found, err := waitingFor(r)
	if err != nil || !found {
		return err
	}
	return fmt.Errorf("%s: %s was attached from it, has no server, and waits for it as it was: nothing was changed: attach it again (%s), or bttnbd detach %s first",
		r.Path(), d.Path(), attachAgain(d, r.Path()), d.Path())
}

// refuseGrowth refuses to grow an image for which a device waits that keeps its size. An
// NBD device gets that of its image when it is attached again.
func refuseGrowth(r *pmem.Region) error {
	d, found, err := waitingFor(r)
	if err != nil || !found || !d.IsUblk() {
		return err
	}
	return fmt.Errorf("%s: %s was attached from it, has no server, and waits for it in this size: nothing was changed: attach it again (%s), unmount and bttnbd detach %s, and then grow it",
		r.Path(), d.Path(), attachAgain(d, r.Path()), d.Path())
}

func waitingFor(r *pmem.Region) (d kernel.Device, found bool, err error) {
	is, err := r.Stat()
	if err != nil {
		return d, false, withPath(r.Path(), err)
	}
	d, found = waiting(is)
	return d, found, nil
}

// attachAgain is the command that gives the device a server again; source is a path or a
// URI.
func attachAgain(d kernel.Device, source string) string {
	flags := ""
	if d.IsUblk() {
		flags += "--ublk "
	}
	if d.ReadOnly() && !attach.IsURI(source) {
		flags += "--read-only "
	}
	word := shellQuote(source)
	if !attach.IsURI(source) {
		word = shellWord(source)
	}
	return fmt.Sprintf("bttnbd attach %s%s %s", flags, d.Path(), word)
}
