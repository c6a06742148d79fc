package probe

import (
	"context"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/kubernetes/pkg/probe"
)

func portOf(t *testing.T, address string) int {
	t.Helper()
	_, text, err := net.SplitHostPort(address)
	if err != nil {
		t.Fatal(err)
	}
	port, err := strconv.Atoi(text)
	if err != nil {
		t.Fatal(err)
	}
	return port
}

func handler(w http.ResponseWriter, r *http.Request) {
	switch r.URL.Path {
	case "/agent":
		if r.Header.Get("User-Agent") != "kube-probe/1.36" || r.Header.Get("Accept") != "*/*" || r.Header.Get("Accept-Encoding") != "" {
			w.WriteHeader(http.StatusTeapot)
		}
	case "/own":
		if r.Header.Get("User-Agent") != "mine" || r.Host != "example.org" || r.URL.RawQuery != "a=b" {
			w.WriteHeader(http.StatusTeapot)
		}
	case "/here":
		http.Redirect(w, r, "/broken", http.StatusFound)
	case "/there":
		http.Redirect(w, r, "http://elsewhere.invalid/", http.StatusFound)
	default:
		w.WriteHeader(http.StatusInternalServerError)
		_, _ = w.Write([]byte("secret"))
	}
}

func TestHTTP(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(handler))
	defer server.Close()
	secure := httptest.NewTLSServer(http.HandlerFunc(handler))
	defer secure.Close()
	where, _ := url.Parse(server.URL)
	run := newRunner(nil)
	target := Target{PodIP: "127.0.0.1", Container: &v1.Container{Ports: []v1.ContainerPort{{Name: "web", ContainerPort: int32(portOf(t, where.Host))}}}}
	for _, c := range []struct {
		what string
		get  v1.HTTPGetAction
		want probe.Result
		say  string
	}{
		{"headers", v1.HTTPGetAction{Path: "/agent", Port: intstr.FromString("web")}, probe.Success, ""},
		{"own headers", v1.HTTPGetAction{Path: "/own?a=b", Port: intstr.FromString("web"), HTTPHeaders: []v1.HTTPHeader{{Name: "Host", Value: "example.org"}, {Name: "user-agent", Value: "mine"}}}, probe.Success, ""},
		{"https without verification", v1.HTTPGetAction{Path: "/agent", Scheme: v1.URISchemeHTTPS, Port: intstr.FromInt(portOf(t, secure.Listener.Addr().String()))}, probe.Success, ""},
		{"redirect here", v1.HTTPGetAction{Path: "/here", Port: intstr.FromString("web")}, probe.Failure, "HTTP probe failed with statuscode: 500"},
		{"redirect elsewhere", v1.HTTPGetAction{Path: "/there", Port: intstr.FromString("web")}, probe.Warning, "Probe terminated redirects"},
		{"failure without its body", v1.HTTPGetAction{Path: "/x", Port: intstr.FromString("web")}, probe.Failure, "HTTP probe failed with statuscode: 500"},
		{"nobody there", v1.HTTPGetAction{Path: "/", Port: intstr.FromInt(1)}, probe.Failure, "connection refused"},
	} {
		result, output, err := run.probe(context.Background(), &v1.Probe{ProbeHandler: v1.ProbeHandler{HTTPGet: &c.get}, TimeoutSeconds: 10}, target)
		if err != nil || result != c.want || !strings.Contains(output, c.say) || strings.Contains(output, "secret") {
			t.Errorf("%s: %s %q (%v), want %s %q", c.what, result, output, err, c.want, c.say)
		}
	}
	if result, _, err := run.probe(context.Background(), &v1.Probe{ProbeHandler: v1.ProbeHandler{HTTPGet: &v1.HTTPGetAction{Port: intstr.FromString("none")}}}, target); err == nil || result != probe.Unknown {
		t.Errorf("a port that has no such name: %s (%v)", result, err)
	}
}

// Each probe has a connection of its own, which it leaves closed: the container that comes after this one gets none of its.
func TestConnectionsAreNotKept(t *testing.T) {
	var mu sync.Mutex
	var opened, open int
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write(make([]byte, 1<<20)) // more than anybody reads
	}))
	server.Config.ConnState = func(_ net.Conn, s http.ConnState) {
		mu.Lock()
		defer mu.Unlock()
		switch s {
		case http.StateNew:
			opened, open = opened+1, open+1
		case http.StateClosed, http.StateHijacked:
			open--
		}
	}
	server.Start()
	where, _ := url.Parse(server.URL)
	run := newRunner(nil)
	get := &v1.Probe{ProbeHandler: v1.ProbeHandler{HTTPGet: &v1.HTTPGetAction{Port: intstr.FromInt(portOf(t, where.Host))}}, TimeoutSeconds: 10}
	for range 3 {
		if result, output, err := run.probe(context.Background(), get, Target{PodIP: "127.0.0.1", Container: &v1.Container{}}); result != probe.Success || len(output) > 10<<10 {
			t.Errorf("%s, %d bytes, %v", result, len(output), err)
		}
	}
	server.Close() // waits for connections that are not idle
	mu.Lock()
	defer mu.Unlock()
	if opened != 3 || open != 0 {
		t.Errorf("%d connections for 3 probes, of which %d are open", opened, open)
	}
}

func TestTCP(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := portOf(t, listener.Addr().String())
	p := &v1.Probe{ProbeHandler: v1.ProbeHandler{TCPSocket: &v1.TCPSocketAction{Port: intstr.FromInt(port)}}, TimeoutSeconds: 10}
	target := Target{PodIP: "127.0.0.1", Container: &v1.Container{}}
	run := newRunner(nil)
	if result, output, err := run.probe(context.Background(), p, target); err != nil || result != probe.Success {
		t.Errorf("%s %q (%v)", result, output, err)
	}
	listener.Close()
	if result, output, err := run.probe(context.Background(), p, target); err != nil || result != probe.Failure || !strings.Contains(output, "connection refused") {
		t.Errorf("nobody there: %s %q (%v)", result, output, err)
	}
}

func TestGRPC(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server, says := grpc.NewServer(), health.NewServer()
	healthpb.RegisterHealthServer(server, says)
	says.SetServingStatus("sick", healthpb.HealthCheckResponse_NOT_SERVING)
	go func() { _ = server.Serve(listener) }()
	defer server.Stop()
	run := newRunner(nil)
	for service, want := range map[string]probe.Result{"": probe.Success, "sick": probe.Failure, "unknown": probe.Failure} {
		p := &v1.Probe{ProbeHandler: v1.ProbeHandler{GRPC: &v1.GRPCAction{Port: int32(portOf(t, listener.Addr().String())), Service: &service}}, TimeoutSeconds: 10}
		if result, output, err := run.probe(context.Background(), p, Target{PodIP: "127.0.0.1", Container: &v1.Container{}}); err != nil || result != want {
			t.Errorf("%q: %s %q (%v), want %s", service, result, output, err, want)
		}
	}
}
