//go:build integration

package pods

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/client-go/transport/spdy"
	clientexec "k8s.io/client-go/util/exec"
	stats "k8s.io/kubelet/pkg/apis/stats/v1alpha1"
	"k8s.io/streaming/pkg/httpstream"

	"github.com/berth-node/berth/integration/harness"
	"github.com/berth-node/berth/integration/images"
)

// A caller is a client of the kubelet's port.
type caller struct {
	t      *testing.T
	base   string
	config *rest.Config
	http   *http.Client
}

// caller returns a client with these credentials, which knows the node by its authority.
func (n *node) caller(t *testing.T, port int, credentials rest.Config) *caller {
	t.Helper()
	credentials.TLSClientConfig.CAFile = n.pki("ca.crt")
	c := &caller{t: t, base: fmt.Sprintf("https://127.0.0.1:%d", port), config: &credentials}
	transport, err := rest.TransportFor(c.config)
	if err != nil {
		t.Fatal(err)
	}
	c.http = &http.Client{Transport: transport}
	t.Cleanup(c.http.CloseIdleConnections)
	return c
}

func (n *node) pki(file string) string { return filepath.Join(n.RootDir, "kubelet", "pki", file) }

func (n *node) token() string {
	data, err := os.ReadFile(n.pki("token"))
	if err != nil {
		n.t.Fatal(err)
	}
	return string(data)
}

func (c *caller) do(method, path string, header http.Header) *http.Response {
	c.t.Helper()
	r, err := http.NewRequestWithContext(harness.Ctx(c.t), method, c.base+path, nil)
	if err != nil {
		c.t.Fatal(err)
	}
	for k, v := range header {
		r.Header[k] = v
	}
	resp, err := c.http.Do(r)
	if err != nil {
		c.t.Fatalf("%s %s: %v", method, path, err)
	}
	return resp
}

// get reads an answer, which must be a good one.
func (c *caller) get(path string) string {
	c.t.Helper()
	resp := c.do(http.MethodGet, path, nil)
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		c.t.Fatalf("%s: %d %s, %v", path, resp.StatusCode, body, err)
	}
	return string(body)
}

func (c *caller) url(path string) *url.URL {
	u, err := url.Parse(c.base + path)
	if err != nil {
		c.t.Fatal(err)
	}
	return u
}

// stream opens an exec or an attach by one of the two protocols.
func (c *caller) stream(protocol, path string, o remotecommand.StreamOptions) error {
	c.t.Helper()
	var executor remotecommand.Executor
	var err error
	if protocol == "websocket" {
		executor, err = remotecommand.NewWebSocketExecutor(c.config, http.MethodGet, c.base+path)
	} else {
		executor, err = remotecommand.NewSPDYExecutor(c.config, http.MethodPost, c.url(path))
	}
	if err != nil {
		c.t.Fatal(err)
	}
	return executor.StreamWithContext(harness.Ctx(c.t), o)
}

func (c *caller) dialer(protocol, path string) (httpstream.Dialer, error) {
	if protocol == "websocket" {
		return portforward.NewSPDYOverWebsocketDialerForStreaming(c.url(path), c.config)
	}
	transport, upgrader, err := spdy.RoundTripperFor(c.config)
	if err != nil {
		return nil, err
	}
	return spdy.NewDialerForStreaming(upgrader, &http.Client{Transport: transport}, http.MethodPost, c.url(path)), nil
}

// forwarded asks the pod's port for a page, by way of one of the node's.
func (c *caller) forwarded(protocol, path string) string {
	c.t.Helper()
	dialer, err := c.dialer(protocol, path)
	if err != nil {
		c.t.Fatal(err)
	}
	end, ready := make(chan struct{}), make(chan struct{})
	f, err := portforward.NewOnAddressesForStreaming(dialer, []string{"127.0.0.1"}, []string{"0:8080"}, end, ready, io.Discard, os.Stderr)
	if err != nil {
		c.t.Fatal(err)
	}
	over := make(chan error, 1)
	go func() { over <- f.ForwardPorts() }()
	defer func() {
		close(end)
		if err := <-over; err != nil {
			c.t.Error(err)
		}
	}()
	select {
	case <-ready:
	case err := <-over:
		over <- nil
		c.t.Fatalf("port-forward by %s: %v", protocol, err)
	}
	ports, err := f.GetPorts()
	if err != nil {
		c.t.Fatal(err)
	}
	resp, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d/", ports[0].Local))
	if err != nil {
		c.t.Fatal(err)
	}
	defer resp.Body.Close()
	page, err := io.ReadAll(resp.Body)
	if err != nil {
		c.t.Fatal(err)
	}
	return string(page)
}

