package server

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/berth-node/berth/internal/atomicfile"
	"github.com/berth-node/berth/internal/stream"
)

// Credentials are what the TLS doors are known by, and who may come in: who has the token, or a certificate of the node's
// own authority. Loopback is no proof of anything: other users are on it, and pods with the host's network.
type Credentials struct {
	dir   string
	names []string // of the serving certificate
	now   func() time.Time
	token [sha256.Size]byte
	// Token is what a client shows as "Authorization: Bearer".
	Token string
	ca    *authority

	mu      sync.Mutex
	serving *tls.Certificate
	renew   time.Time
}

// The files in the folder of the credentials.
const (
	tokenFile     = "token"
	caFile        = "ca"     // .crt and .key
	clientFile    = "client" // the same
	caValidity    = 20 * 365 * 24 * time.Hour
	leafValidity  = 365 * 24 * time.Hour
	leafRemaining = leafValidity / 3 // by then there is a new one
)

// OpenCredentials reads the credentials in dir, or makes them. Only root gets at them. names are the host names and addresses
// that clients call this node by.
func OpenCredentials(dir string, names []string, now func() time.Time) (*Credentials, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("credentials: %w", err)
	}
	_ = atomicfile.Sweep(dir) // on a read-only root it stays
	c := &Credentials{dir: dir, names: names, now: now}
	var err error
	if c.Token, err = openToken(filepath.Join(dir, tokenFile)); err != nil {
		return nil, fmt.Errorf("credentials: %w", err)
	}
	c.token = sha256.Sum256([]byte(c.Token))
	if c.ca, err = openAuthority(filepath.Join(dir, caFile), now()); err != nil {
		return nil, fmt.Errorf("credentials: %w", err)
	}
	if err := c.writeClient(); err != nil {
		return nil, fmt.Errorf("credentials: %w", err)
	}
	return c, nil
}

// Since is when the credentials were made: about when the node was.
func (c *Credentials) Since() time.Time { return c.ca.certificate.NotBefore }

func openToken(path string) (string, error) {
	data, err := atomicfile.Read(path)
	if err == nil && len(data) >= 26 {
		return string(data), nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	token := rand.Text() + rand.Text()
	return token, atomicfile.Write(path, []byte(token), 0o600)
}

// writeClient makes a certificate for clients that have none, or an old one: for scrapers of the kubelet's port.
func (c *Credentials) writeClient() error {
	path := filepath.Join(c.dir, clientFile)
	if old, err := tls.LoadX509KeyPair(path+".crt", path+".key"); err == nil && c.ca.made(old.Leaf) && old.Leaf.NotAfter.Sub(c.now()) > leafRemaining {
		return nil
	}
	template := leaf("berth:client", c.now())
	template.Subject.Organization = []string{"system:masters"}
	template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	der, key, err := c.ca.sign(template)
	if err != nil {
		return err
	}
	return writePair(path, der, key)
}

// guard lets those in who show the token or a certificate.
func (c *Credentials) guard(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !c.admits(r) {
			w.Header().Set("WWW-Authenticate", "Bearer")
			w.Header().Set("Connection", "close")
			fail(w, statusError(http.StatusUnauthorized, "Unauthorized", "Unauthorized"))
			return
		}
		stream.Spoke(r)
		h.ServeHTTP(w, r)
	})
}

// admits looks at the certificate here and not in the handshake, as upstream does: who comes with a wrong one is told so in HTTP,
// and the token counts all the same.
func (c *Credentials) admits(r *http.Request) bool {
	if r.TLS != nil && c.knows(r.TLS.PeerCertificates) {
		return true
	}
	kind, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	sum := sha256.Sum256([]byte(strings.TrimSpace(token))) // of the same length, whatever was sent
	return strings.EqualFold(kind, "Bearer") && subtle.ConstantTimeCompare(sum[:], c.token[:]) == 1
}

