package clienttest

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// PMDK's own library is the referee for pools: testdata/pmdk/blk.c drives it.

const poolSize = 20 * mib

// A pool is a pmemblk pool, and what is known to be in it.
type pool struct {
	image
	blk    string             // the program of testdata/pmdk/blk.c
	blocks int64              // found out when it is first read
	is     map[int64]contents // by block; those not in it are zeros
}

// contents of a block: the number it was written with, or one of these.
type contents int64

const (
	zeros contents = 0
	bad   contents = -1 // reads fail with EIO
)

// pmdk builds the program that uses libpmemblk.
func pmdk(t *testing.T) (blk string) {
	t.Helper()
	need(t, "gcc", "pmempool")
	if _, err := os.Stat("/usr/include/libpmemblk.h"); err != nil {
		missing(t, "libpmemblk-dev")
	}
	blk = filepath.Join(t.TempDir(), "blk")
	run(t, "gcc", "-Wall", "-Wextra", "-Werror", "-O1", "-o", blk, "testdata/pmdk/blk.c", "-lpmemblk", "-lpthread")
	return blk
}

// pmdkPool is a pool made by libpmemblk, with nothing laid out in it.
func pmdkPool(t *testing.T, dir string, bsize int) *pool {
	t.Helper()
	p := &pool{image: image{filepath.Join(dir, "pool"), bsize}, blk: pmdk(t), is: map[int64]contents{}}
	run(t, p.blk, "create", p.path, strconv.Itoa(bsize), strconv.Itoa(poolSize))
	return p
}

// ourPool is a pool made by bttnbd.
func ourPool(t *testing.T, dir string, bsize int) *pool {
	t.Helper()
	blk := pmdk(t)
	return &pool{image: create(t, dir, poolSize, bsize, "--format", "pmemblk"), blk: blk, is: map[int64]contents{}}
}

// block is the content of a block written with number n; see fill in blk.c.
func (p *pool) block(lba int64, c contents) []byte {
	b := make([]byte, (p.sector+7)/8*8)
	if c > 0 {
		binary.LittleEndian.PutUint64(b, uint64(c))
		for i := 8; i < len(b); i += 8 {
			binary.LittleEndian.PutUint64(b[i:], mix(uint64(c)<<32^uint64(lba), uint64(i)))
		}
	}
	return b[:p.sector]
}

// pmdkUses makes some writes, zero and error blocks through libpmemblk.
func (p *pool) pmdkUses(t *testing.T, rng *rand.Rand, operations int) {
	t.Helper()
	var script strings.Builder
	for range operations {
		lba, number := rng.Int64N(300), contents(1+rng.Int64N(1<<40))
		switch rng.IntN(6) {
		case 0:
			fmt.Fprintf(&script, "z %d\n", lba)
			p.is[lba] = zeros
		case 1:
			fmt.Fprintf(&script, "e %d\n", lba)
			p.is[lba] = bad
		default:
			fmt.Fprintf(&script, "w %d %d\n", lba, number)
			p.is[lba] = number
		}
	}
	cmd := exec.CommandContext(t.Context(), p.blk, "use", p.path)
	cmd.Stdin = strings.NewReader(script.String())
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %v\n%s", cmd, err, out)
	}
}

// weUse makes some writes and zero blocks through our server.
func (p *pool) weUse(t *testing.T, c *client, rng *rand.Rand, operations int) {
	t.Helper()
	const cmdWriteZeroes = 6
	for i := range operations {
		lba := rng.Int64N(300)
		off := lba * int64(p.sector)
		if rng.IntN(6) == 0 {
			p.is[lba] = zeros
			c.request(cmdWriteZeroes, uint64(i), off, p.sector)
		} else {
			p.is[lba] = contents(1 + rng.Int64N(1<<40))
			c.write(uint64(i), off, p.block(lba, p.is[lba]))
		}
		if err := c.out.Flush(); err != nil {
			t.Fatal(err)
		}
		if _, err := c.reply(); err != nil {
			t.Fatalf("block %d: %v", lba, err)
		}
	}
}

// weUseLanes writes neighbouring blocks in one request: they are committed together,
// each in a lane of its own, so that each lane's last write is one of them.
func (p *pool) weUseLanes(t *testing.T, c *client, rng *rand.Rand, blocks int64) {
	t.Helper()
	var b []byte
	for lba := range blocks {
		p.is[lba] = contents(1 + rng.Int64N(1<<40))
		b = append(b, p.block(lba, p.is[lba])...)
	}
	c.write(1, 0, b)
	if err := c.out.Flush(); err != nil {
		t.Fatal(err)
	}
	if _, err := c.reply(); err != nil {
		t.Fatal(err)
	}
}

