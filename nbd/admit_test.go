package nbd_test

import (
	"crypto/tls"
	"testing"

	"github.com/bttnbd/bttnbd/nbd"
	"github.com/bttnbd/bttnbd/nbd/nbdtest"
)

// Goal: an export to which Admit does not let a client does not exist for it: in the
// list, for INFO, GO, EXPORT_NAME and contexts; and with TLS on, Admit is asked again.
func TestAdmit(t *testing.T) {
	server, client := configs(t)
	b := nbdtest.NewMemory(mib)
	s := newServerWith(t, nbd.Options{
		TLS: server,
		Admit: func(export string, st *tls.ConnectionState) bool {
			return export == "a" || st != nil && st.HandshakeComplete
		},
	}, named("a", b, mib), named("secret", b, mib))

	c := connect(t, s)
	if _, err := c.Greet(bothFlags); err != nil {
		t.Fatal(err)
	}
	c.sees(t, false)
	if err := c.StartTLS(client); err != nil {
		t.Fatal(err)
	}
	c.sees(t, true)
	if _, err := c.Go("secret"); err != nil {
		t.Error(err)
	}
	c = connect(t, s)
	if _, err := c.Greet(bothFlags); err != nil {
		t.Fatal(err)
	}
	c.Write(nbdtest.Option(nbd.NBD_OPT_EXPORT_NAME, []byte("secret")))
	c.closed("EXPORT_NAME")
}

// sees fails unless secret is there for c, or is not, in every respect.
func (c *session) sees(t *testing.T, want bool) {
	t.Helper()
	if all, err := c.Haggle(nbd.NBD_OPT_LIST, nil); err != nil || (len(all) == 3) != want {
		t.Errorf("LIST: %d replies, %v", len(all), err)
	}
	if err := c.UseStructured(); err != nil {
		t.Fatal(err)
	}
	if _, err := c.MetaContexts(nbd.NBD_OPT_LIST_META_CONTEXT, "secret"); (err == nil) != want {
		t.Errorf("contexts: %v", err)
	}
	for _, option := range []uint32{nbd.NBD_OPT_INFO, nbd.NBD_OPT_GO} {
		if want && option == nbd.NBD_OPT_GO {
			continue // would end the negotiation
		}
		all, err := c.Haggle(option, nbdtest.InfoData("secret"))
		if err != nil || all[len(all)-1].IsError() == want {
			t.Errorf("option %d: %v, %v", option, all, err)
		}
	}
}
