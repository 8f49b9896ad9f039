package clienttest

import (
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/bttnbd/bttnbd/internal/linear"
)

// BTTNBD_KILL_CYCLES is how often TestKillHistory kills the server; `make soak`
// sets it.
const cyclesVariable = "BTTNBD_KILL_CYCLES"

// Goal: what clients that fight for the same few blocks see of them can be
// explained by every block being a register whose acknowledged writes are durable,
// through any number of kill -9. Method: four connections with many requests
// outstanding read and write eight hot blocks; every write fills its blocks with a
// number of its own; the server is killed after a random number of answers; the
// image is checked, served again, checked again, and the history of each block,
// the reads after the restart included, is judged.
func TestKillHistory(t *testing.T) {
	cycles := 40
	if testing.Short() {
		cycles = 5
	}
	if s := os.Getenv(cyclesVariable); s != "" {
		n, err := strconv.Atoi(s)
		if err != nil {
			t.Fatal(err)
		}
		cycles = n
	}
	seed := seed(t)
	onEveryImage(t, 17*mib, func(t *testing.T, img image) {
		h := &hotBlocks{img: img, start: time.Now(), rng: rand.New(rand.NewPCG(seed, uint64(img.sector)))}
		h.settle(t, serve(t, img))
		var ops int
		for range cycles {
			s := serve(t, img)
			h.load(t, s)
			img.check(t)
			s = serve(t, img)
			ops += h.settle(t, s)
			img.check(t)
		}
		t.Logf("%d kills, %d operations judged, %.1f kills/s", cycles, ops, float64(cycles)/time.Since(h.start).Seconds())
		if ops < leastAnswers*cycles {
			t.Errorf("fewer than %d operations judged a kill", leastAnswers)
		}
	})
}

const (
	hotCount   = 8
	hotClients = 4
	hotWindow  = 16

	leastAnswers = 50 // before a kill
)

// hotBlocks is the history of a few blocks since they were last read in peace.
type hotBlocks struct {
	img   image
	start time.Time
	rng   *rand.Rand
	ids   atomic.Uint64

	mu  sync.Mutex
	ops [hotCount][]linear.Op
}

func (h *hotBlocks) now() int64 { return int64(time.Since(h.start)) }

// hotRequest is one request under way: a read of one block, or a write of a few.
type hotRequest struct {
	block, blocks int
	op            linear.Op
}

// load has all clients go at the blocks and kills the server in the middle.
func (h *hotBlocks) load(t *testing.T, s *server) {
	t.Helper()
	var answers atomic.Int64
	enough := int64(leastAnswers + h.rng.IntN(4000))
	reached := make(chan struct{})
	var once sync.Once
	type rest struct {
		requests map[uint64]hotRequest
		err      error
	}
	rests := make(chan rest, hotClients)
	for range hotClients {
		c, err := dial(s.socket)
		if err != nil {
			t.Fatal(err)
		}
		defer c.conn.Close()
		rng := rand.New(rand.NewPCG(h.rng.Uint64(), 2))
		go func() {
			left, err := h.client(c, rng, func() {
				if answers.Add(1) >= enough {
					once.Do(func() { close(reached) })
				}
			})
			rests <- rest{left, err}
		}()
	}
	select {
	case <-reached:
	case r := <-rests:
		t.Fatalf("a client ended before the server was killed: %v\n%s", r.err, s.stderr)
	}
	s.kill(t)
	crash := h.now() // nothing takes effect after this
	for range hotClients {
		r := <-rests
		if r.err != nil {
			t.Fatal(r.err)
		}
		for _, req := range r.requests {
			req.op.Return, req.op.Lost = crash, true
			h.note(req)
		}
	}
}

// client sends requests until the server is gone, and returns those without an
// answer.
func (h *hotBlocks) client(c *client, rng *rand.Rand, answered func()) (map[uint64]hotRequest, error) {
	outstanding := map[uint64]hotRequest{}
	for {
		for len(outstanding) < hotWindow {
			r, cookie := h.request(c, rng)
			outstanding[cookie] = r
		}
		sendErr := c.out.Flush()
		for len(outstanding) > hotWindow/2 || sendErr != nil {
			cookie, err := c.reply()
			if err != nil {
				return outstanding, serverGone(err)
			}
			r, ok := outstanding[cookie]
			if !ok {
				return nil, fmt.Errorf("reply to cookie %d, which is not outstanding", cookie)
			}
			if !r.op.Write {
				p := make([]byte, h.img.sector)
				if _, err := io.ReadFull(c.in, p); err != nil {
					return outstanding, serverGone(err)
				}
				if r.op.Value, err = valueOf(p); err != nil {
					return nil, fmt.Errorf("block %d: %w", r.block, err)
				}
			}
			r.op.Return = h.now()
			delete(outstanding, cookie)
			h.note(r)
			answered()
		}
	}
}

// request sends a read or a write of a few blocks.
func (h *hotBlocks) request(c *client, rng *rand.Rand) (hotRequest, uint64) {
	id := h.ids.Add(1)
	r := hotRequest{block: rng.IntN(hotCount), blocks: 1, op: linear.Op{Call: h.now()}}
	off := int64(r.block) * int64(h.img.sector)
	if rng.IntN(3) == 0 {
		c.request(cmdRead, id, off, h.img.sector)
		return r, id
	}
	r.blocks = 1 + rng.IntN(min(3, hotCount-r.block))
	r.op.Write, r.op.Value = true, id
	p := make([]byte, r.blocks*h.img.sector)
	for i := 0; i < len(p); i += 8 {
		binary.LittleEndian.PutUint64(p[i:], id)
	}
	c.write(id, off, p)
	return r, id
}

// note adds a request to the history of each of its blocks.
func (h *hotBlocks) note(r hotRequest) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for b := r.block; b < r.block+r.blocks; b++ {
		h.ops[b] = append(h.ops[b], r.op)
	}
}

// valueOf is the number that a block is full of.
func valueOf(p []byte) (uint64, error) {
	v := binary.LittleEndian.Uint64(p)
	for i := 8; i < len(p); i += 8 {
		if w := binary.LittleEndian.Uint64(p[i:]); w != v {
			return 0, fmt.Errorf("torn: write %d at byte 0, write %d at byte %d", v, w, i)
		}
	}
	return v, nil
}

// settle reads all blocks, judges the history up to now, and starts a new one with
// what is there. It stops the server and returns how many operations it judged.
func (h *hotBlocks) settle(t *testing.T, s *server) (judged int) {
	t.Helper()
	c, err := dial(s.socket)
	if err != nil {
		t.Fatal(err)
	}
	defer c.conn.Close()
	p := make([]byte, h.img.sector)
	for b := range h.ops {
		op := linear.Op{Call: h.now()}
		if err := c.read(p, int64(b)*int64(h.img.sector)); err != nil {
			t.Fatal(err)
		}
		if op.Value, err = valueOf(p); err != nil {
			t.Fatalf("block %d after the restart: %v", b, err)
		}
		op.Return = h.now()
		h.ops[b] = append(h.ops[b], op)
		judged += len(h.ops[b])
		if err := linear.Check(h.ops[b]); err != nil {
			t.Fatalf("block %d: %v", b, err)
		}
		h.ops[b] = h.ops[b][:0]
		if op.Value != linear.Initial {
			h.ops[b] = append(h.ops[b], linear.Op{Write: true, Value: op.Value, Call: op.Call, Return: op.Return})
		}
	}
	c.conn.Close()
	s.stop(t)
	return judged
}
