package podspec

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	v1 "k8s.io/api/core/v1"
)

// Files are those on the host that a container gets beside its volumes.
type Files struct {
	// Hosts is the pod's /etc/hosts; "" while a pod with its own network has no address yet.
	Hosts string
	// TerminationLog is where the container leaves its last words; "" if it has no path for it.
	TerminationLog string
}

// MakeFiles makes the folders and files that a container needs beside its volumes: the folder of its logs, the pod's
// hosts file and an own file for the termination message, both below podDir.
func (n *Node) MakeFiles(podDir string, pod *v1.Pod, c *v1.Container, sandbox []netip.Addr) (f Files, err error) {
	if err := os.MkdirAll(n.ContainerLogDir(pod, c.Name), 0o755); err != nil {
		return f, fmt.Errorf("create container log directory for container %s failed: %w", c.Name, err)
	}
	if len(sandbox) > 0 || pod.Spec.HostNetwork {
		if f.Hosts, err = n.writeHosts(podDir, pod, sandbox); err != nil {
			return f, err
		}
	}
	if c.TerminationMessagePath == "" {
		return f, nil
	}
	f.TerminationLog, err = newTerminationLog(TerminationDir(podDir, c.Name))
	return f, err
}

// HostsFile is the name of the pod's hosts file in its folder.
const HostsFile = "etc-hosts"

// TerminationDir has the files of the last words of a container and of those that it replaced.
func TerminationDir(podDir, container string) string {
	return filepath.Join(podDir, "containers", container)
}

// newTerminationLog makes an empty file that every user can write: a container's user is not known here.
func newTerminationLog(dir string) (string, error) {
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return "", err
	}
	var random [4]byte
	_, _ = rand.Read(random[:]) // it never fails
	path := filepath.Join(dir, hex.EncodeToString(random[:]))
	file, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o666)
	if err != nil {
		return "", err
	}
	return path, errors.Join(file.Chmod(0o666), file.Close()) // the umask would take some of it
}

// writeHosts brings the pod's hosts file up to date. Containers that run have it mounted, so it stays the same file.
func (n *Node) writeHosts(podDir string, pod *v1.Pod, sandbox []netip.Addr) (string, error) {
	content, err := n.hosts(pod, sandbox)
	if err != nil {
		return "", err
	}
	path := filepath.Join(podDir, HostsFile)
	if old, err := os.ReadFile(path); err == nil && bytes.Equal(old, content) {
		return path, nil
	}
	if err := os.MkdirAll(podDir, 0o750); err != nil {
		return "", err
	}
	if err := os.WriteFile(path, content, 0o644); err != nil {
		return "", err
	}
	return path, os.Chmod(path, 0o644)
}

const managedHosts = `# Kubernetes-managed hosts file.
127.0.0.1	localhost
::1	localhost ip6-localhost ip6-loopback
fe00::0	ip6-localnet
fe00::0	ip6-mcastprefix
fe00::1	ip6-allnodes
fe00::2	ip6-allrouters
`

// hosts is the content of the pod's /etc/hosts: the node's for a pod on its network.
func (n *Node) hosts(pod *v1.Pod, sandbox []netip.Addr) ([]byte, error) {
	var b bytes.Buffer
	if pod.Spec.HostNetwork {
		node, err := os.ReadFile(etcHosts)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		b.WriteString("# Kubernetes-managed hosts file (host network).\n")
		b.Write(node)
	} else {
		name, domain, err := n.Hostname(pod)
		if err != nil {
			return nil, err
		}
		names := name
		if domain != "" {
			names = name + "." + domain + "\t" + name
		}
		b.WriteString(managedHosts)
		for _, ip := range n.PodIPs(pod, sandbox) {
			fmt.Fprintf(&b, "%s\t%s\n", ip, names)
		}
	}
	if len(pod.Spec.HostAliases) > 0 {
		b.WriteString("\n# Entries added by HostAliases.\n")
	}
	for _, a := range pod.Spec.HostAliases {
		fmt.Fprintf(&b, "%s\t%s\n", a.IP, strings.Join(a.Hostnames, "\t"))
	}
	return b.Bytes(), nil
}
