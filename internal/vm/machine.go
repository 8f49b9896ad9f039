package vm

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
)

// A Machine says what a guest is made of. The zero value has 2 CPUs, 1 GiB of
// memory, busybox, ndctl, and no NVDIMM.
type Machine struct {
	Series  string            // of the kernel, see [FindKernel]
	NVDIMMs []NVDIMM          // the first is region $R0 in the script, with /dev/pmem$R0; and so on
	Files   map[string]string // name in the guest → file of the host
	Trees   []Tree            // parts of unpacked packages
	Tools   []string          // programs of the host; they come with their libraries
	Modules []string          // kernel modules that the script may load, besides the usual
	Memory  string            // as QEMU writes it; "" is 1G
	QEMU    []string          // further arguments
}

// A Tree is a part of what a package of the host's distribution has unpacked. In the
// guest it has the same paths, its links are links, and its programs come with their
// libraries, which the host must have.
type Tree struct {
	Root  string   // directory of the host
	Paths []string // files and directories below it
}

// An NVDIMM is a file of the host as persistent memory of the guest. Without its
// label area the size must be a multiple of 16 MiB.
type NVDIMM struct {
	Path      string
	LabelSize int64 // bytes at the end of the file that hold labels; at least 128 KiB, or 0
}

// Start boots the machine and runs the script with sh, as root. The script's output
// and status are those of the [Guest]; when it ends the machine is switched off.
// The end of ctx is a power cut.
func (m *Machine) Start(ctx context.Context, script string) (*Guest, error) {
	k, err := FindKernel(m.Series)
	if err != nil {
		return nil, err
	}
	initrd, err := os.CreateTemp("", "bttnbd-initrd-*")
	if err != nil {
		return nil, err
	}
	defer initrd.Close()
	// QEMU gets it as an open file, so that no name has to be removed later.
	defer os.Remove(initrd.Name())
	if err := m.writeInitramfs(initrd, k, script); err != nil {
		return nil, fmt.Errorf("making the initramfs: %w", err)
	}
	args, err := m.arguments(k)
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, "qemu-system-x86_64", args...)
	cmd.ExtraFiles = []*os.File{initrd}
	// No guest outlives the program that runs it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return start(ctx, cmd)
}

// Run is [Machine.Start] and [Guest.Wait].
func (m *Machine) Run(ctx context.Context, script string) (*Result, error) {
	g, err := m.Start(ctx, script)
	if err != nil {
		return nil, err
	}
	return g.Wait()
}

// patience keeps a kernel from taking a slow host, or a frozen machine, for broken
// hardware or for a bug of its own.
const patience = "no_timer_check nowatchdog rcupdate.rcu_cpu_stall_suppress=1"

// The files that QEMU inherits: the initramfs here, then the serial ports.
const (
	initrdFD = 3 + iota
	firstPortFD
)

const mib = 1 << 20

// arguments are QEMU's. Software emulation is quick enough, and works everywhere.
func (m *Machine) arguments(k *Kernel) ([]string, error) {
	memory := m.Memory
	if memory == "" {
		memory = "1G"
	}
	var dimms []string
	var total int64
	for i, d := range m.NVDIMMs {
		st, err := os.Stat(d.Path)
		if err != nil {
			return nil, fmt.Errorf("NVDIMM %d: %w", i, err)
		}
		if size := st.Size() - d.LabelSize; size <= 0 || size%(16*mib) != 0 {
			return nil, fmt.Errorf("NVDIMM %d: %s: %d bytes besides the label area: Linux wants a multiple of 16 MiB", i, d.Path, size)
		}
		path, err := filepath.Abs(d.Path)
		if err != nil {
			return nil, err
		}
		total += st.Size()
		device := fmt.Sprintf("nvdimm,slot=%d,memdev=mem%d", i, i)
		if d.LabelSize > 0 {
			device += fmt.Sprintf(",label-size=%d", d.LabelSize)
		}
		dimms = append(dimms, "-device", device, "-object",
			fmt.Sprintf("memory-backend-file,id=mem%d,share=on,mem-path=%s,size=%d,align=2M", i, path, st.Size()))
	}
	// Each DIMM takes up to 1 GiB more of the address space than it has.
	args := []string{
		"-machine", "q35,nvdimm=on", "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2",
		"-m", fmt.Sprintf("%s,slots=%d,maxmem=%dM", memory, max(1, len(m.NVDIMMs)), total/mib+int64(len(m.NVDIMMs)+16)*1024),
		"-nodefaults", "-display", "none", "-no-reboot",
		"-kernel", k.image(), "-initrd", fmt.Sprintf("/proc/self/fd/%d", initrdFD),
		"-append", "console=ttyS0 loglevel=5 panic=-1 " + patience,
	}
	for i := range ports {
		args = append(args, "-serial", fmt.Sprintf("file:/proc/self/fd/%d", firstPortFD+i))
	}
	args = append(args, dimms...)
	return append(args, m.QEMU...), nil
}
