package registry

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"
)

// A Server serves a registry on one loopback address, in plain HTTP or in TLS with a certificate authority of its own.
// Close ends it.
type Server struct {
	// CA is the authority's certificate in PEM; nil for plain HTTP.
	CA     []byte
	name   string // of the host in URLs; empty for the address
	listen net.Listener
	http   *http.Server
}

// Listen serves r in plain HTTP at address, 127.0.0.1:0 for a free port.
func Listen(r http.Handler, address string) (*Server, error) {
	return start(r, address, nil, nil)
}

// ListenTLS serves r in TLS. The certificate is valid for 127.0.0.1, ::1 and name, and signed by an authority that is made
// for this server. Its URL has the name, which has to lead here.
func ListenTLS(r http.Handler, address, name string) (*Server, error) {
	ca, certificate, err := issue(name)
	if err != nil {
		return nil, err
	}
	s, err := start(r, address, ca, &tls.Config{Certificates: []tls.Certificate{certificate}, NextProtos: []string{"http/1.1"}})
	if err == nil {
		s.name = name
	}
	return s, err
}

func start(r http.Handler, address string, ca []byte, config *tls.Config) (*Server, error) {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return nil, err
	}
	s := &Server{CA: ca, listen: l, http: &http.Server{Handler: r, ReadHeaderTimeout: 10 * time.Second}}
	if config != nil {
		l = tls.NewListener(l, config)
	}
	go func() { _ = s.http.Serve(l) }() // ends with Close; there is nobody to tell of anything else
	return s, nil
}

// Addr returns the host and port.
func (s *Server) Addr() string { return s.listen.Addr().String() }

// Port returns the port.
func (s *Server) Port() int { return s.listen.Addr().(*net.TCPAddr).Port }

// URL returns the base URL.
func (s *Server) URL() string {
	if s.CA != nil {
		return fmt.Sprintf("https://%s:%d", s.name, s.Port())
	}
	return "http://" + s.Addr()
}

// Close ends the server and all its connections.
func (s *Server) Close() { _ = s.http.Close() }

// WriteHosts writes one hosts.toml for each name into dir, in the form of containerd's certs.d. The server stands in for
// the registry of that name altogether: nothing falls back to the real one.
func (s *Server) WriteHosts(dir string, names ...string) error {
	for _, name := range names {
		host := filepath.Join(dir, name)
		if err := os.MkdirAll(host, 0o755); err != nil {
			return err
		}
		text := fmt.Sprintf("server = %[1]q\n\n[host.%[1]q]\n  capabilities = [\"pull\", \"resolve\"]\n", s.URL())
		if s.CA != nil {
			if err := os.WriteFile(filepath.Join(host, "ca.crt"), s.CA, 0o644); err != nil {
				return err
			}
			text += fmt.Sprintf("  ca = %q\n", filepath.Join(host, "ca.crt"))
		}
		if err := os.WriteFile(filepath.Join(host, "hosts.toml"), []byte(text), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// issue makes a certificate authority and a server's certificate signed by it.
func issue(name string) (caPEM []byte, server tls.Certificate, err error) {
	now := time.Now()
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, server, err
	}
	ca := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test authority"},
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	caDER, err := x509.CreateCertificate(rand.Reader, ca, ca, caKey.Public(), caKey)
	if err != nil {
		return nil, server, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, server, err
	}
	leaf := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "test registry"},
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(24 * time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		DNSNames: []string{name}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback},
	}
	der, err := x509.CreateCertificate(rand.Reader, leaf, ca, key.Public(), caKey)
	if err != nil {
		return nil, server, err
	}
	caPEM = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: caDER})
	return caPEM, tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, nil
}
