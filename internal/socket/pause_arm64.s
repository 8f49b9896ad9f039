#include "textflag.h"

// func Pause()
TEXT ·Pause(SB), NOSPLIT, $0-0
	MOVW $20, R0

loop:
	YIELD
	SUBS $1, R0
	BNE  loop
	RET
