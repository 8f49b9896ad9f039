package cli

import (
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"
)

// The files of --tls-certificates, by the names that nbdkit and qemu gave them. All
// are PEM.
const (
	certFile = "server-cert.pem" // the server's certificate, and those between it and its authority
	keyFile  = "server-key.pem"
	caFile   = "ca-cert.pem" // who signs clients' certificates
	crlFile  = "ca-crl.pem"  // which of these are void; optional
)

// credentials are the files of --tls-certificates, as they were when last read.
// Connections that are open keep what they began with.
type credentials struct {
	current atomic.Pointer[tls.Config]
}

// config is what package nbd is given: at each handshake, the current one.
func (c *credentials) config() *tls.Config {
	return &tls.Config{
		MinVersion:         tls.VersionTLS12,
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) { return c.current.Load(), nil },
	}
}

// loadTLS reads the files that s names; nil if TLS is off. What is not wrong but
// unwise is logged. A server that has given up root may be unable to read its key
// again: then it keeps the certificate that it has in was, if any, and all else is
// read.
func (s *settings) loadTLS(log zerolog.Logger, was *tls.Config) (*tls.Config, error) {
	if s.TLS.value == "off" {
		return nil, nil
	}
	dir := s.TLSCertificates
	key := filepath.Join(dir, keyFile)
	cert, err := tls.LoadX509KeyPair(filepath.Join(dir, certFile), key)
	if errors.Is(err, fs.ErrPermission) && was != nil {
		log.Warn().Err(err).Msgf("the certificate stays as it was until the server is restarted, or may read %s", key)
		cert, err = was.Certificates[0], nil
	}
	if err != nil {
		return nil, fmt.Errorf("--tls-certificates %s: %w", dir, adviseKeyPair(err))
	}
	if st, err := os.Stat(key); err == nil && st.Mode().Perm()&0o007 != 0 { // a group may be its server's own
		log.Warn().Str("path", key).Msgf("everybody may read the private key, its mode is %04o: chmod o= %s", st.Mode().Perm(), key)
	}
	if now := time.Now(); cert.Leaf.NotAfter.Before(now) || cert.Leaf.NotBefore.After(now) {
		log.Warn().Str("path", filepath.Join(dir, certFile)).
			Msgf("the certificate is valid from %v to %v, and not now: clients will refuse it", cert.Leaf.NotBefore, cert.Leaf.NotAfter)
	}
	c := &tls.Config{
		MinVersion:   tls.VersionTLS12,
		Certificates: []tls.Certificate{cert},
		// Connections last; and a ticket would outlive the certificate that it was given for.
		SessionTicketsDisabled: true,
	}
	if s.verifyPeer() {
		if err := s.knowClients(c, log); err != nil {
			return nil, fmt.Errorf("--tls-certificates %s: %w", dir, err)
		}
	}
	return c, nil
}

// adviseKeyPair adds to an error of reading certificate and key what to do about it.
func adviseKeyPair(err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%w: put %s and %s there, both PEM", err, certFile, keyFile)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%w: run as a user who may read it", err)
	}
	return fmt.Errorf("%s and %s: %w: give it a certificate and the key that it was made for, both PEM", certFile, keyFile, err)
}