// portPod serves a page, writes down what it reads, and has volumes.
func portPod() string {
	return fmt.Sprintf(`apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: disk}
spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Gi}}}
---
apiVersion: v1
kind: Pod
metadata: {name: web}
spec:
  terminationGracePeriodSeconds: 2
  volumes: [{name: scratch, emptyDir: {}}, {name: data, persistentVolumeClaim: {claimName: disk}}]
  containers:
  - name: main
    image: %s
    stdin: true
    command: [sh, -c, "dd if=/dev/zero of=/scratch/f bs=1M count=3; dd if=/dev/zero of=/data/f bs=1M count=5; mkdir /www; echo page > /www/index.html;
      httpd -p 8080 -h /www; echo up; while read line; do echo got $line; done; sleep 1000"]
    readinessProbe: {exec: {command: [test, -e, /www/index.html]}, periodSeconds: 1}
    volumeMounts: [{name: scratch, mountPath: /scratch}, {name: data, mountPath: /data}]
`, images.Tools)
}

// TestPort uses the kubelet's port as an API server and scrapers do, by the token and by a client's certificate.
func TestPort(t *testing.T) {
	port := freePort(t)
	n := start(t, fmt.Sprintf("  address: 127.0.0.1:%d\n", port))
	n.write("web.yaml", portPod())
	uid := string(n.awaitReady("web").UID)
	for name, credentials := range map[string]rest.Config{
		"token":       {BearerToken: n.token()},
		"certificate": {TLSClientConfig: rest.TLSClientConfig{CertFile: n.pki("client.crt"), KeyFile: n.pki("client.key")}},
	} {
		t.Run(name, func(t *testing.T) {
			c := n.caller(t, port, credentials)
			portReads(t, c, uid)
			for _, protocol := range []string{"spdy", "websocket"} {
				t.Run(protocol, func(t *testing.T) { portSessions(t, n.caller(t, port, credentials), protocol, uid) })
			}
		})
	}
	t.Run("storage", func(t *testing.T) { portStorage(t, n.caller(t, port, rest.Config{BearerToken: n.token()})) })
	t.Run("follow a log to its end", func(t *testing.T) {
		resp := n.caller(t, port, rest.Config{BearerToken: n.token()}).do(http.MethodGet, "/containerLogs/default/web/main?follow=true", nil)
		defer resp.Body.Close()
		lines := bufio.NewScanner(resp.Body)
		next := func(want string) {
			t.Helper()
			for lines.Scan() {
				if lines.Text() == want {
					return
				}
			}
			t.Fatalf("the log ended before %q: %v", want, lines.Err())
		}
		next("up")
		n.sh("web", "main", "echo more > /proc/1/fd/1")
		next("more")
		n.remove("web.yaml")
		for lines.Scan() {
		}
		if lines.Err() != nil {
			t.Errorf("the end: %v", lines.Err())
		}
	})
}

