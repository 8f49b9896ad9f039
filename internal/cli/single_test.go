package cli

import (
	"os"
	"os/exec"
	"testing"

	"golang.org/x/sys/unix"
)

// Goal: --single leaves what it was given as stdin and stdout blocking, as it was.
func TestSingleRestoresStdio(t *testing.T) {
	t.Chdir(t.TempDir())
	socketpair := func(t *testing.T) (ours, theirs [2]int) {
		p, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		return [2]int{p[0], p[0]}, [2]int{p[1], p[1]}
	}
	pipes := func(t *testing.T) (ours, theirs [2]int) {
		var in, out [2]int
		for _, p := range []*[2]int{&in, &out} {
			if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
				t.Fatal(err)
			}
		}
		return [2]int{in[1], out[0]}, [2]int{in[0], out[1]}
	}
	for name, make := range map[string]func(*testing.T) (ours, theirs [2]int){"socket": socketpair, "pipes": pipes} {
		t.Run(name, func(t *testing.T) {
			ours, theirs := make(t)
			cmd := exec.Command("bttnbd", "serve", "--single", "--create", "32M", "disk.img")
			cmd.Env = append(os.Environ(), "GORACE="+quickExit)
			cmd.Stdin = os.NewFile(uintptr(theirs[0]), "in")
			cmd.Stdout = os.NewFile(uintptr(theirs[1]), "out")
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			unix.Close(ours[0]) // a client that goes at once
			_ = cmd.Wait()
			for _, fd := range theirs {
				flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
				if err != nil || flags&unix.O_NONBLOCK != 0 {
					t.Errorf("flags %#x, %v", flags, err)
				}
			}
			if ours[1] != ours[0] {
				unix.Close(ours[1])
			}
		})
	}
}
