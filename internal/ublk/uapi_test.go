package ublk

import (
	"bytes"
	"encoding/hex"
	"strings"
	"testing"
)

// Goal: commands have the numbers that the header's _IOR and _IOWR make, as a program
// in C prints them.
func TestCommandNumbers(t *testing.T) {
	for name, tc := range map[string]struct{ got, want uint32 }{
		"UBLK_U_CMD_GET_DEV_INFO":        {cmdInfo, 0x80207502},
		"UBLK_U_CMD_ADD_DEV":             {cmdAdd, 0xc0207504},
		"UBLK_U_CMD_DEL_DEV":             {cmdDelete, 0xc0207505},
		"UBLK_U_CMD_START_DEV":           {cmdStart, 0xc0207506},
		"UBLK_U_CMD_STOP_DEV":            {cmdStop, 0xc0207507},
		"UBLK_U_CMD_SET_PARAMS":          {cmdSetParams, 0xc0207508},
		"UBLK_U_CMD_START_USER_RECOVERY": {cmdStartRecovery, 0xc0207510},
		"UBLK_U_CMD_END_USER_RECOVERY":   {cmdEndRecovery, 0xc0207511},
		"UBLK_U_CMD_DEL_DEV_ASYNC":       {cmdDeleteAsync, 0x80207514},
		"UBLK_U_IO_FETCH_REQ":            {cmdFetch, 0xc0107520},
		"UBLK_U_IO_COMMIT_AND_FETCH_REQ": {cmdCommit, 0xc0107521},
	} {
		if tc.got != tc.want {
			t.Errorf("%s is %#x, want %#x", name, tc.got, tc.want)
		}
	}
}

// memory is what a structure looks like on a little-endian machine, in hex.
func memory(t *testing.T, text string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.NewReplacer(" ", "", "\n", "", "\t", "").Replace(text))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// Goal: what goes to the driver and comes from it lies where the structures of its header
// have it, and nothing is left of what was in the buffer before.
func TestStructures(t *testing.T) {
	in := Info{Queues: 2, Depth: 64, State: Quiesced, MaxIO: 0x40000, Index: 7, PID: -1, Flags: 0x58, Cookie: 0x1122334455667788}
	p := params{attrs: attrFUA | attrVolatileCache, logicalShift: 12, physicalShift: 12, maxSectors: 512, sectors: 0x123456789, granularity: 4096, maxDiscard: 0x20000, maxWriteZeroes: 0x20001}
	readOnly := p
	readOnly.maxDiscard = 0
	c := control{index: 3, size: 64, addr: 0x7f0102030405, data: 0x99}
	for name, tc := range map[string]struct {
		encode func([]byte)
		want   string
	}{
		"ublksrv_ctrl_dev_info": {in.encode, `0200 4000 0200 0000 00000400 07000000 ffffffff 00000000
			5800000000000000 8877665544332211 0000000000000000 0000000000000000 0000000000000000`},
		"ublk_params": {p.encode, `3c000000 03000000 0c000000 0c 0c 0c 0c 00020000 00000000 8967452301000000 0000000000000000
			00000000 00100000 00000200 01000200 0100 0000`},
		"ublk_params without discard": {readOnly.encode, `3c000000 03000000 0c000000 0c 0c 0c 0c 00020000 00000000 8967452301000000 0000000000000000
			00000000 00100000 00000000 01000200 0000 0000`},
		"ublksrv_ctrl_cmd": {c.encode, `03000000 ffff 4000 050403 02017f0000 9900000000000000`},
		"ublksrv_io_cmd": {func(b []byte) { encodeIO(b, 1, 63, -5, 0x7f0102030405) },
			`0100 3f00 fbffffff 05040302017f0000`},
	} {
		want := memory(t, tc.want)
		got := bytes.Repeat([]byte{0xee}, len(want))
		tc.encode(got)
		if !bytes.Equal(got, want) {
			t.Errorf("struct %s:\n%x, want\n%x", name, got, want)
		}
	}
	b := make([]byte, infoSize)
	in.encode(b)
	if got := decodeInfo(b); got != in {
		t.Errorf("read back %+v, want %+v", got, in)
	}
	// Other flags, UBLK_IO_F_META and UBLK_IO_F_NOUNMAP, mean nothing to us.
	if got, want := decodeDesc(memory(t, "01 a80000 08000000 0900000000000000 0000000000000000")), (desc{opWrite, true, 9 * 512, 4096}); got != want {
		t.Errorf("request %+v, want %+v", got, want)
	}
	if got, want := decodeDesc(memory(t, "03 880000 00000200 0000000001000000 0000000000000000")), (desc{opDiscard, false, 1 << 41, 64 << 20}); got != want {
		t.Errorf("request %+v, want %+v", got, want)
	}
}

// Goal: a device for an image is one that writes back and keeps what FUA says, in the
// image's blocks, and only a read-only one takes no writes.
func TestParams(t *testing.T) {
	p := (&Spec{Size: 3 << 12, BlockSize: 4096}).params()
	if p.attrs != attrVolatileCache|attrFUA || p.logicalShift != 12 || p.sectors != 24 || p.granularity != 4096 || p.maxSectors != maxIO/512 {
		t.Errorf("%+v", p)
	}
	if p := (&Spec{Size: 512, BlockSize: 512, ReadOnly: true}).params(); p.attrs&attrReadOnly == 0 || p.logicalShift != 9 || p.sectors != 1 {
		t.Errorf("read-only: %+v", p)
	}
	// UBLK_F_USER_RECOVERY, UBLK_F_USER_RECOVERY_REISSUE and UBLK_F_CMD_IOCTL_ENCODE
	if wanted != 1<<3|1<<4|1<<6 {
		t.Errorf("flags %#x", wanted)
	}
	if got := descsOffset(2); got != 2*98304 {
		t.Errorf("the requests of queue 2 are at %d", got)
	}
}
