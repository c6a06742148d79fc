package server

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// secured serves on TLS, and returns its address.
func secured(t *testing.T, h http.Handler) (*Credentials, string) {
	t.Helper()
	credentials, err := OpenCredentials(filepath.Join(t.TempDir(), "pki"), []string{"localhost", "127.0.0.1"}, time.Now)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	d, err := NewDoor(l, h, credentials, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = d.Serve() }()
	t.Cleanup(func() { _ = d.Close() })
	return credentials, address
}

func TestNobodyGetsInWithoutCredentials(t *testing.T) {
	n := newNode(t)
	n.put("default", "web", nil)
	credentials, address := secured(t, n.server().Port())
	pool := x509.NewCertPool()
	pool.AddCert(credentials.ca.certificate)
	own, err := tls.LoadX509KeyPair(filepath.Join(credentials.dir, "client.crt"), filepath.Join(credentials.dir, "client.key"))
	if err != nil {
		t.Fatal(err)
	}
	foreign, err := OpenCredentials(filepath.Join(t.TempDir(), "pki"), nil, time.Now)
	if err != nil {
		t.Fatal(err)
	}
	stranger, err := tls.LoadX509KeyPair(filepath.Join(foreign.dir, "client.crt"), filepath.Join(foreign.dir, "client.key"))
	if err != nil {
		t.Fatal(err)
	}
	// signed is a certificate of the node's authority.
	signed := func(change func(*x509.Certificate)) *tls.Certificate {
		template := leaf("client", time.Now())
		template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
		change(template)
		der, key, err := credentials.ca.sign(template)
		if err != nil {
			t.Fatal(err)
		}
		return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
	}
	expired := signed(func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) })
	early := signed(func(c *x509.Certificate) { c.NotBefore = time.Now().Add(time.Hour) })
	server := signed(func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} })
	for _, tt := range []struct {
		name, path, token string
		certificate       *tls.Certificate
		want              int
	}{
		{name: "nothing", path: "/pods", want: 401},
		{name: "not even healthz", path: "/healthz", want: 401},
		{name: "what is not there", path: "/none", want: 401},
		{name: "the token", path: "/pods", token: "Bearer " + credentials.Token, want: 200},
		{name: "the token, otherwise", path: "/pods", token: "bearer  " + credentials.Token, want: 200},
		{name: "another token", path: "/pods", token: "Bearer " + foreign.Token, want: 401},
		{name: "an empty token", path: "/pods", token: "Bearer ", want: 401},
		{name: "half of it", path: "/pods", token: "Bearer " + credentials.Token[:26], want: 401},
		{name: "as a password", path: "/pods", token: "Basic " + credentials.Token, want: 401},
		{name: "the node's certificate", path: "/pods", certificate: &own, want: 200},
		{name: "a stranger's certificate", path: "/pods", certificate: &stranger, want: 401},
		{name: "a stranger's certificate, and the token", path: "/pods", certificate: &stranger, token: "Bearer " + credentials.Token, want: 200},
		{name: "an expired certificate", path: "/pods", certificate: expired, want: 401},
		{name: "a certificate that does not count yet", path: "/pods", certificate: early, want: 401},
		{name: "a server's certificate", path: "/pods", certificate: server, want: 401},
	} {
		config := &tls.Config{RootCAs: pool}
		if tt.certificate != nil {
			config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return tt.certificate, nil }
		}
		transport := &http.Transport{TLSClientConfig: config}
		defer transport.CloseIdleConnections()
		r, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://"+address+tt.path, nil)
		r.Header.Set("Authorization", tt.token)
		resp, err := (&http.Client{Transport: transport}).Do(r)
		if err != nil {
			t.Errorf("%s: %v", tt.name, err)
			continue
		}
		resp.Body.Close()
		if resp.StatusCode != tt.want {
			t.Errorf("%s: %d, want %d", tt.name, resp.StatusCode, tt.want)
		}
	}
	if resp, err := http.Get("http://" + address + "/pods"); err == nil {
		body, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode != 400 || bytes.Contains(body, []byte("web")) {
			t.Errorf("without TLS: %d %s", resp.StatusCode, body)
		}
	}
}

