package layout_test

import (
	"bytes"
	"fmt"
	"io"
	"log"

	"github.com/google/uuid"

	"github.com/bttnbd/bttnbd/layout"
)

// What an image of a given size can hold, before there is one.
func ExampleFlavour_Geometry() {
	g, err := layout.Kernel.Geometry(1<<30-layout.Kernel.Start, 4096, 256)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("blocks:", g.ExternalNLBA)
	fmt.Println("bytes: ", uint64(g.ExternalNLBA)*4096)
	fmt.Printf("map at %#x, flog at %#x, backup info at %#x\n", g.MapOff, g.FlogOff, g.InfoOff)
	// Output:
	// blocks: 261624
	// bytes:  1071611904
	// map at 0x3fefa000, flog at 0x3fffa000, backup info at 0x3fffe000
}

// Reading an info block: from the first 4096 bytes of an arena, or its last.
func ExampleDecodeInfo() {
	g, err := layout.UEFI.Geometry(32<<20, 512, 256)
	if err != nil {
		log.Fatal(err)
	}
	block := make([]byte, layout.InfoSize)
	id := uuid.MustParse("6a1e9a0e-95a4-4a4f-8f5e-1f5a9d9f1c02")
	in := g.Info(layout.UEFI, id, uuid.Nil, 0)
	in.Encode(block)

	in, err = layout.DecodeInfo(block)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%v, version %d.%d, %d blocks of %d bytes\n", in.UUID, in.Major, in.Minor, in.ExternalNLBA, in.ExternalLBASize)

	block[100] ^= 1
	_, err = layout.DecodeInfo(block)
	fmt.Println(err)
	// Output:
	// 6a1e9a0e-95a4-4a4f-8f5e-1f5a9d9f1c02, version 2.0, 64716 blocks of 512 bytes
	// bad info block checksum
}

// Which flavour an image is, by the info block at the start of its first arena. The
// image may be a file, a device or, as here, bytes; package check looks at the backup
// copies, too.
func ExampleFlavours() {
	image := make([]byte, 64<<20)
	g, err := layout.Kernel.Geometry(uint64(len(image))-layout.Kernel.Start, 4096, layout.DefaultNfree)
	if err != nil {
		log.Fatal(err)
	}
	in := g.Info(layout.Kernel, uuid.MustParse("6a1e9a0e-95a4-4a4f-8f5e-1f5a9d9f1c02"), uuid.Nil, 0)
	in.Encode(image[layout.Kernel.Start:])

	var r io.ReaderAt = bytes.NewReader(image)
	for _, f := range layout.Flavours() {
		block := make([]byte, layout.InfoSize)
		if _, err := r.ReadAt(block, int64(f.Start)); err != nil {
			log.Fatal(err)
		}
		in, err := layout.DecodeInfo(block)
		if err == nil && in.Major == f.Major && in.Minor == f.Minor {
			fmt.Printf("%s: %d blocks of %d bytes, map at %d\n", f.Name, in.ExternalNLBA, in.ExternalLBASize, f.Start+in.MapOff)
		} else {
			fmt.Printf("%s: %v\n", f.Name, err)
		}
	}
	// Output:
	// pmemblk: no BTT signature
	// kernel: 16104 blocks of 4096 bytes, map at 67022848
	// uefi: no BTT signature
}

// The four meanings of a map entry.
func ExampleMapEntry() {
	for _, e := range []layout.MapEntry{0, layout.ErrorEntry(7), layout.ZeroEntry(7), layout.NormalEntry(7)} {
		fmt.Printf("%08x is %v\n", uint32(e), e.State())
	}
	// Output:
	// 00000000 is initial
	// 40000007 is error
	// 80000007 is zero
	// c0000007 is normal
}
