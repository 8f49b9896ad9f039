package nbdtest

import (
	"crypto/tls"
	"io"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/bttnbd/bttnbd/nbd"
)

// Abuse is a target for attacks. What the server answers to them, and how soon it
// hangs up, does not matter; that it serves its other clients does.
type Abuse struct {
	Dial   func() (net.Conn, error)
	Export string      // a writable export of 8 MiB at least, the first half of which is lost
	TLS    *tls.Config // nil: attacks on TLS are left out
	Seed   uint64
}

// Attack is one way to treat a server badly.
type Attack struct {
	Name string
	TLS  bool // needs Abuse.TLS
	run  func(a *Abuse, n int)
}

// Run makes n connections, some hundred of them at once, and returns when all are
// closed.
func (k Attack) Run(a *Abuse, n int) { k.run(a, n) }

// Attacks are all there are.
var Attacks = []Attack{
	{Name: "stops at each byte of the handshake", run: (*Abuse).stops},
	{Name: "hangs up with requests in flight", run: (*Abuse).hangsUp},
	{Name: "reads slowly, or not at all", run: (*Abuse).readsSlowly},
	{Name: "floods with requests that fail", run: (*Abuse).floods},
	{Name: "storms of options", run: (*Abuse).storms},
	{Name: "half-closed sockets", run: (*Abuse).halfCloses},
	{Name: "TLS garbage", TLS: true, run: (*Abuse).tlsGarbage},
	{Name: "TLS handshakes that stop", TLS: true, run: (*Abuse).tlsStops},
}

// crowd runs n clients, at most width at once, and closes their connections.
func (a *Abuse) crowd(n, width int, client func(c *Client, i int, r *rand.Rand)) {
	var wg sync.WaitGroup
	next := make(chan int)
	for range min(n, width) {
		wg.Go(func() {
			for i := range next {
				nc, err := a.Dial()
				if err != nil {
					continue // the server's limits, or this process's
				}
				nc.SetDeadline(time.Now().Add(10 * time.Second))
				client(&Client{Conn: nc}, i, rand.New(rand.NewPCG(a.Seed, uint64(i))))
				nc.Close()
			}
		})
	}
	for i := range n {
		next <- i
	}
	close(next)
	wg.Wait()
}

const greetFlags = nbd.NBD_FLAG_C_FIXED_NEWSTYLE | nbd.NBD_FLAG_C_NO_ZEROES

// stops keeps connections that have sent part of a handshake until a few hundred
// newer ones have come.
func (a *Abuse) stops(n int) {
	script := be.AppendUint32(nil, greetFlags)
	script = append(script, Option(nbd.NBD_OPT_STRUCTURED_REPLY, nil)...)
	script = append(script, Option(nbd.NBD_OPT_SET_META_CONTEXT, MetaData(a.Export, "base:allocation"))...)
	script = append(script, Option(nbd.NBD_OPT_INFO, InfoData(a.Export, 1, 2, 3))...)
	script = append(script, Option(nbd.NBD_OPT_GO, InfoData(a.Export))...)
	kept := make([]net.Conn, 600)
	for i := range n {
		nc, err := a.Dial()
		if err != nil {
			continue
		}
		nc.SetDeadline(time.Now().Add(10 * time.Second))
		nc.Write(script[:i%len(script)])
		if old := kept[i%len(kept)]; old != nil {
			old.Close()
		}
		kept[i%len(kept)] = nc
	}
	for _, nc := range kept {
		if nc != nil {
			nc.Close()
		}
	}
}

// burst is many requests of all kinds, with large answers among them.
func burst(r *rand.Rand) []byte {
	var b []byte
	for i := range uint64(20) {
		off := r.Uint64N(3 << 20)
		switch r.IntN(5) {
		case 0:
			b = Read(i, off, 1<<20).Append(b)
		case 1:
			b = Write(i, off, make([]byte, r.IntN(100_000))).Append(b)
		case 2:
			b = Command(nbd.NBD_CMD_WRITE_ZEROES, i, off, 1<<20).Append(b)
		case 3:
			b = Command(nbd.NBD_CMD_FLUSH, i, 0, 0).Append(b)
		default:
			b = Read(i, off, 4096).Append(b)
		}
	}
	return b
}

