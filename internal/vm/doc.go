// Package vm runs a shell script in a small Linux guest with file-backed NVDIMMs:
// a real kernel as a referee for what this project writes, and a machine whose
// power can be cut. It needs no root and no KVM, and takes some ten seconds a run.
//
//	kernel.go     the guest's kernel and modules, unpacked by scripts/vm-deps
//	initramfs.go  the guest's only filesystem: busybox, tools, the script
//	systemd.go    what of systemd and udev a guest can have in it
//	cpio.go       the format of an initramfs
//	init          process 1 of the guest
//	machine.go    what the guest is made of, and QEMU's command line
//	guest.go      a running guest: its output, its end, its sudden end
//
// An NVDIMM is a file mapped shared by QEMU. Each store of the guest is in the
// file at once, and what is in the file the guest sees as persistent memory, so
// the host can look at it meanwhile and afterwards. A killed QEMU is a power
// failure in which all stores made so far survive, in program order; which of
// them a real one might lose is the matter of the simulator in package pmemtest.
//
// The guest's BTTs are the kernel's own driver (nd_btt): a file that holds a BTT
// of format kernel is /dev/pmemNs after the boot.
package vm
