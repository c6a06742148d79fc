package volume

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/berth-node/berth/internal/errdefs"
)

// nfsTimeout is how long a server may take to answer, nfsEnd how long it may take to hear of an end.
const (
	nfsTimeout = 30 * time.Second
	nfsEnd     = 5 * time.Second
)

// setUpNFS mounts an export of a server. It is left to the node's mount(8), as upstream does: which version and which
// options a server takes is found out by its helper, mount.nfs.
func (m *Manager) setUpNFS(ctx context.Context, pod *v1.Pod, name string, nfs *v1.NFSVolumeSource, options []string) (string, error) {
	dir := m.path(pod.UID, nfsKind, name)
	// What is mounted is not looked at any further: its server may not answer.
	there, err := mounted(dir)
	if there || err != nil {
		return dir, err
	}
	if err := makeDir(dir, nil); err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(ctx, nfsTimeout)
	defer cancel()
	out, err := withHelper(ctx, "mount", mountNFS(nfs, options, dir)...).CombinedOutput()
	switch {
	case ctx.Err() != nil:
		return "", fmt.Errorf("mount %s: no answer: %w", export(nfs), errors.Join(ctx.Err(), errdefs.ErrUnavailable))
	case err != nil:
		return "", fmt.Errorf("mount failed: %w: %s", err, strings.TrimSpace(string(out)))
	}
	return dir, nil
}

// mountNFS are the arguments of mount(8).
func mountNFS(nfs *v1.NFSVolumeSource, options []string, dir string) []string {
	args := []string{"-t", "nfs"}
	if nfs.ReadOnly {
		options = append([]string{"ro"}, options...)
	}
	if len(options) > 0 {
		args = append(args, "-o", strings.Join(options, ","))
	}
	return append(args, "--", export(nfs), dir)
}

// export is what a server exports, as mount(8) wants it.
func export(nfs *v1.NFSVolumeSource) string {
	server := nfs.Server
	if ip := net.ParseIP(server); ip != nil && ip.To4() == nil {
		server = "[" + server + "]"
	}
	return server + ":" + nfs.Path
}

// withHelper is a command that takes the helper it has started along when its time is up: one that goes on trying would mount
// a second time when the server comes back.
func withHelper(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = time.Second // what stands in the kernel is left behind
	return cmd
}

// unmountNFS detaches what a pod has mounted from servers. Who is the last to have an export tells its server, and waits for
// one that does not answer, so this is done by a process that can be killed: what it was to detach is detached by then. What
// it leaves for another reason goes with the pod's folder.
func (m *Manager) unmountNFS(uid types.UID) {
	mounts, _ := os.ReadDir(filepath.Dir(m.path(uid, nfsKind, "any")))
	for _, e := range mounts {
		path := m.path(uid, nfsKind, e.Name())
		if there, err := mounted(path); !there || err != nil {
			continue
		}
		ctx, cancel := context.WithTimeout(context.Background(), nfsEnd)
		_ = withHelper(ctx, "umount", "--lazy", "--internal-only", "--no-canonicalize", "--", path).Run()
		cancel()
	}
}
