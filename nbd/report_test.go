package nbd_test

import (
	"bytes"
	"strings"
	"syscall"
	"testing"

	"github.com/rs/zerolog"

	"github.com/bttnbd/bttnbd/nbd"
	"github.com/bttnbd/bttnbd/nbd/nbdtest"
)

// Goal: the operator is told what the backend failed and where, but a client cannot
// fill the log: ten failures are four lines, and its own mistakes none.
func TestFailuresAreLogged(t *testing.T) {
	var log bytes.Buffer
	b := &nbdtest.Faulty{Backend: nbdtest.NewMemory(mib), Fault: func(nbdtest.Op, int64, int64) error { return syscall.EIO }}
	s, err := nbd.NewServer([]nbd.Export{full(b, mib)}, nbd.Options{Log: zerolog.New(zerolog.SyncWriter(&log))})
	if err != nil {
		t.Fatal(err)
	}
	c := open(t, s)
	for range 10 {
		c.want(nbd.NBD_EIO, nbdtest.Read(1, 4096, 512), "read")
	}
	c.want(nbd.NBD_EINVAL, nbdtest.Read(1, mib, 512), "read past the end")
	c.Conn.Close()
	<-c.over // the log is written by then
	lines := strings.Count(log.String(), "request failed")
	if lines != 4 || !strings.Contains(log.String(), `"command":"read","offset":4096,"length":512`) {
		t.Errorf("%d lines:\n%s", lines, &log)
	}
}
