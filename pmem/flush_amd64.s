//go:build !race

#include "textflag.h"

// func cpuid7() uint32
TEXT ·cpuid7(SB), NOSPLIT, $0-4
	MOVL $0, ret+0(FP)
	XORL AX, AX
	CPUID
	CMPL AX, $7             // highest leaf
	JB   done
	MOVL $7, AX
	XORL CX, CX
	CPUID
	MOVL BX, ret+0(FP)

done:
	RET

// The three write-backs differ in one instruction. The start is rounded DOWN to
// its line and the end is not counted in lines: n/64 lines from an unaligned
// start would miss the last one.

// func clwb(p *byte, n uintptr)
TEXT ·clwb(SB), NOSPLIT, $0-16
	MOVQ p+0(FP), AX
	MOVQ n+8(FP), CX
	ADDQ AX, CX             // end
	ANDQ $~63, AX

loop:
	CMPQ AX, CX
	JAE  done
	CLWB (AX)
	ADDQ $64, AX
	JMP  loop

done:
	RET

// func clflushopt(p *byte, n uintptr)
TEXT ·clflushopt(SB), NOSPLIT, $0-16
	MOVQ p+0(FP), AX
	MOVQ n+8(FP), CX
	ADDQ AX, CX
	ANDQ $~63, AX

loop:
	CMPQ       AX, CX
	JAE        done
	CLFLUSHOPT (AX)
	ADDQ       $64, AX
	JMP        loop

done:
	RET

// func clflush(p *byte, n uintptr)
TEXT ·clflush(SB), NOSPLIT, $0-16
	MOVQ p+0(FP), AX
	MOVQ n+8(FP), CX
	ADDQ AX, CX
	ANDQ $~63, AX

loop:
	CMPQ    AX, CX
	JAE     done
	CLFLUSH (AX)
	ADDQ    $64, AX
	JMP     loop

done:
	RET

// Both movnt routines walk DI from dst to dst+n, which are multiples of 8:
//
//	head  8 bytes at a time up to a 64-byte line
//	line  64 bytes, four 16-byte stores: one full write-combining buffer
//	tail  8 bytes at a time
//
// MOVNTO is MOVNTDQ, which needs 16-byte aligned memory; the source may be
// anywhere. SSE2 is part of every amd64.

// func movntCopy(dst, src *byte, n uintptr)
TEXT ·movntCopy(SB), NOSPLIT, $0-24
	MOVQ dst+0(FP), DI
	MOVQ src+8(FP), SI
	MOVQ n+16(FP), CX

head:
	TESTQ   $63, DI
	JZ      line
	CMPQ    CX, $8
	JB      done
	MOVQ    (SI), AX
	MOVNTIQ AX, (DI)
	ADDQ    $8, SI
	ADDQ    $8, DI
	SUBQ    $8, CX
	JMP     head

line:
	CMPQ   CX, $64
	JB     tail
	MOVOU  0(SI), X0
	MOVOU  16(SI), X1
	MOVOU  32(SI), X2
	MOVOU  48(SI), X3
	MOVNTO X0, 0(DI)
	MOVNTO X1, 16(DI)
	MOVNTO X2, 32(DI)
	MOVNTO X3, 48(DI)
	ADDQ   $64, SI
	ADDQ   $64, DI
	SUBQ   $64, CX
	JMP    line

tail:
	CMPQ    CX, $8
	JB      done
	MOVQ    (SI), AX
	MOVNTIQ AX, (DI)
	ADDQ    $8, SI
	ADDQ    $8, DI
	SUBQ    $8, CX
	JMP     tail

done:
	RET

// func movntLines(dst, src *byte, n uintptr)
// As movntCopy, for whole lines: each is one store (AVX-512F).
TEXT ·movntLines(SB), NOSPLIT, $0-24
	MOVQ dst+0(FP), DI
	MOVQ src+8(FP), SI
	MOVQ n+16(FP), CX
	ADDQ DI, CX             // end

loop:
	VMOVDQU64 (SI), Z0
	VMOVNTDQ  Z0, (DI)
	ADDQ      $64, SI
	ADDQ      $64, DI
	CMPQ      DI, CX
	JB        loop
	VZEROUPPER
	RET

// func movntZero(dst *byte, n uintptr)
TEXT ·movntZero(SB), NOSPLIT, $0-16
	MOVQ dst+0(FP), DI
	MOVQ n+8(FP), CX
	XORL AX, AX
	PXOR X0, X0

head:
	TESTQ   $63, DI
	JZ      line
	CMPQ    CX, $8
	JB      done
	MOVNTIQ AX, (DI)
	ADDQ    $8, DI
	SUBQ    $8, CX
	JMP     head

line:
	CMPQ   CX, $64
	JB     tail
	MOVNTO X0, 0(DI)
	MOVNTO X0, 16(DI)
	MOVNTO X0, 32(DI)
	MOVNTO X0, 48(DI)
	ADDQ   $64, DI
	SUBQ   $64, CX
	JMP    line

tail:
	CMPQ    CX, $8
	JB      done
	MOVNTIQ AX, (DI)
	ADDQ    $8, DI
	SUBQ    $8, CX
	JMP     tail

done:
	RET

// func movLines(dst, src *byte, n uintptr)
// Copies n bytes, a multiple of 256 and not 0 (AVX-512F). Registers from 16 on need
// no VZEROUPPER.
TEXT ·movLines(SB), NOSPLIT, $0-24
	MOVQ dst+0(FP), DI
	MOVQ src+8(FP), SI
	MOVQ n+16(FP), CX
	ADDQ DI, CX             // end

loop:
	VMOVDQU64 0(SI), Z16
	VMOVDQU64 64(SI), Z17
	VMOVDQU64 128(SI), Z18
	VMOVDQU64 192(SI), Z19
	VMOVDQU64 Z16, 0(DI)
	VMOVDQU64 Z17, 64(DI)
	VMOVDQU64 Z18, 128(DI)
	VMOVDQU64 Z19, 192(DI)
	ADDQ      $256, SI
	ADDQ      $256, DI
	CMPQ      DI, CX
	JB        loop
	RET

// func sfence()
TEXT ·sfence(SB), NOSPLIT, $0-0
	SFENCE
	RET

// func movsb(dst, src *byte, n uintptr)
TEXT ·movsb(SB), NOSPLIT, $0-24
	MOVQ dst+0(FP), DI
	MOVQ src+8(FP), SI
	MOVQ n+16(FP), CX
	REP; MOVSB
	RET

// func prefetch(p *byte, n uintptr)
TEXT ·prefetch(SB), NOSPLIT, $0-16
	MOVQ p+0(FP), AX
	MOVQ n+8(FP), CX
	ADDQ AX, CX

loop:
	CMPQ       AX, CX
	JAE        done
	PREFETCHT0 (AX)
	ADDQ       $64, AX
	JMP        loop

done:
	RET
