package nbd

import (
	"net"
	"testing"
	"time"
)

// Goal: the end of the handshake, which lifts its deadline, does not undo an
// interrupt that comes just before it: Shutdown would wait for ever.
func TestInterruptOutlivesDeadline(t *testing.T) {
	s, err := NewServer([]Export{{Backend: null{}}}, Options{})
	if err != nil {
		t.Fatal(err)
	}
	client, server := net.Pipe()
	defer client.Close()
	c := newConn(s, server)
	defer c.close()
	c.interrupt()
	c.setHandshakeDeadline(time.Time{})
	over := make(chan error, 1)
	go func() { over <- c.need(1) }()
	select {
	case err := <-over:
		if err == nil {
			t.Error("read a byte that nobody sent")
		}
	case <-time.After(time.Minute):
		t.Error("the read waits")
	}
}
