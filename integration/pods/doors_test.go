//go:build integration

package pods

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/berth-node/berth/integration/harness"
)

// TestNobodyElseGetsIn tries all doors as another user and from a pod with the host's network: both are on the loopback.
func TestNobodyElseGetsIn(t *testing.T) {
	port := freePort(t)
	n := start(t, fmt.Sprintf("  address: 127.0.0.1:%d\n", port))
	n.write("inside.yaml", podText("inside", sleeper, "    volumeMounts: [{name: tools, mountPath: /tools, readOnly: true}]\n"+
		"  hostNetwork: true\n  volumes: [{name: tools, hostPath: {path: "+filepath.Dir(harness.Tool("kubectl"))+"}}]\n"))
	n.awaitReady("inside")
	config, err := os.ReadFile(filepath.Join(n.RunDir, "kubeconfig"))
	if err != nil {
		t.Fatal(err)
	}
	api := regexp.MustCompile(`https://[0-9.:]+`).FindString(string(config))
	token := regexp.MustCompile(`token: (\S+)`).FindStringSubmatch(string(config))[1]
	kubelet := fmt.Sprintf("https://127.0.0.1:%d", port)
	paths := []string{
		api + "/api/v1/pods", api + "/version", api + "/healthz", api + "/api/v1/namespaces/default/secrets",
		api + "/api/v1/namespaces/default/pods/inside/log", api + "/api/v1/namespaces/default/pods/inside/exec?command=id&stdout=1",
		kubelet + "/pods", kubelet + "/healthz", kubelet + "/metrics", kubelet + "/metrics/cadvisor", kubelet + "/stats/summary", kubelet + "/configz",
		kubelet + "/containerLogs/default/inside/main", kubelet + "/exec/default/inside/main?command=id&output=1", kubelet + "/logs/", kubelet + "/debug/pprof/",
	}
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, DisableKeepAlives: true}}
	ask := func(path, token string) (int, string) {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, path, nil)
		if err != nil {
			t.Fatal(err)
		}
		if token != "" {
			r.Header.Set("Authorization", "Bearer "+token)
		}
		resp, err := client.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		body, _ := io.ReadAll(resp.Body)
		return resp.StatusCode, string(body)
	}
	for _, path := range paths {
		for _, wrong := range []string{"", "guess", token + "x"} {
			if code, body := ask(path, wrong); code != http.StatusUnauthorized || strings.Contains(body, "inside") {
				t.Errorf("%s with token %q: %d %s", path, wrong, code, body)
			}
		}
	}
	for path, want := range map[string]string{
		api + "/api/v1/pods": `"name":"inside"`, kubelet + "/pods": `"name":"inside"`, kubelet + "/healthz": "ok",
		kubelet + "/stats/summary": `"podRef":{"name":"inside"`, kubelet + "/metrics/resource": `container_memory_working_set_bytes{container="main",namespace="default",pod="inside"}`,
		kubelet + "/metrics/cadvisor": `container_cpu_usage_seconds_total{`, kubelet + "/metrics": "go_goroutines", kubelet + "/configz": "kubeletconfig",
	} {
		if code, body := ask(path, token); code != 200 || !strings.Contains(body, want) {
			t.Errorf("%s with the token: %d, no %s in %.300s", path, code, want, body)
		}
	}
	// Without TLS there is no answer that says anything.
	for _, address := range []string{strings.TrimPrefix(api, "https://"), fmt.Sprintf("127.0.0.1:%d", port)} {
		if resp, err := http.Get("http://" + address + "/pods"); err == nil {
			body, _ := io.ReadAll(resp.Body)
			resp.Body.Close()
			if resp.StatusCode != http.StatusBadRequest || strings.Contains(string(body), "inside") {
				t.Errorf("without TLS: %d %s", resp.StatusCode, body)
			}
		}
	}
	// The ports that upstream's kubelet had without authentication are not there.
	for _, address := range []string{"127.0.0.1:10255", "127.0.0.1:10248"} {
		if conn, err := net.DialTimeout("tcp", address, time.Second); err == nil {
			conn.Close()
			t.Errorf("somebody listens on %s", address)
		}
	}
	t.Run("a pod on the host's network", func(t *testing.T) {
		for _, server := range []string{api, kubelet} {
			ask := []string{"/tools/kubectl", "get", "--raw", "/pods", "--insecure-skip-tls-verify", "--server", server, "--request-timeout=20s"}
			if server == api {
				ask[3] = "/api/v1/pods"
			}
			// Without any token kubectl would ask for a name and a password.
			out, errOut, code := n.berth().run(t, "", append(append([]string{"exec", "inside", "--"}, ask...), "--token", "guess")...)
			if code == 0 || out != "" || !strings.Contains(errOut, "Unauthorized") {
				t.Errorf("%s: %d %s%s", server, code, out, errOut)
			}
			// The same with what it needs comes in, so that nothing else kept it out.
			if out := n.berth().ok(t, append(append([]string{"exec", "inside", "--"}, ask...), "--token", token)...); !strings.Contains(out, "PodList") {
				t.Errorf("%s with the token: %s", server, out)
			}
		}
	})
	t.Run("another user", func(t *testing.T) {
		for _, path := range []string{filepath.Join(n.RunDir, "api.sock"), filepath.Join(n.RunDir, "kubeconfig"), n.pki(""), n.pki("token"), n.pki("client.key"), n.pki("ca.key")} {
			info, err := os.Stat(path)
			if err != nil || info.Mode().Perm()&0o077 != 0 {
				t.Errorf("%s: %v, %v", path, info.Mode(), err)
			}
		}
		ctx, cancel := context.WithTimeout(t.Context(), harness.Patience(20*time.Second))
		defer cancel()
		for _, command := range [][]string{{"get", "pods"}, {"check"}} {
			cmd := exec.CommandContext(ctx, n.berth().path, append(command, "--run-dir", n.RunDir)...)
			cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
			cmd.Dir = "/"
			if out, err := cmd.CombinedOutput(); err == nil || !strings.Contains(string(out), ".sock is root's alone: connect: permission denied") {
				t.Errorf("%s: %v: %s", command, err, out)
			}
		}
		for _, server := range []string{api, kubelet} {
			cmd := exec.CommandContext(ctx, harness.Tool("kubectl"), "get", "--raw", "/healthz", "--insecure-skip-tls-verify", "--server", server, "--token", "guess")
			cmd.Env = []string{"HOME=/nonexistent"}
			cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
			cmd.Dir = "/"
			if out, err := cmd.CombinedOutput(); err == nil || !strings.Contains(string(out), "Unauthorized") {
				t.Errorf("%s: %v: %s", server, err, out)
			}
		}
	})
}

func freePort(t *testing.T) int {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

func tokenOf(t *testing.T, n *node) string {
	config, err := os.ReadFile(filepath.Join(n.RunDir, "kubeconfig"))
	if err != nil {
		t.Fatal(err)
	}
	return string(config)
}
