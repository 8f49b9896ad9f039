// Package layout is the on-media format of the Block Translation Table (BTT) as
// pure functions over bytes and numbers: no I/O, no unsafe, no allocation in the
// codecs. It knows what the bytes mean; it does not know where they come from.
//
// Sources: UEFI 2.11 chapter 6 "Block Translation Table Layout"; Linux
// drivers/nvdimm/btt.h; PMDK src/libpmemblk/btt_layout.h. All integers on media
// are little-endian.
//
// # Container
//
// A container (namespace, image file, pool) holds arenas back to back. The first
// begins where the [Flavour] says; each but the last is 512 GiB, unless the image has
// grown: then they have any size.
//
//	kernel   0        4096                        4096+2^39
//	         | unused | arena 0                   | arena 1 … | rest, if < 16 MiB
//	uefi     0                                    2^39
//	         | arena 0                            | arena 1 … | rest, if < 16 MiB
//	pmemblk  0        4096       8192             8192+2^39
//	         | header | block    | arena 0        | arena 1 … | rest, if < 16 MiB
//	         |        | size, …  |
//
// The 16 bytes of a uuid are kept as they stand on media. Linux and ndctl print
// them in that order; PMDK prints the first three groups with their bytes
// reversed, as a GUID (see [GUIDText]). So the parent uuid of one and the same
// pool reads differently in the two worlds.
//
// # Arena
//
// All offsets in an info block are relative to the start of its own arena.
//
//	0          dataoff                    mapoff          flogoff       infooff
//	| info     | internal blocks  | slack | map           | flog        | info, |
//	| (4096 B) | 0 … internal_nlba-1      | 4 B a pre-map | 64 B a lane | backup|
//	                                      LBA, padded to 4096 each
//
// # Info block (4096 bytes, in two copies)
//
//	  0  16 signature "BTT_ARENA_INFO\0\0"    64  4 internal_lbasize
//	 16  16 uuid         same in all arenas   68  4 internal_nlba = external_nlba + nfree
//	 32  16 parent_uuid  of the namespace     72  4 nfree         lanes, 256 by custom
//	 48   4 flags        bit 0: error         76  4 infosize      4096
//	 52   2 major        1 | 2                80  8 nextoff       0 in the last arena
//	 54   2 minor        1 | 0                88  8 dataoff       4096
//	 56   4 external_lbasize                  96  8 mapoff
//	 60   4 external_nlba                    104  8 flogoff
//	                                         112  8 infooff       the backup copy
//	120  3968 reserved, zero               4088  8 checksum, see [Fletcher64]
//
// # Map entry (4 bytes)
//
//	 31      30      29                                   0
//	| zero  | error | post-map block (30 bits)             |
//	   0       0      initial: never written, owns the block of its own number
//	   0       1      error:   reads fail, the block is owned all the same
//	   1       0      zero:    reads as zeros, the block is owned all the same
//	   1       1      normal
//
// # Flog (64 bytes a lane)
//
// Two records of 16 bytes; the one with the newer sequence number is current.
// The second stands at 16 in the padding scheme of UEFI, PMDK and Linux since
// 4.15, at 32 in that of Linux 4.1 to 4.14 (see [Padding]).
//
//	 0   4   8   12   16  20  24  28   32            48          64
//	| lba| old| new| seq| lba| old| new| seq| 0 … 0                |   {0,1}
//	| lba| old| new| seq| 0 … 0             | lba| old| new| seq| 0 |   {0,2}
//
// Sequence numbers run 1, 2, 3, 1 …; 0 means never written. A record becomes
// current with the one aligned 8-byte store of {new, seq}.
package layout
