package podspec

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	v1 "k8s.io/api/core/v1"
)

func TestHosts(t *testing.T) {
	const head = "# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n" +
		"fe00::0\tip6-localnet\nfe00::0\tip6-mcastprefix\nfe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n"
	for spec, want := range map[string]string{
		"{}":                                  head + "10.0.0.9\tweb\nfd00::9\tweb\n",
		"{hostname: shop1, subdomain: front}": head + "10.0.0.9\tshop1.front.shop.svc.cluster.local\tshop1\nfd00::9\tshop1.front.shop.svc.cluster.local\tshop1\n",
		"{hostAliases: [{ip: 192.0.2.1, hostnames: [a, b]}, {ip: '::5', hostnames: [c]}]}": head + "10.0.0.9\tweb\nfd00::9\tweb\n\n# Entries added by HostAliases.\n192.0.2.1\ta\tb\n::5\tc\n",
	} {
		got, err := testNode(t).hosts(podOf(t, spec), addrs("fd00::9", "10.0.0.9"))
		if err != nil || string(got) != want {
			t.Errorf("%s: %v\n%s\nwant\n%s", spec, err, got, want)
		}
	}
}

func TestHostsOfTheHost(t *testing.T) {
	node, err := os.ReadFile("/etc/hosts")
	if err != nil {
		t.Skip(err)
	}
	got, err := testNode(t).hosts(podOf(t, "{hostNetwork: true, hostAliases: [{ip: 192.0.2.1, hostnames: [a]}]}"), nil)
	want := "# Kubernetes-managed hosts file (host network).\n" + string(node) + "\n# Entries added by HostAliases.\n192.0.2.1\ta\n"
	if err != nil || string(got) != want {
		t.Errorf("%v\n%s\nwant\n%s", err, got, want)
	}
}

func TestMakeFiles(t *testing.T) {
	defer syscall.Umask(syscall.Umask(0o077))
	n := testNode(t)
	dir := filepath.Join(t.TempDir(), "pods", "uid")
	pod := podOf(t, "{}")
	c := &pod.Spec.Containers[0]
	first, err := n.MakeFiles(dir, pod, c, addrs("10.0.0.9"))
	if err != nil {
		t.Fatal(err)
	}
	wantMode(t, first.Hosts, 0o644)
	wantMode(t, first.TerminationLog, 0o666)
	if _, err := os.Stat(n.ContainerLogDir(pod, "main")); err != nil {
		t.Error(err)
	}
	if filepath.Dir(first.TerminationLog) != TerminationDir(dir, "main") {
		t.Errorf("termination log at %s", first.TerminationLog)
	}
	before := inode(t, first.Hosts)
	second, err := n.MakeFiles(dir, pod, c, addrs("10.0.0.10"))
	if err != nil {
		t.Fatal(err)
	}
	if second.TerminationLog == first.TerminationLog {
		t.Error("two containers have one file for their last words")
	}
	// What a running container has mounted is the file, not its name.
	if inode(t, second.Hosts) != before {
		t.Error("the hosts file was replaced")
	}
	if data, _ := os.ReadFile(second.Hosts); !strings.Contains(string(data), "10.0.0.10\tweb") {
		t.Errorf("hosts: %s", data)
	}
}

func TestMakeFilesOfNothing(t *testing.T) {
	n := testNode(t)
	pod := podOf(t, "{}")
	pod.Spec.Containers[0].TerminationMessagePath = ""
	got, err := n.MakeFiles(t.TempDir(), pod, &pod.Spec.Containers[0], nil)
	if err != nil || got != (Files{}) {
		t.Errorf("%v, %v", got, err)
	}
	host := podOf(t, "{hostNetwork: true}")
	got, err = n.MakeFiles(t.TempDir(), host, &v1.Container{Name: "x"}, nil)
	if err != nil || got.Hosts == "" {
		t.Errorf("host network: %v, %v", got, err)
	}
}

func wantMode(t *testing.T, path string, want os.FileMode) {
	t.Helper()
	st, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if st.Mode().Perm() != want {
		t.Errorf("%s has mode %v, want %v", path, st.Mode(), want)
	}
}

func inode(t *testing.T, path string) uint64 {
	t.Helper()
	st, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return st.Sys().(*syscall.Stat_t).Ino
}

// Restart counts and the numbers of logs never go back.
func TestNextRestartCount(t *testing.T) {
	for name, c := range map[string]struct {
		files []string
		want  int
	}{
		"no folder":       {want: 0},
		"an empty folder": {files: []string{"sub/"}, want: 0},
		"the last one":    {files: []string{"0.log", "1.log", "10.log"}, want: 11},
		"a rotated one":   {files: []string{"3.log.20260101-000000.gz", "2.log"}, want: 4},
		"what is none":    {files: []string{"x.log", "7.txt", "99999999999999999999.log", "5.logs", "9.log/"}, want: 0},
	} {
		dir := filepath.Join(t.TempDir(), "logs")
		for _, f := range c.files {
			path := filepath.Join(dir, f)
			if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
				t.Fatal(err)
			}
			if strings.HasSuffix(f, "/") {
				if err := os.MkdirAll(path, 0o700); err != nil {
					t.Fatal(err)
				}
			} else if err := os.WriteFile(path, nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if got := NextRestartCount(dir); got != c.want {
			t.Errorf("%s: %d, want %d", name, got, c.want)
		}
	}
}

// The hash is upstream's, so that pods that its kubelet made are recognised, and the other way round.
func TestHashContainer(t *testing.T) {
	for _, c := range []struct {
		container v1.Container
		want      uint64
	}{
		{v1.Container{Name: "test_container", Image: "foo/image:v1"}, 0x8e45cbd0},
		{v1.Container{Name: "test_container", Image: "foo/image:v1", Command: []string{"x"}}, 0x8e45cbd0},
	} {
		if got := HashContainer(&c.container); got != c.want {
			t.Errorf("%#x, want %#x", got, c.want)
		}
	}
}
