#include "textflag.h"

// func Pause()
TEXT ·Pause(SB), NOSPLIT, $0-0
	MOVL $20, CX

loop:
	PAUSE
	DECL CX
	JNZ  loop
	RET
