package volume

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os/exec"
	"strings"
	"time"

	v1 "k8s.io/api/core/v1"

	"github.com/berth-node/berth/internal/errdefs"
)

// nfsTimeout is how long a server may take to answer.
const nfsTimeout = 30 * time.Second

// setUpNFS mounts an export of a server. It is left to the node's mount(8), as upstream does: which version and which
// options a server takes is found out by its helper, mount.nfs.
func (m *Manager) setUpNFS(ctx context.Context, pod *v1.Pod, v *v1.Volume) (string, error) {
	dir := m.path(pod.UID, nfsKind, v.Name)
	if err := makeDir(dir, nil); err != nil {
		return "", err
	}
	there, err := mounted(dir)
	if there || err != nil {
		return dir, err
	}
	server := v.NFS.Server
	if ip := net.ParseIP(server); ip != nil && ip.To4() == nil {
		server = "[" + server + "]"
	}
	args := []string{"-t", "nfs"}
	if v.NFS.ReadOnly {
		args = append(args, "-o", "ro")
	}
	ctx, cancel := context.WithTimeout(ctx, nfsTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, "mount", append(args, "--", server+":"+v.NFS.Path, dir)...)
	cmd.WaitDelay = time.Second // a helper that stands in the kernel is left behind
	out, err := cmd.CombinedOutput()
	switch {
	case ctx.Err() != nil:
		return "", fmt.Errorf("mount %s:%s: no answer: %w", server, v.NFS.Path, errors.Join(ctx.Err(), errdefs.ErrUnavailable))
	case err != nil:
		return "", fmt.Errorf("mount failed: %w: %s", err, strings.TrimSpace(string(out)))
	}
	return dir, nil
}
