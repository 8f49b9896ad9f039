//go:build !race

#include "textflag.h"

// func ctrEL0() uint64
TEXT ·ctrEL0(SB), NOSPLIT, $0-8
	MRS  CTR_EL0, R0
	MOVD R0, ret+0(FP)
	RET

// The two cleans differ in one instruction. The start is rounded DOWN to its line;
// line is a power of two. DSB SY (15) ends each, in the same routine, because it
// completes only the cleans of its own PE and the goroutine may move to another
// one on return. Go does not preempt assembly; when the kernel moves the thread in
// the middle, its context switch issues a DSB.

// func cleanPersistence(p *byte, n, line uintptr)
TEXT ·cleanPersistence(SB), NOSPLIT, $0-24
	MOVD p+0(FP), R0
	MOVD n+8(FP), R1
	MOVD line+16(FP), R2
	ADD  R0, R1, R1         // end
	SUB  $1, R2, R3
	BIC  R3, R0, R0

loop:
	CMP R1, R0
	BHS done
	DC  CVAP, R0
	ADD R2, R0, R0
	B   loop

done:
	DSB $15
	RET

// func cleanCoherency(p *byte, n, line uintptr)
TEXT ·cleanCoherency(SB), NOSPLIT, $0-24
	MOVD p+0(FP), R0
	MOVD n+8(FP), R1
	MOVD line+16(FP), R2
	ADD  R0, R1, R1
	SUB  $1, R2, R3
	BIC  R3, R0, R0

loop:
	CMP R1, R0
	BHS done
	DC  CVAC, R0
	ADD R2, R0, R0
	B   loop

done:
	DSB $15
	RET

// func dsb()
TEXT ·dsb(SB), NOSPLIT, $0-0
	DSB $15
	RET

// func dmbLoads()
// DMB ISHLD: every earlier load is done before any later load or store.
TEXT ·dmbLoads(SB), NOSPLIT, $0-0
	DMB $9
	RET
