package clienttest

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// BTTNBD_SEED repeats a run of the crash tests, as far as the scheduler lets it.
const seedVariable = "BTTNBD_SEED"

// seed is that of a run: the one asked for, or a new one, which it prints.
func seed(t *testing.T) uint64 {
	t.Helper()
	seed := uint64(time.Now().UnixNano())
	if s := os.Getenv(seedVariable); s != "" {
		var err error
		if seed, err = strconv.ParseUint(s, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("%s=%d", seedVariable, seed)
	return seed
}

// Goal: kill -9 of the server in the middle of writes from five connections loses
// no acknowledged write and tears no block, several times over on one image.
//
// The device is divided: one part for each of four logs of what was acknowledged,
// and one for fio, whose own checksums tell of torn blocks.
func TestKill(t *testing.T) {
	need(t, "fio")
	seed := seed(t)
	onEveryImage(t, 64*mib, func(t *testing.T, img image) {
		k := newKillTest(img, rand.New(rand.NewPCG(seed, uint64(img.sector))))
		rounds := 4
		if testing.Short() {
			rounds = 2
		}
		for round := range rounds {
			k.crash(t, round)
			img.check(t) // as the crash left it
			k.verify(t)
			img.check(t) // as recovery left it
		}
	})
}

const (
	logs          = 4
	blocksEach    = 1024
	fioOffset     = 32 * mib
	fioSize       = 4 * mib
	mostAcksARun  = 20_000 // blocks, before the kill
	fewestAcksRun = 1_000
)

type killTest struct {
	img  image
	rng  *rand.Rand
	logs [logs]*ackLog
}

func newKillTest(img image, rng *rand.Rand) *killTest {
	k := &killTest{img: img, rng: rng}
	for i := range k.logs {
		k.logs[i] = newAckLog(img.sector, int64(i)*blocksEach, blocksEach)
	}
	return k
}

// crash serves the image, writes, and kills the server in the middle of it.
func (k *killTest) crash(t *testing.T, round int) {
	t.Helper()
	s := serve(t, k.img)
	if round == 0 {
		run(t, "fio", k.fio(s.uri, "--rw=write", "--do_verify=0")...)
	}
	// Everything in motion before the kill: fio's first block differs from before…
	before, now := make([]byte, k.img.sector), make([]byte, k.img.sector)
	watch := k.dial(t, s)
	if err := watch.read(before, fioOffset); err != nil {
		t.Fatal(err)
	}
	load := exec.Command("fio", k.fio(s.uri, "--rw=write", "--do_verify=0", "--time_based", "--runtime=600",
		fmt.Sprintf("--randseed=%d", k.rng.Uint32()))...)
	var output lockedBuffer
	load.Stdout, load.Stderr = &output, &output
	if err := load.Start(); err != nil {
		t.Fatal(err)
	}

	// …and enough was acknowledged to the logs.
	var acks atomic.Int64
	var writers sync.WaitGroup
	failures := make(chan error, logs)
	for _, l := range k.logs {
		c, rng := k.dial(t, s), rand.New(rand.NewPCG(k.rng.Uint64(), 0))
		writers.Go(func() { failures <- l.run(c, rng, &acks) })
	}
	enough := int64(fewestAcksRun + k.rng.IntN(mostAcksARun-fewestAcksRun))
	eventually(t, fmt.Sprintf("%d acknowledged blocks and fio's first write", enough), func() bool {
		if err := watch.read(now, fioOffset); err != nil {
			t.Fatalf("%v\n%s", err, s.stderr)
		}
		return acks.Load() >= enough && !bytes.Equal(before, now)
	})
	s.kill(t)

	writers.Wait()
	for range k.logs {
		if err := <-failures; err != nil {
			t.Error(err)
		}
	}
	if err := load.Wait(); err == nil {
		t.Errorf("fio ended well, so the server was not killed under it\n%s", &output)
	}
	t.Logf("round %d: killed after %d acknowledged blocks", round, acks.Load())
}

// verify serves the image again and looks at every block.
func (k *killTest) verify(t *testing.T) {
	t.Helper()
	s := serve(t, k.img)
	c := k.dial(t, s)
	for _, l := range k.logs {
		if err := l.verify(c); err != nil {
			t.Error(err)
		}
	}
	run(t, "fio", k.fio(s.uri, "--rw=read", "--verify_fatal=1")...)
	if t.Failed() {
		t.FailNow()
	}
	s.stop(t)
}

// fio works in blocks of one sector, which must not tear.
func (k *killTest) fio(uri string, args ...string) []string {
	return append([]string{"--name=kill", "--ioengine=nbd", "--uri=" + uri, "--iodepth=16", "--verify=crc32c",
		fmt.Sprintf("--bs=%d", k.img.sector), fmt.Sprintf("--offset=%d", fioOffset), fmt.Sprintf("--size=%d", fioSize)}, args...)
}

func (k *killTest) dial(t *testing.T, s *server) *client {
	t.Helper()
	c, err := dial(s.socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.conn.Close() })
	return c
}

// Goal: the judge of the crash test takes what a crash may leave, and nothing else.
func TestAckLogJudge(t *testing.T) {
	const sector = 512
	block := func(l *ackLog, number uint64) []byte {
		p := make([]byte, sector)
		if number != 0 {
			l.fill(p, 1, number)
		}
		return p
	}
	l := newAckLog(sector, 100, 2)
	l.acked[1], l.sent[1] = 5, 7
	half := append(block(l, 7)[:sector/2:sector/2], block(l, 5)[sector/2:]...)
	flipped := block(l, 5)
	flipped[sector-1] ^= 1
	neighbour := make([]byte, sector)
	l.fill(neighbour, 0, 5)

	for name, tt := range map[string]struct {
		got  []byte
		want error
	}{
		"acknowledged":       {block(l, 5), nil},
		"sent":               {block(l, 7), nil},
		"older":              {block(l, 4), errLost},
		"zeros":              {block(l, 0), errLost},
		"never sent":         {block(l, 8), errLost},
		"half and half":      {half, errTorn},
		"one bit":            {flipped, errTorn},
		"of another block":   {neighbour, errTorn},
		"zeros, first words": {append(make([]byte, 8), block(l, 5)[8:]...), errTorn},
	} {
		if err := l.judge(tt.got, make([]byte, sector), 1); !errors.Is(err, tt.want) {
			t.Errorf("%s: %v, want %v", name, err, tt.want)
		}
	}
	if err := newAckLog(sector, 100, 2).judge(make([]byte, sector), make([]byte, sector), 1); err != nil {
		t.Errorf("zeros in a block never written: %v", err)
	}
}