// reader reads one block after the other: its bytes, or that it is bad.
type reader func(lba int64, b []byte) (isBad bool, err error)

// read by our server.
func (p *pool) ours(c *client) reader {
	p.blocks = c.size / int64(p.sector)
	return func(lba int64, b []byte) (bool, error) {
		const eio = 5
		c.request(cmdRead, 1, lba*int64(p.sector), len(b))
		if err := c.out.Flush(); err != nil {
			return false, err
		}
		var r struct {
			Magic, Error uint32
			Cookie       uint64
		}
		if err := c.get(&r); err != nil {
			return false, err
		}
		if r.Magic != replyMagic || r.Error != 0 && r.Error != eio {
			return false, fmt.Errorf("reply %+v", r)
		}
		if r.Error == eio {
			return true, nil
		}
		_, err := io.ReadFull(c.in, b)
		return false, err
	}
}

// read by libpmemblk, which recovers the pool in doing so.
func (p *pool) theirs(t *testing.T) reader {
	t.Helper()
	out := strings.NewReader(run(t, p.blk, "dump", p.path))
	p.blocks = out.Size() / int64(1+p.sector)
	return func(_ int64, b []byte) (bool, error) {
		flag, err := out.ReadByte()
		if err == nil {
			_, err = io.ReadFull(out, b)
		}
		return flag != 0, err
	}
}

// mustHold compares every block of the pool. may gives what a block may hold; the
// pool is known to hold from then on what was found.
func (p *pool) mustHold(t *testing.T, who string, read reader, may func(lba int64) []contents) {
	t.Helper()
	got := make([]byte, p.sector)
	wrong := 0
	for lba := range p.blocks {
		isBad, err := read(lba, got)
		if err != nil {
			t.Fatalf("%s, block %d: %v", who, lba, err)
		}
		found := false
		for _, c := range may(lba) {
			if isBad == (c == bad) && (isBad || bytes.Equal(got, p.block(lba, c))) {
				p.is[lba], found = c, true
				break
			}
		}
		if wrong++; found {
			wrong--
		} else if wrong < 5 {
			t.Errorf("%s, block %d: bad %v, begins % x; want %d", who, lba, isBad, got[:min(16, len(got))], may(lba))
		}
	}
	if wrong > 0 {
		t.Fatalf("%s: %d of %d blocks are wrong", who, wrong, p.blocks)
	}
}

// known is what is known of a block.
func (p *pool) known(lba int64) []contents { return []contents{p.is[lba]} }

// approved fails the test unless pmempool and bttcheck find the pool in order and
// agree on what it is.
func (p *pool) approved(t *testing.T) {
	t.Helper()
	if out := run(t, "pmempool", "check", "-v", p.path); !strings.HasSuffix(out, "consistent\n") || strings.Contains(out, "incorrect") {
		t.Errorf("pmempool check says:\n%s", out)
	}
	p.check(t)
	out := run(t, "pmempool", "info", "-f", "blk", p.path)
	for _, want := range []string{
		fmt.Sprintf("Block size               : %d\n", p.sector),
		fmt.Sprintf("External LBA size        : %d\n", p.sector),
		"Signature                : BTT_ARENA_INFO\n",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("pmempool info does not say %q:\n%s", want, out)
		}
	}
	if n := strings.Count(out, "[OK]"); n != 3 || strings.Contains(out, "[wrong") {
		t.Errorf("pmempool info approves %d fields of 3:\n%s", n, out)
	}
}

// Goal: PMDK and we read from each other's pools, bit by bit, what either has
// written, zeroed or marked bad, in turns; and pmempool finds nothing to object to.
func TestPMDKExchange(t *testing.T) {
	for maker, make := range map[string]func(*testing.T, string, int) *pool{"PMDK's": pmdkPool, "ours": ourPool} {
		for _, bsize := range []int{512, 1024, 4096, 520, 16384, 1000, 777} {
			if testing.Short() && bsize != 512 && bsize != 777 {
				continue
			}
			t.Run(fmt.Sprintf("%s/%d", maker, bsize), func(t *testing.T) {
				p := make(t, tmpfs(t), bsize)
				rng := rand.New(rand.NewPCG(uint64(bsize), 3))
				for range 2 {
					p.pmdkUses(t, rng, 300)
					p.approved(t)
					s := serve(t, p.image)
					c := dialServer(t, s)
					p.mustHold(t, "we read what PMDK wrote", p.ours(c), p.known)
					p.weUse(t, c, rng, 300)
					p.mustHold(t, "we read what we wrote", p.ours(c), p.known)
					s.stop(t)
					p.approved(t)
					p.mustHold(t, "PMDK reads what we wrote", p.theirs(t), p.known)
				}
			})
		}
	}
}