// portReads reads all that the port shows.
func portReads(t *testing.T, c *caller, uid string) {
	for path, want := range map[string]string{
		"/healthz": "ok", "/healthz/ping": "ok", "/healthz/syncloop": "ok", "/configz": `"kind":"KubeletConfiguration"`,
		"/containerLogs/default/web/main": "up\n", "/containerLogs/default/web/main?tailLines=0": "",
		"/metrics":          "kubelet_running_pods 1\n",
		"/metrics/resource": `pod_memory_working_set_bytes{namespace="default",pod="web"} `,
		"/metrics/cadvisor": `container_network_receive_bytes_total{`,
		"/metrics/probes":   `prober_probe_total{container="main",namespace="default",pod="web",pod_uid="` + uid + `",probe_type="Readiness",result="successful"}`,
	} {
		if got := c.get(path); !strings.Contains(got, want) {
			t.Errorf("%s: no %q in %.3000s", path, want, got)
		}
	}
	for _, path := range []string{"/pods", "/runningpods/"} {
		var list v1.PodList
		if err := json.Unmarshal([]byte(c.get(path)), &list); err != nil || len(list.Items) != 1 {
			t.Fatalf("%s: %v, %+v", path, err, list)
		}
		if p := list.Items[0]; string(p.UID) != uid || p.Spec.Containers[0].Name != "main" || p.Spec.Containers[0].Image == "" || list.Kind != "PodList" {
			t.Errorf("%s: %+v", path, p)
		}
	}
	for path, want := range map[string]int{"/logs/": 404, "/debug/pprof/": 404, "/run/default/web/main": 404, "/containerLogs/default/none/main": 404} {
		resp := c.do(http.MethodGet, path, nil)
		resp.Body.Close()
		if resp.StatusCode != want {
			t.Errorf("%s: %d, want %d", path, resp.StatusCode, want)
		}
	}
}

// portSessions opens each sort of session.
func portSessions(t *testing.T, c *caller, protocol, uid string) {
	script := url.QueryEscape("read a; echo out $a; echo err >&2; exit 7")
	for _, pod := range []string{"web", "web/" + uid} {
		var out, errOut bytes.Buffer
		err := c.stream(protocol, "/exec/default/"+pod+"/main?input=1&output=1&error=1&command=sh&command=-c&command="+script,
			remotecommand.StreamOptions{Stdin: strings.NewReader("in\n"), Stdout: &out, Stderr: &errOut})
		var exit clientexec.ExitError
		if !errors.As(err, &exit) || exit.ExitStatus() != 7 || out.String() != "out in\n" || errOut.String() != "err\n" {
			t.Errorf("exec in %s: %v, %q, %q", pod, err, &out, &errOut)
		}
	}
	if page := c.forwarded(protocol, "/portForward/default/web?ports=8080"); page != "page\n" {
		t.Errorf("port-forward: %q", page)
	}
	ctx, cancel := context.WithCancel(harness.Ctx(t))
	defer cancel()
	stdin, say := io.Pipe()
	hear, stdout := io.Pipe()
	over := make(chan error, 1)
	go func() {
		<-ctx.Done()
		_ = say.Close()
	}()
	go func() {
		err := c.stream(protocol, "/attach/default/web/main?input=1&output=1", remotecommand.StreamOptions{Stdin: stdin, Stdout: stdout})
		over <- errors.Join(err, stdout.CloseWithError(io.ErrUnexpectedEOF))
	}()
	if _, err := io.WriteString(say, "by "+protocol+"\n"); err != nil {
		t.Fatal(err)
	}
	for in := bufio.NewReader(hear); ; {
		line, err := in.ReadString('\n')
		if line == "got by "+protocol+"\n" {
			break
		}
		if err != nil {
			t.Fatalf("attach: %v, %v", err, <-over)
		}
	}
}

// portStorage looks for what the pod's files take.
func portStorage(t *testing.T, c *caller) {
	var summary stats.Summary
	if err := json.Unmarshal([]byte(c.get("/stats/summary")), &summary); err != nil || len(summary.Pods) != 1 {
		t.Fatalf("%v: %+v", err, summary)
	}
	pod := summary.Pods[0]
	used := map[string]uint64{}
	for _, v := range pod.VolumeStats {
		used[v.Name] = *v.UsedBytes >> 20
		if *v.CapacityBytes == 0 || *v.Inodes < *v.InodesFree {
			t.Errorf("%s: %+v", v.Name, v)
		}
		if v.Name == "data" && (v.PVCRef == nil || v.PVCRef.Name != "disk" || v.PVCRef.Namespace != "default") {
			t.Errorf("%s is of %+v", v.Name, v.PVCRef)
		}
	}
	if used["scratch"] != 3 || used["data"] != 5 {
		t.Errorf("MiB that volumes take: %v", used)
	}
	main := pod.Containers[0]
	if main.Logs == nil || *main.Logs.UsedBytes == 0 || main.Rootfs == nil || main.Rootfs.CapacityBytes == nil {
		t.Errorf("of the container: logs %+v, root %+v", main.Logs, main.Rootfs)
	}
	if total := *pod.EphemeralStorage.UsedBytes >> 20; total != 3 {
		t.Errorf("%d MiB go with the pod", total)
	}
	if body, want := c.get("/metrics"), `kubelet_volume_stats_used_bytes{namespace="default",persistentvolumeclaim="disk"} 5.2`; !strings.Contains(body, want) {
		t.Errorf("no %q in /metrics", want)
	}
}