// knows says whether these are a client's certificate, which it has the key of, and those on the way to the authority.
func (c *Credentials) knows(chain []*x509.Certificate) bool {
	if len(chain) == 0 {
		return false
	}
	others := x509.NewCertPool()
	for _, other := range chain[1:] {
		others.AddCert(other)
	}
	_, err := chain[0].Verify(x509.VerifyOptions{
		Roots: c.ca.pool(), Intermediates: others, CurrentTime: c.now(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
	return err == nil
}

func (c *Credentials) tlsConfig() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS12, NextProtos: []string{"http/1.1"},
		ClientAuth: tls.RequestClientCert, ClientCAs: c.ca.pool(),
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return c.certificate() },
	}
}

// certificate is the serving certificate. It is made when the first client comes, and anew before it is too old.
func (c *Credentials) certificate() (*tls.Certificate, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := c.now()
	if c.serving != nil && now.Before(c.renew) {
		return c.serving, nil
	}
	template := leaf("berth", now)
	template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	for _, name := range c.names {
		if ip := net.ParseIP(name); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, name)
		}
	}
	der, key, err := c.ca.sign(template)
	if err != nil {
		return nil, err
	}
	c.serving = &tls.Certificate{Certificate: [][]byte{der, c.ca.certificate.Raw}, PrivateKey: key}
	c.renew = template.NotAfter.Add(-leafRemaining)
	return c.serving, nil
}

// An authority signs the node's certificates.
type authority struct {
	certificate *x509.Certificate
	key         *ecdsa.PrivateKey
}

// openAuthority reads the authority at path, or makes one: also in place of one that cannot be read, whose certificates
// nobody can renew.
func openAuthority(path string, now time.Time) (*authority, error) {
	pair, err := tls.LoadX509KeyPair(path+".crt", path+".key")
	if err == nil {
		if key, ok := pair.PrivateKey.(*ecdsa.PrivateKey); ok && pair.Leaf.IsCA && now.Before(pair.Leaf.NotAfter) {
			return &authority{pair.Leaf, key}, nil
		}
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	template := leaf("berth-node", now)
	template.NotAfter = now.Add(caValidity)
	template.IsCA, template.BasicConstraintsValid = true, true
	template.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, err
	}
	certificate, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	return &authority{certificate, key}, writePair(path, der, key)
}

func (a *authority) pool() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(a.certificate)
	return pool
}

func (a *authority) made(c *x509.Certificate) bool { return c.CheckSignatureFrom(a.certificate) == nil }

// sign makes a certificate with a key of its own.
func (a *authority) sign(template *x509.Certificate) ([]byte, *ecdsa.PrivateKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.certificate, key.Public(), a.key)
	return der, key, err
}

func leaf(name string, now time.Time) *x509.Certificate {
	serial, _ := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127)) // crypto/rand does not fail
	return &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: name},
		// Clocks differ, and that of a machine without a battery is set late.
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(leafValidity),
		KeyUsage: x509.KeyUsageDigitalSignature,
	}
}

// writePair writes the key first: a certificate without its key would pass for damage.
func writePair(path string, der []byte, key *ecdsa.PrivateKey) error {
	keyDER, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return err
	}
	if err := atomicfile.Write(path+".key", pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: keyDER}), 0o600); err != nil {
		return err
	}
	return atomicfile.Write(path+".crt", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600)
}

// WriteKubeconfig writes a kubeconfig with which kubectl comes in at that address.
func (c *Credentials) WriteKubeconfig(path string, address net.Addr) error {
	text := fmt.Sprintf(`apiVersion: v1
kind: Config
clusters:
- name: berth
  cluster:
    server: https://%s
    certificate-authority-data: %s
users:
- name: berth
  user:
    token: %s
contexts:
- name: berth
  context: {cluster: berth, user: berth}
current-context: berth
`, address, base64.StdEncoding.EncodeToString(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.ca.certificate.Raw})), c.Token)
	return atomicfile.Write(path, []byte(text), 0o600)
}
