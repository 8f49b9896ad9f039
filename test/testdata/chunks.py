# What libnbd gets from a server in structured replies:  python3 chunks.py URI
# Prints "PASS what" or "FAIL what: why" for each thing looked at.

import sys

import nbd

KINDS = {1: "data", 2: "hole", 3: "error"}  # LIBNBD_READ_DATA …
failed = False


def expect(what, got, wanted):
    global failed
    failed = failed or got != wanted
    print(f"PASS {what}" if got == wanted else f"FAIL {what}: got {got}, want {wanted}")


def error(call, *args):
    try:
        call(*args)
        return None
    except nbd.Error as e:
        return e.errno


def chunks(h, count, offset, flags=0):
    got = []
    data = h.pread_structured(count, offset, lambda b, o, s, e: got.append((o, len(b), KINDS[s])), flags)
    return bytes(data), got


def status(h, count, offset, flags=0):
    got = {}
    h.block_status(count, offset, lambda name, o, e, err: got.update({name: list(e)}), flags)
    return got


h = nbd.NBD()
h.set_strict_mode(0)  # send what the protocol forbids, too
h.add_meta_context("base:allocation")
h.add_meta_context("x-btt:error")
h.add_meta_context("x-nobody:knows-this")
h.connect_uri(sys.argv[1])
end = h.get_size()

expect("structured replies", h.get_structured_replies_negotiated(), True)
expect("DF", h.can_df(), True)
contexts = [h.can_meta_context(c) for c in ("base:allocation", "x-btt:error", "x-nobody:knows-this")]
expect("contexts", contexts, [True, True, False])

h.pwrite(b"\x07" * 8192, 0)
h.zero(65536, 8192)
h.pwrite(b"\x09" * 4096, 73728)
whole = b"\x07" * 8192 + bytes(65536) + b"\x09" * 4096
expect("read in chunks", chunks(h, 77824, 0), (whole, [(0, 8192, "data"), (8192, 65536, "hole"), (73728, 4096, "data")]))
expect("read with DF", chunks(h, 77824, 0, nbd.CMD_FLAG_DF), (whole, [(0, 77824, "data")]))
expect("unaligned read", chunks(h, 5, 8190), (b"\x07\x07\0\0\0", [(8190, 5, "data")]))
expect("block status", status(h, 77824, 0), {"base:allocation": [8192, 0, 65536, 2, 4096, 0], "x-btt:error": [77824, 0]})
expect("of one", status(h, 77824, 0, nbd.CMD_FLAG_REQ_ONE), {"base:allocation": [8192, 0], "x-btt:error": [77824, 0]})
expect("unaligned", status(h, 9000, 8000), {"base:allocation": [192, 0, 8808, 2], "x-btt:error": [9000, 0]})

for what, wanted, call, *args in (
    ("read past the end", "EINVAL", h.pread, 512, end),
    ("write past the end", "ENOSPC", h.pwrite, b"x" * 512, end),
    ("status past the end", "EINVAL", h.block_status, 512, end, lambda *a: 0),
    ("status of nothing", "EINVAL", h.block_status, 0, 0, lambda *a: 0),
    ("write with DF", "EINVAL", h.pwrite, b"x" * 512, 0, nbd.CMD_FLAG_DF),
    ("read after errors", None, h.pread, 512, 0),
):
    expect(what, error(call, *args), wanted)
sys.exit(failed)
