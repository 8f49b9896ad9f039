package cli

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rs/zerolog"

	"github.com/bttnbd/bttnbd/nbd/nbdtest"
)

// Goal: certificate and key that do not belong together are named, with what to do,
// and so is a file that is no PEM.
func TestWrongKeyPair(t *testing.T) {
	one, other := certificate(t), certificate(t)
	s := newSettings()
	s.TLS.value, s.TLSCertificates = "on", t.TempDir()
	put := func(name, kind string, der []byte) {
		t.Helper()
		text := pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
		if err := os.WriteFile(filepath.Join(s.TLSCertificates, name), text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	key := func(c tls.Certificate) []byte {
		der, err := x509.MarshalPKCS8PrivateKey(c.PrivateKey)
		if err != nil {
			t.Fatal(err)
		}
		return der
	}
	const advice = ": give it a certificate and the key that it was made for, both PEM"
	refused := func(want string) {
		t.Helper()
		_, err := s.loadTLS(zerolog.Nop(), nil)
		if err == nil || !strings.Contains(err.Error(), "server-cert.pem and server-key.pem: "+want) || !strings.HasSuffix(err.Error(), advice) {
			t.Errorf("want %q and what to do, have %v", want, err)
		}
	}
	put(certFile, "CERTIFICATE", one.Certificate[0])
	put(keyFile, "PRIVATE KEY", key(other))
	refused("tls: private key does not match public key")
	put(keyFile, "NOTHING", nil)
	refused("tls: failed to find PEM block")
	put(keyFile, "PRIVATE KEY", key(one))
	if _, err := s.loadTLS(zerolog.Nop(), nil); err != nil {
		t.Error(err)
	}
}

// certificate is one of a server, of an authority of its own.
func certificate(t *testing.T) tls.Certificate {
	t.Helper()
	a, err := nbdtest.NewAuthority()
	if err != nil {
		t.Fatal(err)
	}
	server, _, err := a.Configs()
	if err != nil {
		t.Fatal(err)
	}
	return server.Certificates[0]
}
