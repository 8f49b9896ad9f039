// Command vmrun runs a shell script in a Linux guest with file-backed NVDIMMs, and
// exits with the script's status; see package vm.
//
//	go run ./internal/vm/vmrun -nvdimm disk.btt script.sh
//	echo 'ndctl list -Ni; dmesg' | go run ./internal/vm/vmrun -nvdimm disk.btt -
//	go run ./internal/vm/vmrun -file /usr/bin/bttnbd=bin/bttnbd -tool mkfs.ext4 script.sh
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"time"

	"github.com/bttnbd/bttnbd/internal/vm"
)

func main() {
	status, err := run()
	if err != nil {
		fmt.Fprintln(os.Stderr, "vmrun:", err)
		os.Exit(125)
	}
	os.Exit(status)
}

func run() (int, error) {
	m := vm.Machine{Files: map[string]string{}}
	flag.Func("nvdimm", "`FILE[:LABELSIZE]` of the host as an NVDIMM; may be repeated", func(s string) error {
		path, label, labelled := strings.Cut(s, ":")
		d := vm.NVDIMM{Path: path}
		var err error
		if labelled {
			d.LabelSize, err = strconv.ParseInt(label, 0, 64)
		}
		m.NVDIMMs = append(m.NVDIMMs, d)
		return err
	})
	flag.Func("file", "`NAME=FILE`: a file of the host under a name in the guest; may be repeated", func(s string) error {
		name, from, ok := strings.Cut(s, "=")
		if !ok {
			return fmt.Errorf("%s: write NAME=FILE", s)
		}
		m.Files[name] = from
		return nil
	})
	list := func(to *[]string) func(string) error {
		return func(s string) error { *to = append(*to, s); return nil }
	}
	flag.Func("tool", "a `PROGRAM` of the host, with its libraries; may be repeated", list(&m.Tools))
	flag.Func("module", "a kernel `MODULE` that the script may load; may be repeated", list(&m.Modules))
	flag.Func("qemu", "a further `ARGUMENT` for QEMU; may be repeated", list(&m.QEMU))
	flag.StringVar(&m.Series, "kernel", "", "series of the kernel, 6.1 or 6.12 (default $BTTNBD_VM_KERNEL or 6.1)")
	timeout := flag.Duration("timeout", 5*time.Minute, "cut the power after this long")
	flag.Parse()
	if flag.NArg() != 1 {
		flag.Usage()
		return 64, nil
	}
	script, err := readScript(flag.Arg(0))
	if err != nil {
		return 0, err
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	ctx, cancel := context.WithTimeout(ctx, *timeout)
	defer cancel()
	r, err := m.Run(ctx, script)
	if err != nil {
		return 0, err
	}
	fmt.Fprint(os.Stderr, r.Console)
	fmt.Print(r.Output)
	return r.Status, nil
}

func readScript(name string) (string, error) {
	if name == "-" {
		b, err := io.ReadAll(os.Stdin)
		return string(b), err
	}
	b, err := os.ReadFile(name)
	return string(b), err
}
