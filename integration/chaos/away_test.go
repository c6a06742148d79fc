//go:build integration

package chaos

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-node/berth/integration/harness"
)

// An away is a container that ends while those who should see it are dead.
type away struct {
	rig  *rig
	app  *harness.Container
	pid  int
	fifo string
	code int32
	// adopted: the drive replaces the keeper that started it.
	adopted bool
}

// newAway starts one in the first witness's pod. It ends with its code as soon as somebody opens its FIFO.
func (r *rig) newAway(t *testing.T) *away {
	t.Helper()
	a := &away{rig: r, code: 1 + int32(time.Now().UnixNano()/1000%100)}
	a.run(t, fmt.Sprintf("read x </ctl/go; exit %d", a.code))
	return a
}

// newStarving starts one that ends for want of memory.
func (r *rig) newStarving(t *testing.T) *away {
	t.Helper()
	a := &away{rig: r, code: 137}
	a.run(t, "read x </ctl/go; exec tail /dev/zero", func(c *cri.ContainerConfig) {
		c.Linux.Resources = &cri.LinuxContainerResources{MemoryLimitInBytes: 16 << 20}
	})
	return a
}

// run starts the container; its script waits for somebody to open the FIFO /ctl/go.
func (a *away) run(t *testing.T, script string, change ...func(*cri.ContainerConfig)) {
	t.Helper()
	dir := t.TempDir()
	a.fifo = filepath.Join(dir, "go")
	if err := unix.Mkfifo(a.fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	name := fmt.Sprintf("away-%d", time.Now().UnixNano())
	change = append(change, func(c *cri.ContainerConfig) { c.Mounts = []*cri.Mount{{ContainerPath: "/ctl", HostPath: dir}} })
	a.app = a.rig.witnesses.pods[0].Sh(t, name, script, change...)
	a.pid = look(t, a.app).pid
}

// end lets it end, and waits until it has.
func (a *away) end(t *testing.T) {
	t.Helper()
	harness.Eventually(t, 20*time.Second, "the container to wait for its end", func() error {
		f, err := os.OpenFile(a.fifo, os.O_WRONLY|unix.O_NONBLOCK, 0)
		if err != nil {
			return err
		}
		return f.Close()
	})
	a.rig.awaitGone(t, a.pid)
}

// verify fails unless its exit is told as it was. Nobody may be able to when daemon and keeper were dead, or when the
// keeper died alone, before the daemon had what it holds for the next one. A keeper that is not the container's parent has to ask the kernel.
func (a *away) verify(t *testing.T, w who, alone bool) {
	t.Helper()
	s := a.app.WaitExit(t)
	right := s.ExitCode == a.code && s.Reason == "Error"
	unknown := s.ExitCode == 255 && s.Reason == "Unknown"
	mayBeUnknown := w == both || w == keeper && alone || !kernelTells() && (w == keeper || a.adopted)
	if !right && !(unknown && mayBeUnknown) {
		t.Errorf("a container that ended with %d while the %s was dead: %d %s", a.code, w, s.ExitCode, s.Reason)
	}
}

func (a *away) remove(t *testing.T) {
	t.Helper()
	if _, err := a.rig.node.Runtime.RemoveContainer(harness.Ctx(t), &cri.RemoveContainerRequest{ContainerId: a.app.ID}); err != nil {
		t.Errorf("RemoveContainer: %v", err)
	}
	if err := os.Remove(a.app.LogPath()); err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
}
