package signature

import "strings"

const btt = "BTT_ARENA_INFO\x00\x00"

// signature is a run of bytes by which a format is known.
type signature struct {
	offset int // in bytes; negative: from the end of the file
	magic  string
	name   string // as it fits into "PATH holds …"
}

func (s *signature) isDiskImage() bool { return strings.HasSuffix(s.name, " disk image") }

// table is searched from the top: what is more particular stands first, so that
// a pool or a filesystem is not taken for the boot sector or the left-over
// behind it. Sources: the formats' own documents, and what libblkid probes.
var table = []signature{
	// persistent memory
	{0, "PMEMBLK\x00", "a PMDK pmemblk pool"},
	{0, "PMEMOBJ\x00", "a PMDK pmemobj pool"},
	{0, "PMEMLOG\x00", "a PMDK pmemlog pool"},
	{0, "PMEMPOOLSET", "a PMDK pool set file"},
	{4096, btt, "a BTT (kernel)"},
	{0, btt, "a BTT (uefi)"},
	{8192, btt, "a BTT (pmemblk without its pool header)"},
	{4096, "NVDIMM_PFN_INFO\x00", "a Linux fsdax namespace"},
	{4096, "NVDIMM_DAX_INFO\x00", "a Linux devdax namespace"},

	// containers and volume managers
	{0, "LUKS\xba\xbe", "a LUKS volume"},
	{0x4000, "SKUL\xba\xbe", "a LUKS volume"}, // LUKS2, second header
	{0, "LABELONE", "an LVM2 physical volume"},
	{512, "LABELONE", "an LVM2 physical volume"},
	{1024, "LABELONE", "an LVM2 physical volume"},
	{1536, "LABELONE", "an LVM2 physical volume"},
	{0, "\xfc\x4e\x2b\xa9", "a Linux RAID member"},
	{4096, "\xfc\x4e\x2b\xa9", "a Linux RAID member"},
	{0, "QFI\xfb", "a qcow2 disk image"},
	{0, "KDMV", "a VMDK disk image"},
	{0, "# Disk DescriptorFile", "a VMDK disk image"},
	{64, "\x7f\x10\xda\xbe", "a VDI disk image"},
	{0, "vhdxfile", "a VHDX disk image"},
	{-512, "conectix", "a VHD disk image"},

	// filesystems and swap
	{0, "XFSB", "an XFS filesystem"},
	{0x438, "\x53\xef", "an ext2/3/4 filesystem"},
	{0x10040, "_BHRfS_M", "a btrfs filesystem"},
	{0x400, "\x10\x20\xf5\xf2", "an F2FS filesystem"},
	{0x20000, "\x0c\xb1\xba\x00\x00\x00\x00\x00", "a ZFS volume"},
	{0x8001, "CD001", "an ISO 9660 filesystem"},
	{0, "hsqs", "a squashfs filesystem"},
	{3, "EXFAT   ", "an exFAT filesystem"},
	{3, "NTFS    ", "an NTFS filesystem"},
	{54, "FAT12   ", "a FAT filesystem"},
	{54, "FAT16   ", "a FAT filesystem"},
	{82, "FAT32   ", "a FAT filesystem"},
	{4086, "SWAPSPACE2", "swap space"},
	{4086, "SWAP-SPACE", "swap space"},
	{16374, "SWAPSPACE2", "swap space"},
	{65526, "SWAPSPACE2", "swap space"},

	// partition tables: the protective MBR of a GPT must not hide it
	{512, "EFI PART", "a GPT partition table"},
	{4096, "EFI PART", "a GPT partition table"},
	{-512, "EFI PART", "a GPT partition table"},
	{-4096, "EFI PART", "a GPT partition table"},
}