// reset makes the end of a TCP connection a reset.
func reset(nc net.Conn) {
	if t, ok := nc.(*net.TCPConn); ok {
		t.SetLinger(0)
	}
}

func (a *Abuse) hangsUp(n int) {
	a.crowd(n, 8, func(c *Client, i int, r *rand.Rand) {
		if _, err := c.Open(a.Export); err != nil {
			return
		}
		b := burst(r)
		c.Write(b[:r.IntN(len(b)+1)])
		if i%2 == 0 {
			c.SetReadDeadline(time.Now().Add(5 * time.Millisecond))
			io.CopyN(io.Discard, c, int64(r.IntN(2<<20)))
		}
		if i%3 == 0 {
			reset(c.Conn)
		}
	})
}

func (a *Abuse) readsSlowly(n int) {
	a.crowd(n, 200, func(c *Client, i int, r *rand.Rand) {
		if _, err := c.Open(a.Export); err != nil {
			return
		}
		for i := range uint64(8) {
			c.Send(Read(i, 0, 4<<20))
		}
		p := make([]byte, i%2) // a byte at a time, or not at all
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		for range 75 {
			<-tick.C
			if _, err := c.Conn.Read(p); err != nil {
				return
			}
		}
	})
}

func (a *Abuse) floods(n int) {
	a.crowd(n, 8, func(c *Client, i int, r *rand.Rand) {
		if _, err := c.Open(a.Export); err != nil {
			return
		}
		var b []byte
		for i := range uint64(5000) {
			b = Request{Cmd: uint16(r.IntN(12)), Flags: uint16(r.IntN(64)), Cookie: i, Offset: r.Uint64(), Length: r.Uint64N(10)}.Append(b)
		}
		c.Write(b)
	})
}

func (a *Abuse) storms(n int) {
	a.crowd(n, 8, func(c *Client, i int, r *rand.Rand) {
		if _, err := c.Greet(greetFlags); err != nil {
			return
		}
		var b []byte
		for range 2000 {
			switch r.IntN(6) {
			case 0:
				b = append(b, Option(nbd.NBD_OPT_LIST, nil)...)
			case 1:
				b = append(b, Option(nbd.NBD_OPT_INFO, InfoData(a.Export, 0, 1, 2, 3))...)
			case 2:
				b = append(b, Option(nbd.NBD_OPT_STRUCTURED_REPLY, nil)...)
			case 3:
				b = append(b, Option(nbd.NBD_OPT_SET_META_CONTEXT, MetaData(a.Export, "base:allocation", "x-btt:"))...)
			case 4:
				b = append(b, Option(r.Uint32(), make([]byte, r.IntN(3000)))...)
			default:
				b = append(b, Option(nbd.NBD_OPT_LIST_META_CONTEXT, MetaData(a.Export))...)
			}
		}
		c.SetDeadline(time.Now().Add(500 * time.Millisecond))
		c.Write(b)
		if i%2 == 0 {
			io.CopyN(io.Discard, c, 10_000)
		}
	})
}

func (a *Abuse) halfCloses(n int) {
	a.crowd(n, 8, func(c *Client, i int, r *rand.Rand) {
		half, ok := c.Conn.(interface{ CloseWrite() error })
		if !ok {
			return
		}
		if i%4 != 0 {
			if _, err := c.Open(a.Export); err != nil {
				return
			}
			b := burst(r)
			c.Write(b[:r.IntN(len(b)+1)])
		}
		half.CloseWrite()
		if i%2 == 0 {
			io.Copy(io.Discard, c)
		}
	})
}

