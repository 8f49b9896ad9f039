package nbd_test

import (
	"context"
	"crypto/tls"
	"io"
	"testing"
	"time"

	"github.com/bttnbd/bttnbd/nbd"
	"github.com/bttnbd/bttnbd/nbd/nbdtest"
)

// FuzzTLS is FuzzTransmission over TLS, in records of any length. With garbage,
// that takes the place of the TLS handshake, or of the records behind in: then the
// server may have done what came whole before it, and nothing else.
func FuzzTLS(f *testing.F) {
	in, _ := mixed()
	in = in[len(hello()):]
	for form := range byte(forms) {
		f.Add(form, in, uint16(0), []byte{}, false)
		f.Add(form, in, uint16(7), []byte{}, false)
		f.Add(form, requests(chunkRequests()...), uint16(100), []byte{}, false)
		f.Add(form, requests(nbdtest.Write(1, 0, pattern(1, 300<<10)), nbdtest.Read(2, 0, 400<<10)), uint16(5000), []byte{}, false)
		f.Add(form, in, uint16(99), []byte{23, 3, 3, 0, 5, 1, 2, 3, 4, 5}, false)
		f.Add(form, in, uint16(0), []byte("GET / HTTP/1.0\r\n\r\n"), true)
		f.Add(form, in, uint16(0), []byte{22, 3, 1, 0xff, 0xff, 1}, true)
	}
	server, client := configs(f)

	f.Fuzz(func(t *testing.T, form byte, in []byte, record uint16, garbage []byte, early bool) {
		form %= forms
		m := nbdtest.NewMemory(fuzzSize)
		s := newServerWith(t, nbd.Options{TLS: server, TLSRequired: true}, full(m, fuzzSize))
		nc, other := socketpair(t)
		defer nc.Close()
		nc.SetDeadline(time.Now().Add(patience))
		over := make(chan error, 1)
		go func() { over <- s.ServeConn(context.Background(), other) }()
		c := &nbdtest.Client{Conn: nc}
		if _, err := c.Greet(bothFlags); err != nil {
			t.Fatal(err)
		}
		if early && len(garbage) > 0 {
			c.Haggle(nbd.NBD_OPT_STARTTLS, nil)
			c.Write(garbage)
			nc.(interface{ CloseWrite() error }).CloseWrite()
			<-over
			compare(t, int(form), nil, nil, m, false)
			return
		}
		if err := c.StartTLS(client); err != nil {
			t.Fatal(err)
		}
		got := make(chan []byte, 1)
		head := greeting(int(form))[4:]
		c.Write(head)
		headAnswers(t, c, int(form))
		go func() {
			b, _ := io.ReadAll(c)
			got <- b
		}()
		for rest := in; len(rest) > 0; {
			n := len(rest)
			if record > 0 {
				n = min(n, int(record))
			}
			if _, err := c.Write(rest[:n]); err != nil {
				break // it has hung up
			}
			rest = rest[n:]
		}
		if len(garbage) > 0 {
			nc.Write(garbage)
			nc.(interface{ CloseWrite() error }).CloseWrite()
		} else {
			c.Conn.(*tls.Conn).CloseWrite()
		}
		compare(t, int(form), in, <-got, m, len(garbage) > 0)
		<-over
	})
}

// headAnswers receives what comes of the options in greeting.
func headAnswers(t *testing.T, c *nbdtest.Client, form int) {
	n := 1
	if form != simple {
		n = 3
	}
	for range n {
		if r := lastReply(t, c); r.Type != nbd.NBD_REP_ACK {
			t.Fatalf("option %d: %#x", r.Option, r.Type)
		}
	}
}
