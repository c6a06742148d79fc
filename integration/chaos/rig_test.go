//go:build integration

package chaos

import (
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-node/berth/integration/harness"
	"github.com/berth-node/berth/integration/images"
	"github.com/berth-node/berth/integration/leaks"
)

// who is killed.
type who string

const (
	daemon who = "daemon"
	keeper who = "keeper"
	both   who = "both"
)

var everybody = []who{daemon, keeper, both}

// A rig is a node with points, on which witnesses run that no kill may touch.
type rig struct {
	*breaker
	node      *harness.Node
	witnesses *witnesses
	baseline  leaks.Snapshot
	network   *harness.CNI // nil with the built-in one
	tables    []string     // of nftables, that the node has made
}

// newRig starts a node with witnesses, on the built-in network or on that of the reference plugins, with more flags of serve.
func newRig(t *testing.T, cni bool, flags ...string) *rig {
	t.Helper()
	r := &rig{breaker: newBreaker(t)}
	options := harness.Options{
		HostsDir: hostsDir, Env: r.environment(),
		Programs: filepath.Join(harness.Root(), "bin", "failpoints"), Flags: flags,
	}
	if cni {
		network, err := harness.NewCNI(t.TempDir(), "berthchaos0")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := network.Close(); err != nil {
				t.Error(err)
			}
		})
		options.CNI, r.network = network, network
	}
	others := listTables(t)
	r.node = harness.StartNode(t, options)
	r.witnesses = newWitnesses(t, r)
	r.warmUp(t)
	r.tables = slices.DeleteFunc(listTables(t), func(table string) bool { return slices.Contains(others, table) })
	r.baseline = r.inventory(t)
	return r
}

// listTables returns the tables of nftables, of every node here, as nft writes them: "inet berth".
func listTables(t *testing.T) []string {
	t.Helper()
	out, err := exec.Command("nft", "list", "tables").Output()
	if err != nil {
		t.Fatal(err)
	}
	var tables []string
	for line := range strings.Lines(string(out)) {
		tables = append(tables, strings.TrimSpace(strings.TrimPrefix(line, "table ")))
	}
	return tables
}

// warmUp leaves what the first use of a node leaves for good.
func (r *rig) warmUp(t *testing.T) {
	t.Helper()
	for _, image := range []string{images.Tools, images.Volume} {
		r.node.NeedImage(t, image)
	}
	pod := r.node.RunPod(t, "warm", withPort(warmPort))
	pod.Idle(t, "app").Exec(t, "true")
	pod.Remove(t)
}

// kill kills without warning and, where that was the daemon, waits for its end.
func (r *rig) kill(t *testing.T, w who) {
	t.Helper()
	if w != keeper {
		if err := syscall.Kill(r.node.Pid(), syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
	}
	if w != daemon {
		if pid := r.keeperPid(t); pid != 0 {
			if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
			r.awaitGone(t, pid)
		}
	}
	if w != keeper {
		r.node.Kill9(t)
	}
}

// awaitGone waits until the process has ended; a zombie has.
func (r *rig) awaitGone(t testing.TB, pid int) {
	t.Helper()
	harness.Eventually(t, 20*time.Second, fmt.Sprintf("end of process %d", pid), func() error {
		if _, alive := harness.StartTime(pid); alive {
			return fmt.Errorf("it lives")
		}
		return nil
	})
}

// keeperPid returns the pid of the node's living keeper, 0 if there is none.
func (r *rig) keeperPid(t testing.TB) int {
	t.Helper()
	pid, err := r.findKeeper()
	if err != nil {
		t.Fatal(err)
	}
	return pid
}

func (r *rig) findKeeper() (int, error) {
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return 0, err
	}
	for _, dir := range dirs {
		command, err := os.ReadFile(filepath.Join(dir, "cmdline"))
		if err != nil {
			continue // gone
		}
		args := strings.Split(string(command), "\x00")
		if filepath.Base(args[0]) != "berth-keeper" || !slices.Contains(args, r.node.RunDir) {
			continue
		}
		return strconv.Atoi(filepath.Base(dir))
	}
	return 0, nil
}

// recover brings the node back after a kill: by a start of the daemon, or by waiting for what a living one does itself.
func (r *rig) recover(t *testing.T, before int) {
	t.Helper()
	if !r.node.Running() {
		if err := r.node.Start(); err != nil {
			t.Fatal(err)
		}
		return
	}
	harness.Eventually(t, 60*time.Second, "a new keeper", func() error {
		if pid := r.keeperPid(t); pid == 0 || pid == before {
			return fmt.Errorf("there is the process %d", pid)
		}
		return nil
	})
	if err := r.node.AwaitReady(); err != nil {
		t.Fatal(err)
	}
}

// forGood is what a daemon that ends in order leaves in the root dir: the events that it has kept.
const forGood = "kubelet/events.json"

// inventory is everything on the machine and in the node's folders that a pod, container or image can leave behind.
func (r *rig) inventory(t testing.TB) leaks.Snapshot {
	t.Helper()
	all, err := leaks.Take()
	if err != nil {
		t.Fatal(err)
	}
	for thing := range all {
		// The programs come and go, launchers for every job, and so does what the counter waits by.
		if strings.HasPrefix(thing, "process ") && (strings.Contains(thing, "berth-") || strings.Contains(thing, "/berth serve") || strings.HasSuffix(thing, counterPause)) {
			delete(all, thing)
		}
	}
	for _, dir := range []string{r.node.RunDir, r.node.RootDir} {
		err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			switch {
			case os.IsNotExist(err):
				return nil
			case err != nil:
				return err
			}
			if strings.TrimPrefix(path, dir+"/") == forGood {
				return nil
			}
			all["file "+path] = true
			// Not into root filesystems, mounted images, layers and what containers wrote; nor the keeper's own log.
			if d.IsDir() && path != dir && (isMount(path) || slices.Contains([]string{"fs", "upper", "work"}, d.Name())) {
				return fs.SkipDir
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return all
}

func isMount(path string) bool {
	var st unix.Statx_t
	err := unix.Statx(unix.AT_FDCWD, path, unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT, 0, &st)
	return err == nil && st.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0
}

// wantClean fails if anything is there that was not there with the witnesses alone.
func (r *rig) wantClean(t testing.TB) {
	t.Helper()
	harness.Eventually(t, 15*time.Second, "nothing to be left over", func() error {
		if left := r.inventory(t).Since(r.baseline); len(left) > 0 {
			return fmt.Errorf("left:\n  %s", strings.Join(left, "\n  "))
		}
		return nil
	})
}
