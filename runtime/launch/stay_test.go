package launch_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/berth-node/berth/runtime/keeper"
)

// TestLauncherStaysForMoreContainers has one launcher make several containers, each of which is at once the child of the
// launcher's parent, as of a keeper.
func TestLauncherStaysForMoreContainers(t *testing.T) { withBothInits(t, launcherStays) }

func launcherStays(t *testing.T, n *node) {
	w := n.launch()
	var all []*container
	made, mounts := 0, ""
	own := lockedMemory(t, os.Getpid(), nil)
	volume := specs.Mount{Destination: "/volume", Type: "bind", Source: t.TempDir(), Options: []string{"rbind"}}
	for stays := true; stays; made++ {
		c := n.bundle([]string{"pause"}, func(s *specs.Spec) { s.Mounts = append(s.Mounts, volume) })
		files := c.streams()
		result, pidfd := w.do(t, c.job(keeper.JobCreate), files...)
		closeEach(files)
		if result.Error != "" {
			t.Fatal(result.Error)
		}
		c.take(result, pidfd)
		stays = result.Stays
		if stays { // else it ends, and is reaped where it is waited for
			if children := liveChildren(t); !slices.Contains(children, result.Pid) {
				t.Errorf("the init %d is not our child; those are %v", result.Pid, children)
			}
			if cwd, err := os.Readlink(fmt.Sprintf("/proc/%d/cwd", w.cmd.Process.Pid)); err != nil || cwd != "/" {
				t.Errorf("the launcher that waits stands in %q, %v", cwd, err)
			}
			// Then it is changed as libcontainer changes it on cgroup v2, as if in the next job.
			changed := unix.Rlimit{Cur: own.Cur / 2, Max: own.Max}
			if was := lockedMemory(t, w.cmd.Process.Pid, &changed); was != own {
				t.Errorf("the launcher that waits may lock %v of memory, was started with %v", was, own)
			}
			now := mountsOf(t, w.cmd.Process.Pid)
			if strings.Contains(now, volume.Source) || mounts != "" && now != mounts {
				t.Errorf("the launcher that waits has mounts of the container that it made:\n%s", now)
			}
			mounts = now
		}
		all = append(all, c)
	}
	if made < 2 {
		t.Errorf("the launcher made %d containers, want several", made)
	}
	w.end(t)
	for _, c := range all {
		c.start()
	}
	for _, c := range all {
		c.kill()
		if result, _ := n.run(c.job(keeper.JobDestroy)); result.Error != "" {
			t.Error(result.Error)
		}
	}
	for _, c := range all {
		c.wantNothingLeft()
	}
}

// lockedMemory is a process' limit, which may be set.
func lockedMemory(t *testing.T, pid int, set *unix.Rlimit) (was unix.Rlimit) {
	t.Helper()
	if err := unix.Prlimit(pid, unix.RLIMIT_MEMLOCK, set, &was); err != nil {
		t.Fatal(err)
	}
	return was
}

// TestLauncherGoesAfterAFailure: what a creation that failed has left in the process touches no other container.
func TestLauncherGoesAfterAFailure(t *testing.T) {
	n := newNode(t)
	w := n.launch()
	c := n.bundle([]string{"pause"}, nil)
	files := c.streams()
	defer closeEach(files)
	if err := os.WriteFile(filepath.Join(c.bundle, "config.json"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	result, _ := w.do(t, c.job(keeper.JobCreate), files...)
	if result.Error == "" || result.Stays {
		t.Errorf("the answer is %+v, want an error, and no stay", result)
	}
	if err := w.cmd.Wait(); err != nil {
		t.Error(err)
	}
}

func mountsOf(t testing.TB, pid int) string {
	t.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", pid))
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}
