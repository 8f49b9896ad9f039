package nbdtest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"net"
	"time"
)

// Authority makes certificates for tests. They are good for a day, and for the
// names in [TLSHosts].
type Authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	last int64 // serial number
}

// TLSHosts are the names and addresses in a server's certificate.
var TLSHosts = []string{"localhost", "127.0.0.1", "::1"}

// NewAuthority returns an authority of its own.
func NewAuthority() (*Authority, error) {
	a := &Authority{}
	template := a.template("nbdtest authority")
	template.IsCA, template.BasicConstraintsValid = true, true
	template.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature
	der, key, err := a.sign(template, nil)
	if err != nil {
		return nil, err
	}
	a.key = key
	a.cert, err = x509.ParseCertificate(der)
	return a, err
}

func (a *Authority) template(commonName string) *x509.Certificate {
	a.last++
	now := time.Now()
	return &x509.Certificate{
		SerialNumber: big.NewInt(a.last), Subject: pkix.Name{CommonName: commonName},
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(24 * time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment, // which qemu 10 wants
	}
}

// sign makes a certificate with a new key, signed by parent, or by itself.
func (a *Authority) sign(template, parent *x509.Certificate) ([]byte, *ecdsa.PrivateKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	signer := a.key
	if parent == nil {
		parent, signer = template, key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, signer)
	return der, key, err
}

// Issue makes a certificate for a server or a client of that name.
func (a *Authority) Issue(commonName string, server bool) (tls.Certificate, error) {
	template := a.template(commonName)
	template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	if server {
		template.ExtKeyUsage[0] = x509.ExtKeyUsageServerAuth
		for _, h := range TLSHosts {
			if ip := net.ParseIP(h); ip != nil {
				template.IPAddresses = append(template.IPAddresses, ip)
			} else {
				template.DNSNames = append(template.DNSNames, h)
			}
		}
	}
	der, key, err := a.sign(template, a.cert)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, err
}

// Pool holds the authority's own certificate.
func (a *Authority) Pool() *x509.CertPool {
	p := x509.NewCertPool()
	p.AddCert(a.cert)
	return p
}

// Configs returns what a server and a client need. The server takes clients
// without a certificate, and checks one that comes; the client has one.
func (a *Authority) Configs() (server, client *tls.Config, err error) {
	sc, err := a.Issue("server", true)
	if err != nil {
		return nil, nil, err
	}
	cc, err := a.Issue("client", false)
	if err != nil {
		return nil, nil, err
	}
	server = &tls.Config{Certificates: []tls.Certificate{sc}, ClientAuth: tls.VerifyClientCertIfGiven, ClientCAs: a.Pool()}
	client = &tls.Config{Certificates: []tls.Certificate{cc}, RootCAs: a.Pool(), ServerName: TLSHosts[0]}
	return server, client, nil
}
