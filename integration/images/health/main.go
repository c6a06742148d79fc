// Command health is a server that is as well or as ill as it is told to be, for tests of probes: by HTTP, HTTPS, TCP and gRPC.
//
// It is told through a port of its own on loopback, by commands in its container: GET /set?code=503 has it answer so, and be ill
// in the other ways for any code but that of a success. GET /asked prints who asked for what, one line for each request.
package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"flag"
	"fmt"
	"log"
	"math/big"
	"net"
	"net/http"
	"os/signal"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
)

// Where it listens. The TCP port is open only while it is well.
const (
	control  = "127.0.0.1:8000"
	httpPort = ":8080"
	tlsPort  = ":8443"
	tcpPort  = ":7070"
	grpcPort = ":9090"
)

// service is the one that gRPC probes may ask for by name.
const service = "berth"

type server struct {
	rpc *health.Server

	mu    sync.Mutex
	code  int
	door  net.Listener // nil while it is closed
	asked []string
}

func main() {
	log.SetFlags(0)
	code := flag.Int("code", http.StatusOK, "`status` to answer with at first")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	s := &server{rpc: health.NewServer()}
	if err := s.serve(ctx, *code); err != nil {
		log.Fatal(err)
	}
}

// serve returns when it has been told to end, or at the first server that ends by itself.
func (s *server) serve(ctx context.Context, code int) error {
	if err := s.set(code); err != nil {
		return err
	}
	cert, err := certificate()
	if err != nil {
		return err
	}
	rpc := grpc.NewServer()
	grpc_health_v1.RegisterHealthServer(rpc, s.rpc)
	told := http.NewServeMux()
	told.HandleFunc("/set", s.tell)
	told.HandleFunc("/asked", s.list)
	failed := make(chan error)
	for address, serve := range map[string]func(net.Listener) error{
		control:  func(l net.Listener) error { return http.Serve(l, told) },
		httpPort: func(l net.Listener) error { return http.Serve(l, s) },
		tlsPort: func(l net.Listener) error {
			return http.Serve(tls.NewListener(l, &tls.Config{Certificates: []tls.Certificate{cert}}), s)
		},
		grpcPort: rpc.Serve,
	} {
		l, err := net.Listen("tcp", address)
		if err != nil {
			return err
		}
		go func() { failed <- serve(l) }()
	}
	select {
	case <-ctx.Done():
		return nil // a test server owes nobody a grace period
	case err := <-failed:
		return err
	}
}

// set makes it well or ill. When it returns it is.
func (s *server) set(code int) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.code = code
	well := code >= 200 && code < 400
	status := grpc_health_v1.HealthCheckResponse_NOT_SERVING
	if well {
		status = grpc_health_v1.HealthCheckResponse_SERVING
	}
	s.rpc.SetServingStatus("", status)
	s.rpc.SetServingStatus(service, status)
	if !well && s.door != nil {
		s.door.Close()
		s.door = nil
	}
	if well && s.door == nil {
		door, err := net.Listen("tcp", tcpPort)
		if err != nil {
			return err
		}
		s.door = door
		go admit(door)
	}
	return nil
}

// admit lets everybody in, and out again.
func admit(door net.Listener) {
	for {
		c, err := door.Accept()
		if err != nil {
			return
		}
		c.Close()
	}
}

func (s *server) tell(w http.ResponseWriter, r *http.Request) {
	code, err := strconv.Atoi(r.FormValue("code"))
	if err == nil {
		err = s.set(code)
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
	}
}

func (s *server) list(w http.ResponseWriter, _ *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	fmt.Fprintln(w, strings.Join(s.asked, "\n"))
}

// ServeHTTP answers a probe, and remembers what it said.
func (s *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	scheme := "http"
	if r.TLS != nil {
		scheme = "https"
	}
	s.mu.Lock()
	code := s.code
	s.asked = append(s.asked, fmt.Sprintf("%s %s %s host=%s agent=%s x=%s",
		scheme, r.Method, r.URL.RequestURI(), r.Host, r.UserAgent(), strings.Join(r.Header["X-Probe"], ",")))
	s.mu.Unlock()
	w.WriteHeader(code)
	fmt.Fprintf(w, "the code is %d\n", code)
}

// certificate is one that nobody has signed, as a probe takes it.
func certificate() (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Unix(0, 0), NotAfter: time.Now().AddDate(1, 0, 0)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, err
}