func TestCredentialsStay(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "pki")
	first, err := OpenCredentials(dir, []string{"a"}, now)
	if err != nil {
		t.Fatal(err)
	}
	again, err := OpenCredentials(dir, []string{"a"}, now)
	if err != nil || again.Token != first.Token || !again.ca.certificate.Equal(first.ca.certificate) {
		t.Errorf("the next daemon has others: %v", err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if info, err := e.Info(); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", e.Name(), info.Mode(), err)
		}
	}
	early, err := again.certificate()
	if err != nil {
		t.Fatal(err)
	}
	again.now = func() time.Time { return start.Add(leafValidity - leafRemaining + time.Minute) }
	if late, err := again.certificate(); err != nil || bytes.Equal(late.Certificate[0], early.Certificate[0]) {
		t.Errorf("the certificate is not renewed: %v", err)
	}
	if err := os.WriteFile(filepath.Join(dir, "ca.crt"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if mended, err := OpenCredentials(dir, []string{"a"}, now); err != nil || mended.Token != first.Token {
		t.Errorf("with a damaged authority: %v", err)
	}
	path := filepath.Join(dir, "kubeconfig")
	if err := first.WriteKubeconfig(path, &net.TCPAddr{IP: net.IPv6loopback, Port: 7}); err != nil {
		t.Fatal(err)
	}
	if text, err := os.ReadFile(path); err != nil || !strings.Contains(string(text), "server: https://[::1]:7") {
		t.Errorf("%s, %v", text, err)
	}
}

// Sessions go on when a daemon leaves, and nothing else does.
func TestHandOver(t *testing.T) {
	n := newNode(t)
	n.put("default", "web", nil)
	socket := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	d, err := NewDoor(l, n.server().API(), nil, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- d.Serve() }()
	defer d.Close()

	session, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer session.Close()
	fmt.Fprintf(session, "GET /api/v1/namespaces/default/pods/web/exec?command=x&stdin=1&stdout=1 HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\n"+
		"Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\nOrigin: http://x\r\nSec-WebSocket-Protocol: v5.channel.k8s.io\r\n\r\n")
	in := bufio.NewReader(session)
	resp, err := http.ReadResponse(in, nil)
	if err != nil || resp.StatusCode != http.StatusSwitchingProtocols {
		t.Fatalf("%v, %v", resp, err)
	}
	watching, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer watching.Close()
	fmt.Fprint(watching, "GET /api/v1/pods?watch=1&resourceVersion=101 HTTP/1.1\r\nHost: x\r\n\r\n")
	answer := bufio.NewReader(watching)
	if _, err := answer.ReadString('\n'); err != nil {
		t.Fatal(err)
	}

	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	d.HandOver(ctx)
	if ctx.Err() != nil {
		t.Error("the watch went on")
	}
	if err := <-served; err != nil {
		t.Error(err)
	}
	if _, err := io.Copy(io.Discard, answer); err != nil {
		t.Error("the watch was torn:", err)
	}
	if _, err := net.Dial("unix", socket); err == nil {
		t.Error("another client gets in")
	}
	// Masked with zeros: channel 0, "ping".
	if _, err := session.Write([]byte{0x82, 0x85, 0, 0, 0, 0, 0, 'p', 'i', 'n', 'g'}); err != nil {
		t.Error(err)
	}
	var said []byte
	for !bytes.Contains(said, []byte("ping")) {
		b, err := in.ReadByte()
		if err != nil {
			t.Fatalf("the session ended: %q, %v", said, err)
		}
		said = append(said, b)
	}
	_ = d.Close()
	if _, err := io.Copy(io.Discard, in); err != nil && !errors.Is(err, net.ErrClosed) && !strings.Contains(err.Error(), "reset") {
		t.Error(err)
	}
}
