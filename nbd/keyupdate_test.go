package nbd_test

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"fmt"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"github.com/bttnbd/bttnbd/nbd"
	"github.com/bttnbd/bttnbd/nbd/nbdtest"
)

// Goal: a client may change its keys at any time, and wait as long as it likes
// before its next request: tls.Conn answers a KeyUpdate from within a read, and the
// time that this answer may take is over with it.
func TestKeyUpdate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server, client := configs(t)
		s := newServerWith(t, nbd.Options{TLS: server, WriteTimeout: time.Second}, full(nbdtest.NewMemory(mib), mib))
		c := pipe(s)
		if _, err := c.Greet(bothFlags); err != nil {
			t.Fatal(err)
		}
		keys, raw := new(bytes.Buffer), c.Conn
		client.KeyLogWriter = keys
		if err := c.StartTLS(client); err != nil {
			t.Fatal(err)
		}
		w := newRecordWriter(t, c.Conn.(*tls.Conn), raw, keys.Bytes())
		c.Conn = w
		if _, err := c.Go(""); err != nil {
			t.Fatal(err)
		}
		for range 3 {
			got := make(chan error)
			go func() { // reads the answer to the KeyUpdate, too
				r, err := c.Recv(0)
				if err == nil && r.Err != 0 {
					err = fmt.Errorf("error %v", r.Err)
				}
				got <- err
			}()
			w.updateKeys()
			time.Sleep(time.Hour)
			c.Send(nbdtest.Command(nbd.NBD_CMD_FLUSH, 1, 0, 0))
			if err := <-got; err != nil {
				t.Fatal(err)
			}
		}
		c.Close()
		<-c.over
	})
}

// recordWriter is a TLS 1.3 connection whose own side writes its records itself,
// since crypto/tls sends no KeyUpdate of its own accord (RFC 8446, 4.6.3, 5.2, 7.2).
type recordWriter struct {
	*tls.Conn
	t      *testing.T
	raw    net.Conn
	secret []byte // client_application_traffic_secret_N
	seq    uint64 // of the next record under it
}

// newRecordWriter takes over from c, which has written nothing since its handshake.
func newRecordWriter(t *testing.T, c *tls.Conn, raw net.Conn, keyLog []byte) *recordWriter {
	t.Helper()
	if suite := c.ConnectionState().CipherSuite; suite != tls.TLS_AES_128_GCM_SHA256 {
		t.Fatalf("the test can do TLS_AES_128_GCM_SHA256 alone, not %s", tls.CipherSuiteName(suite))
	}
	w := &recordWriter{Conn: c, t: t, raw: raw}
	for line := range bytes.Lines(keyLog) {
		if f := bytes.Fields(line); string(f[0]) == "CLIENT_TRAFFIC_SECRET_0" {
			w.secret, _ = hex.DecodeString(string(f[2]))
		}
	}
	return w
}

// expand is HKDF-Expand-Label without a context.
func (w *recordWriter) expand(label string, n int) []byte {
	info := be.AppendUint16(nil, uint16(n))
	info = append(info, byte(len("tls13 "+label)))
	info = append(info, "tls13 "+label...)
	b, err := hkdf.Expand(sha256.New, w.secret, string(append(info, 0)), n)
	if err != nil {
		w.t.Fatal(err)
	}
	return b
}

// record encrypts p.
//
//	0      1         3        5
//	+------+---------+--------+---------------------------+-----+
//	|  23  |  0x303  | length | p and its type, encrypted | tag |
//	+------+---------+--------+---------------------------+-----+
func (w *recordWriter) record(p []byte, kind byte) []byte {
	block, err := aes.NewCipher(w.expand("key", 16))
	if err != nil {
		w.t.Fatal(err)
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		w.t.Fatal(err)
	}
	nonce := w.expand("iv", 12)
	be.PutUint64(nonce[4:], be.Uint64(nonce[4:])^w.seq)
	w.seq++
	head := be.AppendUint16([]byte{23, 3, 3}, uint16(len(p)+1+aead.Overhead()))
	return aead.Seal(head, nonce, append(bytes.Clone(p), kind), head)
}

// updateKeys sends a KeyUpdate that wants another in answer.
func (w *recordWriter) updateKeys() {
	w.raw.Write(w.record([]byte{24, 0, 0, 1, 1}, 22))
	w.secret, w.seq = w.expand("traffic upd", 32), 0
}

func (w *recordWriter) Write(p []byte) (int, error) {
	if _, err := w.raw.Write(w.record(p, 23)); err != nil {
		return 0, err
	}
	return len(p), nil
}

// Close needs no close_notify, which would be written with the old keys.
func (w *recordWriter) Close() error { return w.raw.Close() }
