package socket

import (
	"bytes"
	"os"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// pair returns two sockets in blocking mode.
func pair(t *testing.T) (a, b uintptr) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fds[0]); unix.Close(fds[1]) })
	return uintptr(fds[0]), uintptr(fds[1])
}

// Goal: bytes pass, and no call ever waits, also where the socket would: a bare call
// that waits would hold a processor, and with it the garbage collector.
func TestNothingWaits(t *testing.T) {
	if runtime.GOMAXPROCS(0) == 1 {
		defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(2)) // one to tell of the other that waits
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		testNothingWaits(t)
	}()
	select {
	case <-done:
	case <-time.After(10 * time.Second):
		t.Fatal("a call waits")
	}
}

func testNothingWaits(t *testing.T) {
	a, b := pair(t)
	var c Calls
	p := make([]byte, 100_000)
	for range 40 {
		if n, err := c.Receive(b, p); n != 0 || err != unix.EAGAIN {
			t.Errorf("nothing there: %d, %v", n, err)
		}
	}
	var sent, received []byte
	for i := range p {
		p[i] = byte(i * 7)
	}
	for {
		n, err := c.Send(a, p)
		sent = append(sent, p[:n]...)
		if err == unix.EAGAIN {
			break
		}
		if n == 0 || err != nil {
			t.Errorf("send: %d, %v", n, err)
			return
		}
	}
	for len(received) < len(sent) {
		n, err := c.Receive(b, p)
		if n == 0 || err != nil {
			t.Errorf("receive: %d, %v", n, err)
			return
		}
		received = append(received, p[:n]...)
	}
	if !bytes.Equal(sent, received) {
		t.Error("what was received is not what was sent")
	}
	unix.Shutdown(int(b), unix.SHUT_RDWR)
	if n, err := c.Receive(a, p); n != 0 || err != nil {
		t.Errorf("end of the stream: %d, %v", n, err)
	}
	if _, err := c.Send(a, p); err != unix.EPIPE { // and no SIGPIPE
		t.Errorf("send to nobody: %v", err)
	}
}

// Goal: Poll tells of an end that is down, and of nothing else.
func TestPoll(t *testing.T) {
	a, b := pair(t)
	fds := []unix.PollFd{{Fd: int32(a), Events: unix.POLLRDHUP}, {Fd: int32(b), Events: unix.POLLRDHUP}}
	if n, err := Poll(fds); n != 0 || err != nil {
		t.Errorf("both up: %d, %v", n, err)
	}
	unix.Shutdown(int(a), unix.SHUT_WR)
	if n, err := Poll(fds); n != 1 || err != nil || fds[0].Revents != 0 || fds[1].Revents != unix.POLLRDHUP {
		t.Errorf("one has shut its half down: %d, %v, %+v", n, err, fds)
	}
}

// Goal: a connection that is never idle gets no processor for itself: another that
// becomes ready has its turn, though there is one processor, and the monitor slept
// when the first one was woken. So too with one long piece of work that was announced.
func TestOthersHaveTheirTurn(t *testing.T) {
	const limit = 20 * time.Second
	a, b := pair(t)
	p := []byte{1}
	for name, step := range map[string]func(c *Calls, first bool){
		"calls": func(c *Calls, _ bool) {
			c.Send(a, p)
			c.Receive(b, p)
		},
		"polling": func(c *Calls, _ bool) {
			c.Receive(b, p)
			Pause()
			Again(b, p)
			c.Send(a, p)
			Again(b, p)
		},
		"announced": func(c *Calls, first bool) {
			if first {
				c.Announce()
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
			greedy, other := alarm(t, 50*time.Millisecond), alarm(t, 100*time.Millisecond)
			turn, over := make(chan struct{}), make(chan bool)
			go func() {
				await(other)
				close(turn)
			}()
			go func() {
				var c Calls
				await(greedy) // all is asleep until then
				for start, first := time.Now(), true; time.Since(start) < limit; first = false {
					step(&c, first)
					select {
					case <-turn:
						over <- true
						return
					default:
					}
				}
				over <- false
			}()
			if !<-over {
				t.Errorf("another goroutine that was ready did not run for %v", limit)
			}
		})
	}
}

// await returns when f is readable, without a system call, which the monitor would see.
func await(f *os.File) {
	raw, err := f.SyscallConn()
	if err != nil {
		panic(err)
	}
	waited := false
	raw.Read(func(uintptr) bool {
		defer func() { waited = true }()
		return waited
	})
}

// alarm is a file that becomes readable after d, by the kernel and no timer of Go's.
func alarm(t *testing.T, d time.Duration) *os.File {
	t.Helper()
	fd, err := unix.TimerfdCreate(unix.CLOCK_MONOTONIC, unix.TFD_NONBLOCK|unix.TFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "timer")
	t.Cleanup(func() { f.Close() })
	if err := unix.TimerfdSettime(fd, 0, &unix.ItimerSpec{Value: unix.NsecToTimespec(d.Nanoseconds())}, nil); err != nil {
		t.Fatal(err)
	}
	return f
}

// Goal: no call allocates, whatever it comes to.
func TestAllocations(t *testing.T) {
	a, b := pair(t)
	var c Calls
	p := make([]byte, 4096)
	if n := testing.AllocsPerRun(1000, func() {
		c.Send(a, p)
		c.Receive(b, p)
		c.Receive(b, p)
		Again(b, p)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