// A clientCertificate is one that a test makes. signer nil is one that signs itself.
func clientCertificate(t *testing.T, signer *tls.Certificate, change func(*x509.Certificate)) rest.TLSClientConfig {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(7), Subject: pkix.Name{CommonName: "berth:client", Organization: []string{"system:masters"}},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	change(template)
	parent, by := template, any(key)
	if signer != nil {
		parent, by = signer.Leaf, signer.PrivateKey
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), by)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return rest.TLSClientConfig{
		CertData: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		KeyData:  pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: keyDER}),
	}
}

// TestPortRefuses asks for every path without what is needed, also for sessions.
func TestPortRefuses(t *testing.T) {
	port := freePort(t)
	n := start(t, fmt.Sprintf("  address: 127.0.0.1:%d\n", port))
	n.write("web.yaml", podText("web", sleeper))
	n.awaitReady("web")
	authority, err := tls.LoadX509KeyPair(n.pki("ca.crt"), n.pki("ca.key"))
	if err != nil {
		t.Fatal(err)
	}
	same := func(*x509.Certificate) {}
	byUs := func(change func(*x509.Certificate)) rest.Config {
		return rest.Config{TLSClientConfig: clientCertificate(t, &authority, change)}
	}
	good := n.caller(t, port, byUs(same))
	if got := good.get("/healthz"); got != "ok" {
		t.Fatalf("a good certificate: %q", got)
	}
	paths := []string{
		"/", "/healthz", "/healthz/ping", "/healthz/syncloop", "/pods", "/pods/", "/runningpods/", "/configz", "/stats/summary", "/metrics", "/metrics/resource",
		"/metrics/cadvisor", "/metrics/probes", "/containerLogs/default/web/main", "/containerLogs/default/web/main?follow=true",
		"/exec/default/web/main?command=id&output=1", "/attach/default/web/main?output=1", "/portForward/default/web", "/logs/", "/run/default/web/main", "/debug/pprof/", "/none",
	}
	upgrades := []http.Header{
		nil,
		{"Connection": {"Upgrade"}, "Upgrade": {"SPDY/3.1"}, "X-Stream-Protocol-Version": {"v4.channel.k8s.io"}},
		{"Connection": {"Upgrade"}, "Upgrade": {"websocket"}, "Sec-Websocket-Version": {"13"}, "Sec-Websocket-Key": {"MDEyMzQ1Njc4OWFiY2RlZg=="}, "Sec-Websocket-Protocol": {"v5.channel.k8s.io"}},
	}
	for name, credentials := range map[string]rest.Config{
		"nothing":                      {},
		"another token":                {BearerToken: strings.Repeat("A", len(n.token()))},
		"the token cut short":          {BearerToken: n.token()[:26]},
		"the token as a password":      {Username: "berth", Password: n.token()},
		"a certificate signed by none": {TLSClientConfig: clientCertificate(t, nil, same)},
		"an expired certificate":       byUs(func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) }),
		"one that is not valid yet":    byUs(func(c *x509.Certificate) { c.NotBefore = time.Now().Add(30 * time.Minute) }),
		"a server's certificate":       byUs(func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} }),
	} {
		t.Run(name, func(t *testing.T) {
			c := n.caller(t, port, credentials)
			for i, path := range slices.Concat(paths, paths) {
				method := []string{http.MethodGet, http.MethodPost}[i/len(paths)]
				for _, header := range upgrades {
					resp := c.do(method, path, header)
					body, _ := io.ReadAll(resp.Body)
					resp.Body.Close()
					if resp.StatusCode != http.StatusUnauthorized || bytes.Contains(body, []byte("web")) {
						t.Errorf("%s %s, %v: %d %s", method, path, header["Upgrade"], resp.StatusCode, body)
					}
				}
			}
		})
	}
}
