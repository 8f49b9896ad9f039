# The checks that libnbd's Python module makes of a server, by name:
#   python3 libnbd.py CHECK URI
# Prints "PASS what" or "FAIL what: why" for each thing looked at.

import os
import random
import sys

import nbd

PASS, FAIL = 0, 0


def report(what, problem):
    global PASS, FAIL
    if problem:
        FAIL += 1
        print(f"FAIL {what}: {problem}")
    else:
        PASS += 1
        print(f"PASS {what}")


def connect(uri, strict=False):
    h = nbd.NBD()
    h.set_uri_allow_local_file(True)  # of tls-certificates
    if not strict:
        h.set_strict_mode(0)  # send what the protocol forbids, too
    h.connect_uri(uri)
    return h


def expect(what, wanted, call, *args, **kw):
    """call must fail with the errno named, or succeed if wanted is None"""
    try:
        call(*args, **kw)
        got = None
    except nbd.Error as e:
        got = e.errno
    report(what, "" if got == wanted else f"got {got or 'success'}, want {wanted or 'success'}")


def alive(what, h):
    try:
        h.pread(512, 0)
        report(what, "")
    except nbd.Error as e:
        report(what, e.string)


UNKNOWN_FLAG = 1 << 9


def errors(uri):
    h = connect(uri)
    end = h.get_size()
    one = b"x" * 512
    for name, off in (("past the end", end), ("across the end", end - 256), ("far past the end", 1 << 62)):
        expect(f"read {name}", "EINVAL", h.pread, 512, off)
        expect(f"write {name}", "ENOSPC", h.pwrite, one, off)
        expect(f"zero {name}", "ENOSPC", h.zero, 512, off)
        expect(f"trim {name}", "EINVAL", h.trim, 512, off)
    expect("read of nothing", None, h.pread, 0, 0)
    expect("write of nothing", None, h.pwrite, b"", 0)
    expect("zero of nothing", None, h.zero, 0, 0)
    expect("read with an unknown flag", "EINVAL", h.pread, 512, 0, flags=UNKNOWN_FLAG)
    expect("write with an unknown flag", "EINVAL", h.pwrite, one, 0, flags=UNKNOWN_FLAG)
    expect("flush with an unknown flag", "EINVAL", h.flush, flags=UNKNOWN_FLAG)
    expect("trim with an unknown flag", "EINVAL", h.trim, 512, 0, flags=UNKNOWN_FLAG)
    expect("write with FUA", None, h.pwrite, one, 0, flags=nbd.CMD_FLAG_FUA)
    expect("zero with FUA and no hole", None, h.zero, 512, 0, flags=nbd.CMD_FLAG_FUA | nbd.CMD_FLAG_NO_HOLE)
    alive("the connection after all that", h)
    h.shutdown()


def export_names(uri):
    h = connect(uri)
    socket = uri.split("socket=")[1]
    for name in ("no-such-export", "x" * 4096, "ünïcode"):
        u = nbd.NBD()
        u.set_export_name(name)
        try:
            u.connect_unix(socket)
            report(f"unknown export {name[:20]}", "connected")
        except nbd.Error as e:
            report(f"unknown export {name[:20]}", "" if e.errno == "ENOENT" else e.string)
    alive("another connection meanwhile", h)

    # a client may ask again on the same connection
    u = nbd.NBD()
    u.set_opt_mode(True)
    u.set_export_name("no-such-export")
    u.connect_unix(socket)
    expect("go to an unknown export", "ENOENT", u.opt_go)
    u.set_export_name("")
    expect("go to the default export after that", None, u.opt_go)
    alive("that connection", u)


def read_only(uri):
    h = connect(uri)
    report("is read-only", "" if h.is_read_only() else "is not")
    expect("write", "EPERM", h.pwrite, b"x" * 512, 0)
    expect("write past the end", "EPERM", h.pwrite, b"x" * 512, h.get_size())
    expect("zero", "EPERM", h.zero, 512, 0)
    expect("trim", "EPERM", h.trim, 512, 0)
    expect("flush", None, h.flush)
    alive("the connection", h)


def multi_conn(uri):
    """What one connection wrote, every other one reads, with no flush in between."""
    rng = random.Random(1)
    handles = [connect(uri, strict=True) for _ in range(4)]
    report("multi-conn is advertised", "" if handles[0].can_multi_conn() else "it is not")
    span = 1 << 20
    model = bytearray(handles[0].pread(span, 0))
    for step in range(400):
        writer, reader = rng.sample(handles, 2)
        off = rng.randrange(span - 1)
        n = min(rng.choice((1, 511, 512, 4096, 4097, 20000)), span - off)
        if rng.random() < 0.25:
            writer.zero(n, off)
            model[off : off + n] = bytes(n)
        else:
            data = rng.randbytes(n)
            writer.pwrite(data, off, flags=rng.choice((0, nbd.CMD_FLAG_FUA)))
            model[off : off + n] = data
        lo, hi = max(0, off - 5000), min(span, off + n + 5000)
        if reader.pread(hi - lo, lo) != bytes(model[lo:hi]):
            report("every connection sees every write", f"step {step}, {n} bytes at {off}")
            return
    for h in handles:
        h.flush()
    report("every connection sees every write", "")
    same = all(h.pread(span, 0) == bytes(model) for h in handles)
    report("all connections agree in the end", "" if same else "they do not")


def parallel(uri):
    """64 requests in flight on each of 4 connections, replies in any order."""
    handles = [connect(uri, strict=True) for _ in range(4)]
    n, block = 64, 4096
    for round in range(8):
        written, requests, reads = {}, [], []
        for off in range(0, n * len(handles) * block, block):
            h = handles[off // block % len(handles)]
            written[off] = os.urandom(block)
            requests.append((h, h.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(written[off])), off)))
        wait(requests)
        requests.clear()
        for off in written:
            h = handles[-off // block % len(handles)]
            reads.append((off, nbd.Buffer(block)))
            requests.append((h, h.aio_pread(reads[-1][1], off)))
        wait(requests)
        for off, buffer in reads:
            if bytes(buffer.to_bytearray()) != written[off]:
                report("parallel requests", f"round {round}, offset {off}")
                return
    report("parallel requests", "")


def wait(requests):
    for h, cookie in requests:
        while not h.aio_command_completed(cookie):
            h.poll(-1)


if __name__ == "__main__":
    check, uri = sys.argv[1:]
    globals()[check](uri)
    sys.exit(1 if FAIL or not PASS else 0)