func (a *Abuse) tlsGarbage(n int) {
	a.crowd(n, 8, func(c *Client, i int, r *rand.Rand) {
		if _, err := c.Greet(greetFlags); err != nil {
			return
		}
		b := make([]byte, r.IntN(5000))
		for i := range b {
			b[i] = byte(r.Uint32())
		}
		switch i % 3 {
		case 0: // instead of a handshake
			c.Haggle(nbd.NBD_OPT_STARTTLS, nil)
		case 1: // as a record of the handshake
			c.Haggle(nbd.NBD_OPT_STARTTLS, nil)
			b = append([]byte{22, 3, 1, byte(len(b) >> 8), byte(len(b))}, b...)
		default: // behind it
			under := c.Conn
			if c.StartTLS(a.TLS) != nil {
				return
			}
			c.Go(a.Export)
			c.Conn = under
			b = append([]byte{23, 3, 3, byte(len(b) >> 8), byte(len(b))}, b...)
		}
		c.Write(b)
		if i%2 == 0 {
			c.SetDeadline(time.Now().Add(100 * time.Millisecond))
			io.Copy(io.Discard, c)
		}
	})
}

// tlsStops cuts the client's side of the TLS handshake and of what follows after
// some bytes.
func (a *Abuse) tlsStops(n int) {
	a.crowd(n, 50, func(c *Client, i int, r *rand.Rand) {
		if _, err := c.Greet(greetFlags); err != nil {
			return
		}
		if _, err := c.Haggle(nbd.NBD_OPT_STARTTLS, nil); err != nil {
			return
		}
		c.Conn = &cutOff{c.Conn, r.IntN(2000)}
		if c.shakeHands(a.TLS) == nil {
			c.Go(a.Export)
			c.Send(Read(1, 0, 1<<20))
		}
	})
}

// cutOff is a connection that sends so many bytes more, and then none.
type cutOff struct {
	net.Conn
	left int
}

func (c *cutOff) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p[:min(len(p), c.left)])
	c.left -= n
	if err == nil && n < len(p) {
		err = io.ErrClosedPipe
	}
	return n, err
}

// Neighbour is a well-behaved client: it writes and reads back, one request at a
// time, and measures how long each takes.
type Neighbour struct {
	c    *Client
	off  uint64
	stop chan struct{}
	over chan error

	mu   sync.Mutex
	took []time.Duration
}

// NewNeighbour starts a client on c, which is in transmission. The 4 KiB at off are
// its own.
func NewNeighbour(c *Client, off uint64) *Neighbour {
	n := &Neighbour{c: c, off: off, stop: make(chan struct{}), over: make(chan error, 1)}
	go n.run()
	return n
}

func (n *Neighbour) run() {
	for i := uint64(0); ; i++ {
		select {
		case <-n.stop:
			n.over <- n.c.Send(Command(nbd.NBD_CMD_DISC, 0, 0, 0))
			return
		default:
		}
		p := fill(int(i), 4096)
		for _, r := range []Request{Write(i, n.off, p), Read(i, n.off, 4096)} {
			start := time.Now()
			a, err := n.c.Ask(r)
			if err == nil && (a.Err != 0 || r.Cmd == nbd.NBD_CMD_READ && !slices.Equal(a.Data, p)) {
				err = &disturbed{r.Cmd, a.Err}
			}
			if err != nil {
				n.over <- err
				return
			}
			n.mu.Lock()
			n.took = append(n.took, time.Since(start))
			n.mu.Unlock()
		}
	}
}

// disturbed is a wrong answer to a good client.
type disturbed struct {
	cmd   uint16
	errno nbd.Errno
}

func (d *disturbed) Error() string {
	return nbd.CommandName(int(d.cmd)) + " is answered " + d.errno.String() + ", or with other data than was written"
}

// Latencies sum up requests.
type Latencies struct {
	N                int
	Median, P99, Max time.Duration
}

// Lap returns the latencies since the last call.
func (n *Neighbour) Lap() Latencies {
	n.mu.Lock()
	all := n.took
	n.took = nil
	n.mu.Unlock()
	if len(all) == 0 {
		return Latencies{}
	}
	slices.Sort(all)
	return Latencies{len(all), all[len(all)/2], all[len(all)*99/100], all[len(all)-1]}
}

// Stop disconnects, and returns what went wrong for the client.
func (n *Neighbour) Stop() error {
	close(n.stop)
	return <-n.over
}