func dialServer(t *testing.T, s *server) *client {
	t.Helper()
	c, err := dial(s.socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.conn.Close() })
	return c
}

// inFlight is how many interrupted writes bttcheck sees.
func (p *pool) inFlight(t *testing.T) int {
	t.Helper()
	return strings.Count(try(t, bttcheck, "--json", "--progress", "never", p.path).stdout, `"flog-in-flight"`)
}

// Goal: of a pool whose user was killed in the middle of writes, the other one
// recovers every acknowledged block and tears none: PMDK after us, we after PMDK.
// Method: files on disk, where most of the time is spent between the steps of a
// write. How many writes were caught half way is told.
func TestPMDKKilled(t *testing.T) {
	for _, bsize := range []int{512, 1024, 4096} {
		if testing.Short() && bsize != 4096 {
			continue
		}
		t.Run(strconv.Itoa(bsize), func(t *testing.T) {
			p := pmdkPool(t, disk(t), bsize)
			rng := rand.New(rand.NewPCG(uint64(bsize), 4))
			var theirs, ours int
			for range 6 {
				may := p.pmdkFloods(t, rng)
				theirs += p.inFlight(t)
				p.approved(t)
				s := serve(t, p.image)
				p.mustHold(t, "we recover after PMDK", p.ours(dialServer(t, s)), may)
				s.stop(t)
				p.approved(t)

				may = p.weFlood(t, rng)
				ours += p.inFlight(t)
				p.check(t)
				p.mustHold(t, "PMDK recovers after us", p.theirs(t), may)
				p.approved(t)
			}
			t.Logf("writes caught half way: %d of PMDK's, %d of ours", theirs, ours)
		})
	}
}

// soon kills a process at a moment that has nothing to do with what it answered
// last: after an answer it is always at the same step of the next write.
func soon(rng *rand.Rand, p *os.Process) {
	time.AfterFunc(time.Duration(rng.IntN(10_000))*time.Microsecond, func() { p.Kill() })
}

// pmdkFloods lets libpmemblk work and kills it. It returns what each block may
// hold: what was acknowledged last, or begun last.
func (p *pool) pmdkFloods(t *testing.T, rng *rand.Rand) func(int64) []contents {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, p.blk, "flood", p.path, strconv.Itoa(rng.IntN(1<<30)))
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	const after = 1 << 63
	begun := map[int64]contents{}
	for acks := 50 + rng.IntN(300); ; {
		var r struct{ LBA, Number uint64 }
		err := binary.Read(out, binary.LittleEndian, &r)
		if errors.Is(err, io.EOF) {
			break // all that was said before it was killed
		}
		if err != nil {
			t.Fatalf("%v\n%s", err, &stderr)
		}
		c := contents(r.Number)
		switch r.Number % 16 {
		case 0:
			c = zeros
		case 1:
			c = bad
		}
		lba := int64(r.LBA &^ after)
		if r.LBA&after == 0 {
			begun[lba] = c
			continue
		}
		p.is[lba] = c
		delete(begun, lba)
		if acks--; acks == 0 {
			soon(rng, cmd.Process)
		}
	}
	if err := cmd.Wait(); err == nil || !strings.Contains(err.Error(), "killed") {
		t.Fatalf("flood ended with %v before it was killed\n%s", err, &stderr)
	}
	return func(lba int64) []contents {
		if c, half := begun[lba]; half {
			return []contents{p.is[lba], c}
		}
		return p.known(lba)
	}
}

// weFlood writes through our server, with many requests outstanding, and kills it.
func (p *pool) weFlood(t *testing.T, rng *rand.Rand) func(int64) []contents {
	t.Helper()
	s := serve(t, p.image)
	c := dialServer(t, s)
	begun := map[int64]contents{}
	cookies := map[uint64]int64{}
	for acks := 50 + rng.IntN(300); ; {
		for len(cookies) < 32 {
			lba := rng.Int64N(300)
			if _, busy := begun[lba]; busy {
				continue
			}
			number := 1 + rng.Uint64N(1<<40)
			begun[lba], cookies[number] = contents(number), lba
			c.write(number, lba*int64(p.sector), p.block(lba, contents(number)))
		}
		c.out.Flush() // fails once the server is gone; what it said before is still to be read
		cookie, err := c.reply()
		if err != nil {
			if err := serverGone(err); err != nil {
				t.Fatalf("%v\n%s", err, s.stderr)
			}
			break
		}
		lba := cookies[cookie]
		p.is[lba] = begun[lba]
		delete(begun, lba)
		delete(cookies, cookie)
		if acks--; acks == 0 {
			soon(rng, s.cmd.Process)
		}
	}
	s.kill(t)
	return func(lba int64) []contents {
		if c, half := begun[lba]; half {
			return []contents{p.is[lba], c}
		}
		return p.known(lba)
	}
}

