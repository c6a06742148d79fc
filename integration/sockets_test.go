//go:build integration

package integration

import (
	"bytes"
	"crypto/tls"
	"encoding/hex"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-node/berth/integration/harness"
)

// listening are the sockets that the processes of a node listen on: paths of Unix sockets ("@" for abstract ones) and
// addresses of TCP; and those that need no listening to be reached: abstract names of any kind, and UDP and raw ones.
func listening(t *testing.T, n *harness.Node) (unixSockets, tcp, others []string) {
	t.Helper()
	inodes := map[string]bool{}
	for _, pid := range processesOf(t, n) {
		fds, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
		for _, fd := range fds {
			if to, err := os.Readlink(fd); err == nil && strings.HasPrefix(to, "socket:[") {
				inodes[strings.Trim(to, "socket:[]")] = true
			}
		}
	}
	read := func(file string) [][]string {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var rows [][]string
		for line := range bytes.Lines(data) {
			rows = append(rows, strings.Fields(string(line)))
		}
		return rows[1:]
	}
	for _, f := range read("/proc/net/unix") {
		const acceptsConnections = "00010000"
		if len(f) >= 7 && inodes[f[6]] && f[3] == acceptsConnections {
			unixSockets = append(unixSockets, append(f, "(no name)")[7])
		} else if len(f) >= 8 && inodes[f[6]] && strings.HasPrefix(f[7], "@") {
			others = append(others, f[7])
		}
	}
	for _, kind := range []string{"udp", "udp6", "udplite", "udplite6", "raw", "raw6", "packet"} {
		if _, err := os.Stat("/proc/net/" + kind); err != nil {
			continue // the kernel has none
		}
		for _, f := range read("/proc/net/" + kind) {
			if slices.ContainsFunc(f, func(field string) bool { return inodes[field] }) && !isConnected(f) {
				others = append(others, kind+" "+strings.Join(f, " "))
			}
		}
	}
	for _, file := range []string{"/proc/net/tcp", "/proc/net/tcp6"} {
		for _, f := range read(file) {
			const listens = "0A"
			if len(f) >= 10 && inodes[f[9]] && f[3] == listens {
				tcp = append(tcp, hexAddress(t, f[1]))
			}
		}
	}
	return unixSockets, tcp, others
}

// isConnected says that a row of /proc/net/udp is of a client, as a resolver's.
func isConnected(row []string) bool { return len(row) > 2 && strings.Trim(row[2], "0:") != "" }

// hexAddress reads an address of /proc/net/tcp: words in the byte order of the machine, here little endian, and a port.
func hexAddress(t *testing.T, text string) string {
	t.Helper()
	host, port, _ := strings.Cut(text, ":")
	raw, err := hex.DecodeString(host)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(raw); i += 4 {
		slices.Reverse(raw[i : i+4])
	}
	ip, _ := netip.AddrFromSlice(raw)
	n, err := strconv.ParseUint(port, 16, 16)
	if err != nil {
		t.Fatal(err)
	}
	return netip.AddrPortFrom(ip, uint16(n)).String()
}

// processesOf are the processes of a node that are not a pod's: those that have its run dir in their command lines.
func processesOf(t *testing.T, n *harness.Node) []int {
	t.Helper()
	all := []int{n.Pid()}
	dirs, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, f := range dirs {
		data, _ := os.ReadFile(f)
		pid, _ := strconv.Atoi(strings.Split(f, "/")[2])
		if pid != n.Pid() && pid != os.Getpid() && bytes.Contains(data, []byte(n.RunDir)) {
			all = append(all, pid)
		}
	}
	if len(all) < 2 {
		t.Fatalf("no keeper among %v", all)
	}
	return all
}