// knowClients makes c demand a certificate that the authority has signed and not
// recalled, and whose subject is allowed.
func (s *settings) knowClients(c *tls.Config, log zerolog.Logger) error {
	text, err := os.ReadFile(filepath.Join(s.TLSCertificates, caFile))
	if err != nil {
		return err
	}
	authorities, err := parseCertificates(text)
	if err != nil {
		return fmt.Errorf("%s: %w", caFile, err)
	}
	c.ClientAuth = tls.RequireAndVerifyClientCert
	// GnuTLS up to 3.7 (libnbd and qemu on Debian 12) sends an RSA certificate only to
	// who lists an rsa_pkcs1 scheme, which crypto/tls does in TLS 1.2 alone.
	c.MaxVersion = tls.VersionTLS12
	c.ClientCAs = x509.NewCertPool()
	for _, ca := range authorities {
		c.ClientCAs.AddCert(ca)
	}
	revoked, err := readRevoked(filepath.Join(s.TLSCertificates, crlFile), authorities, log)
	if err != nil {
		return fmt.Errorf("%s: %w", crlFile, err)
	}
	allowed := s.TLSAllow
	c.VerifyConnection = func(state tls.ConnectionState) error {
		if len(state.PeerCertificates) == 0 {
			return errors.New("no client certificate")
		}
		leaf := state.PeerCertificates[0]
		switch {
		case slices.ContainsFunc(state.PeerCertificates, revoked.has):
			return fmt.Errorf("the certificate of %s, or of who signed it, is revoked", distinguishedName(leaf))
		case len(allowed) > 0 && !matchesSubject(leaf, allowed):
			return fmt.Errorf("%s is not among the subjects allowed by --tls-allow", distinguishedName(leaf))
		}
		return nil
	}
	return nil
}

func parseCertificates(text []byte) (certs []*x509.Certificate, err error) {
	for {
		var block *pem.Block
		if block, text = pem.Decode(text); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			continue
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		certs = append(certs, cert)
	}
	if len(certs) == 0 {
		return nil, errors.New("no certificate in it: it must be PEM")
	}
	return certs, nil
}

// revocations are certificates that their authority has recalled.
type revocations map[revocation]bool

type revocation struct{ issuer, serial string }

func (r revocations) has(cert *x509.Certificate) bool {
	return r[revocation{string(cert.RawIssuer), cert.SerialNumber.String()}]
}

// readRevoked reads the revocation lists in the file at path, which need not be
// there. Each must be signed by one of the authorities.
func readRevoked(path string, authorities []*x509.Certificate, log zerolog.Logger) (revocations, error) {
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	revoked := revocations{}
	lists := 0
	for {
		var block *pem.Block
		if block, text = pem.Decode(text); block == nil {
			break
		}
		list, err := x509.ParseRevocationList(block.Bytes)
		if err != nil {
			return nil, err
		}
		signed := func(ca *x509.Certificate) bool { return list.CheckSignatureFrom(ca) == nil }
		if !slices.ContainsFunc(authorities, signed) {
			return nil, fmt.Errorf("not signed by an authority in %s", caFile)
		}
		for _, entry := range list.RevokedCertificateEntries {
			revoked[revocation{string(list.RawIssuer), entry.SerialNumber.String()}] = true
		}
		if !list.NextUpdate.IsZero() && list.NextUpdate.Before(time.Now()) {
			log.Warn().Str("path", path).Msgf("the revocation list should have been replaced by %v: it is used all the same", list.NextUpdate)
		}
		lists++
	}
	if lists == 0 {
		return nil, errors.New("no revocation list in it: it must be PEM")
	}
	return revoked, nil
}

// matchesSubject says whether cert is of one of the subjects: a distinguished name,
// which has an equals sign, or a common name.
func matchesSubject(cert *x509.Certificate, subjects []string) bool {
	dn := distinguishedName(cert)
	return slices.ContainsFunc(subjects, func(s string) bool {
		if strings.Contains(s, "=") {
			return strings.ReplaceAll(s, ", ", ",") == strings.ReplaceAll(dn, ", ", ",")
		}
		return s == cert.Subject.CommonName
	})
}

// distinguishedName is the subject of cert as RFC 4514 writes it, and as GnuTLS and
// OpenSSL (-nameopt RFC2253) print it: the most particular part first.
func distinguishedName(cert *x509.Certificate) string {
	var names pkix.RDNSequence // cert.Subject has lost their order
	if _, err := asn1.Unmarshal(cert.RawSubject, &names); err != nil {
		return cert.Subject.String()
	}
	return names.String()
}