// Goal: a pool in which PMDK has laid nothing out yet is refused with words that
// help, and not a byte of it changes.
func TestPMDKEmptyPool(t *testing.T) {
	p := pmdkPool(t, tmpfs(t), 4096)
	before, err := os.ReadFile(p.path)
	if err != nil {
		t.Fatal(err)
	}
	o := try(t, bttnbd, "serve", "--listen", "unix:"+filepath.Join(socketDir(t), "s"), p.path)
	if o.status != 1 || !strings.Contains(o.stderr, "no layout yet") || !strings.Contains(o.stderr, "format pmemblk") {
		t.Errorf("serve: exit status %d\n%s", o.status, o.stderr)
	}
	if after, err := os.ReadFile(p.path); err != nil || !bytes.Equal(before, after) {
		t.Errorf("the pool was changed (%v)", err)
	}
}

// Goal: each of us completes the interrupted writes of the other, in every lane.
// PMDK completes only those whose flog record has the very flags of the map.
// Method: after writes that were all completed, the last step of the last one in
// each lane is taken back, which is the state that a crash before that step leaves.
func TestPMDKHalfWay(t *testing.T) {
	for _, bsize := range []int{512, 1024, 4096} {
		t.Run(strconv.Itoa(bsize), func(t *testing.T) {
			p := pmdkPool(t, tmpfs(t), bsize)
			rng := rand.New(rand.NewPCG(uint64(bsize), 5))
			p.pmdkUses(t, rng, 500)
			s := serve(t, p.image)
			for range 30 { // a connection keeps to its lanes
				p.weUse(t, dialServer(t, s), rng, 20)
			}
			const lanes = 8
			c := dialServer(t, s)
			for range 3 { // now in these lanes, now in those: of a block, only its last write can be taken back
				p.weUseLanes(t, c, rng, lanes)
			}
			s.stop(t)
			n := p.takeBack(t)
			if got := p.inFlight(t); n < lanes || got != n {
				t.Errorf("%d writes of ours taken back, bttcheck sees %d", n, got)
			}
			p.mustHold(t, "PMDK completes our writes", p.theirs(t), p.known)

			p.pmdkUses(t, rng, 500)
			if n := p.takeBack(t); n < 3 {
				t.Errorf("%d writes of PMDK's taken back", n)
			}
			s = serve(t, p.image)
			p.mustHold(t, "we complete PMDK's writes", p.ours(dialServer(t, s)), p.known)
			s.stop(t)
			p.approved(t)
		})
	}
}

// takeBack gives the map entries that flog records have moved their old value, and
// says how many.
func (p *pool) takeBack(t *testing.T) (n int) {
	t.Helper()
	p.edit(t, func(b []byte) { n = takeBack(b[8192:], false) })
	return n
}

// edit changes the file of the pool.
func (p *pool) edit(t *testing.T, change func(b []byte)) {
	t.Helper()
	b, err := os.ReadFile(p.path)
	if err != nil {
		t.Fatal(err)
	}
	change(b)
	if err := os.WriteFile(p.path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

// takeBack is that of one arena. If strip is set, it also takes the flags off the
// flog records, as Linux would have written them. No crash takes back two writes of
// one block: the older was whole before the newer began.
func takeBack(arena []byte, strip bool) (n int) {
	const block = 1<<30 - 1
	le := binary.LittleEndian
	entries, flog := arena[le.Uint64(arena[96:]):], arena[le.Uint64(arena[104:]):]
	taken := map[uint32]bool{} // by block
	for lane := range le.Uint32(arena[72:]) {
		first, second := flog[64*lane:], flog[64*lane+16:]
		r := first
		if next := map[uint32]uint32{1: 2, 2: 3, 3: 1}; le.Uint32(second[12:]) == next[le.Uint32(first[12:])] {
			r = second
		}
		lba, before, after := le.Uint32(r), le.Uint32(r[4:]), le.Uint32(r[8:])
		if before != after && !taken[lba] && le.Uint32(entries[4*lba:]) == after {
			le.PutUint32(entries[4*lba:], before)
			taken[lba] = true
			n++
		}
		if strip {
			le.PutUint32(r[4:], before&block)
			le.PutUint32(r[8:], after&block)
		}
	}
	return n
}