// No socket of a node's can be used by another user, nor from a pod: not the Unix sockets, of which none is abstract (a pod
// in the host's network reaches these, CVE-2020-15257), nor the port for streams, which is on loopback and does nothing
// without a token.
func TestSocketsAreForRoot(t *testing.T) {
	n := ownNode(t)
	pod := n.RunPod(t, "sockets")
	app := pod.Idle(t, "app")
	app.Exec(t, "true") // a launcher at work
	unixSockets, tcp, others := listening(t, n)
	if len(unixSockets) < 4 || len(tcp) != 2 || len(others) > 0 { // the ports: of streams, and of the node's own API
		t.Fatalf("the node listens on %q and %q, and can be reached by %q", unixSockets, tcp, others)
	}
	for _, path := range unixSockets {
		if !strings.HasPrefix(path, n.RunDir+"/") && !strings.HasPrefix(path, "/run/nri/") {
			t.Errorf("a socket outside of the run dir: %s", path)
			continue
		}
		c, err := net.Dial("unix", path)
		if err != nil {
			t.Errorf("root cannot connect to %s: %v", path, err)
			continue
		}
		c.Close()
		if err := dialAs(65534, path); err == nil {
			t.Errorf("another user can connect to %s", path)
		}
		if st, err := os.Lstat(path); err != nil || st.Mode().Perm()&0o022 != 0 || st.Sys().(*syscall.Stat_t).Uid != 0 {
			t.Errorf("%s: %v, %v", path, st, err)
		}
	}
	withTLS := 0
	for _, listener := range tcp {
		address := netip.MustParseAddrPort(listener)
		if !address.Addr().IsLoopback() {
			t.Errorf("a port is at %s", address)
		}
		if refusedByTLS(t, listener) {
			withTLS++
		}
		for _, path := range []string{"/", "/exec/", "/exec/x", "/metrics", "/debug/pprof/"} {
			c, err := net.Dial("tcp", address.String())
			if err != nil {
				t.Fatal(err)
			}
			fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", path)
			answer := make([]byte, 15)
			_, _ = c.Read(answer)
			c.Close()
			if !slices.Contains([]string{"HTTP/1.1 404", "HTTP/1.1 301", "HTTP/1.0 400"}, string(answer[:12])) {
				t.Errorf("%s of %s without a token: %q", path, address, answer)
			}
		}
	}
	if withTLS != 1 {
		t.Errorf("%d ports speak TLS and refuse who has no token, want that of the API", withTLS)
	}
	// A pod has a network of its own, in which the port is not there.
	for _, address := range tcp {
		if got := app.Exec(t, "sh", "-c", fmt.Sprintf("nc -w 1 127.0.0.1 %d </dev/null && echo reached || echo no", netip.MustParseAddrPort(address).Port())); got != "no" {
			t.Errorf("from a pod: %s", got)
		}
	}
	// One in the host's network reaches the port, for what that is worth, and no file of the node's.
	host := n.RunPod(t, "hostnet", func(c *cri.PodSandboxConfig) {
		c.Linux.SecurityContext.NamespaceOptions.Network = cri.NamespaceMode_NODE
	})
	other := host.Idle(t, "app", func(c *cri.ContainerConfig) {
		c.Linux.SecurityContext.NamespaceOptions = host.Config.Linux.SecurityContext.NamespaceOptions
	})
	for _, address := range tcp {
		reach := fmt.Sprintf("for path in / /exec/x /attach/x /portforward/x; do wget -qO- http://%s$path && echo reached; done; true", address)
		if got := other.Exec(t, "sh", "-c", reach); strings.Contains(got, "reached") {
			t.Errorf("from a pod in the host's network, without a token: %s", got)
		}
	}
	if got := other.Exec(t, "sh", "-c", "grep -c @ /proc/net/unix; test -e "+n.Socket+" && echo reached || echo no"); !strings.HasSuffix(got, "no") {
		t.Errorf("from a pod in the host's network: %s", got)
	}
}

// refusedByTLS reports whether a port speaks TLS; it must then refuse who has no token.
func refusedByTLS(t *testing.T, address string) bool {
	t.Helper()
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, DisableKeepAlives: true}, Timeout: 10 * time.Second}
	resp, err := client.Get("https://" + address + "/api/v1/pods")
	if err != nil {
		return false
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusUnauthorized {
		t.Errorf("%s without a token: %s", address, resp.Status)
	}
	return true
}

// dialAs connects to a Unix socket as another user.
func dialAs(uid uint32, path string) error {
	self, err := os.Executable()
	if err != nil {
		return nil // taken for a connection
	}
	// The tests' own program, handed over open: the other user may not walk to it.
	program, err := os.Open(self)
	if err != nil {
		return nil
	}
	defer program.Close()
	cmd := exec.Command("/proc/self/fd/3")
	cmd.ExtraFiles = []*os.File{program}
	cmd.Env = []string{"BERTH_TEST_DIAL=" + path}
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
	return cmd.Run()
}

// The folders of a node are closed to other users as far as containers let them be (CVE-2021-41103, CVE-2024-25621).
func TestFoldersAreForRoot(t *testing.T) {
	n := ownNode(t)
	n.RunPod(t, "folders").Idle(t, "app")
	as := func(script string) string {
		cmd := exec.Command("sh", "-c", script)
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		out, _ := cmd.CombinedOutput()
		return strings.TrimSpace(string(out))
	}
	if err := os.Chmod(n.Dir, 0o755); err != nil { // the test's own folder, which os.MkdirTemp closes
		t.Fatal(err)
	}
	for _, dir := range []string{n.RootDir, n.RunDir} {
		found := as("find " + dir + " -mindepth 1 2>/dev/null | head -3")
		if found != "" {
			t.Errorf("another user finds in %s: %s", dir, found)
		}
		if found := as("touch " + dir + "/x 2>/dev/null && echo made"); found != "" {
			t.Errorf("another user can write to %s", dir)
		}
	}
	// What other users must never come to by a path that they know: a setuid program in a writable layer.
	for _, pattern := range []string{"containers/*/upper", "containers/*/record.json", "images/layers/layers/*/fs/bin", "sandboxes/*"} {
		paths, err := filepath.Glob(filepath.Join(n.RootDir, pattern))
		if err != nil || len(paths) == 0 {
			t.Fatalf("no %s: %v", pattern, err)
		}
		if found := as("ls -d " + paths[0] + "/. 2>/dev/null || cat " + paths[0] + " 2>/dev/null"); found != "" {
			t.Errorf("another user comes to %s", paths[0])
		}
	}
}
