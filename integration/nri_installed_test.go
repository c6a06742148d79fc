//go:build integration

package integration

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/nri/pkg/api"
	"github.com/containerd/nri/pkg/stub"

	"github.com/berth-node/berth/integration/harness"
)

// installedName is what this program is called where a node finds it among its plugins, and then it is one.
const installedName = "berth-test"

func init() {
	if os.Getenv(api.PluginNameEnvVar) != installedName {
		return
	}
	s, err := stub.New(&installed{}, stub.WithLogger(mute{}), stub.WithOnClose(func() { os.Exit(0) }))
	if err == nil {
		err = s.Run(context.Background())
	}
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

// installed is a plugin that the node starts. Its configuration is the file that it writes its diary to.
type installed struct{ diary string }

func (p *installed) Configure(_ context.Context, config, runtime, _ string) (api.EventMask, error) {
	p.diary = strings.TrimSpace(config)
	return 0, p.write("configured for %s", runtime)
}

func (p *installed) Synchronize(_ context.Context, pods []*api.PodSandbox, containers []*api.Container) ([]*api.ContainerUpdate, error) {
	return nil, p.write("pid %d sees %d pods and %d containers", os.Getpid(), len(pods), len(containers))
}

func (p *installed) CreateContainer(context.Context, *api.PodSandbox, *api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error) {
	a := &api.ContainerAdjustment{}
	a.AddEnv("INSTALLED", "yes")
	return a, nil, nil
}

func (p *installed) write(format string, args ...any) error {
	f, err := os.OpenFile(p.diary, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = fmt.Fprintf(f, format+"\n", args...)
	return err
}

// Plugins in the folder are started with the daemon and end with it, however it ends.
func TestNRIInstalledPlugin(t *testing.T) {
	dir := t.TempDir()
	plugins, configs, diary := filepath.Join(dir, "plugins"), filepath.Join(dir, "conf.d"), filepath.Join(dir, "diary")
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for _, err := range []error{
		os.Mkdir(plugins, 0o755), os.Mkdir(configs, 0o755),
		os.Symlink(self, filepath.Join(plugins, "10-"+installedName)),
		os.WriteFile(filepath.Join(configs, "10-"+installedName+".conf"), []byte(diary), 0o600),
		os.Symlink("/bin/false", filepath.Join(plugins, "20-broken")),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	n := ownNode(t, func(o *harness.Options) {
		o.Config = fmt.Sprintf("nri: {pluginPath: %s, pluginConfigPath: %s, %s}\n", plugins, configs, patientWithPlugins())
	})
	// lastPid waits for the plugin to have written so much, and returns its process.
	lastPid := func(starts int, want string) int {
		t.Helper()
		var pid int
		harness.Eventually(t, 30*time.Second, fmt.Sprintf("start %d of the plugin", starts), func() error {
			text, err := os.ReadFile(diary)
			if err != nil {
				return err
			}
			lines := strings.Split(strings.TrimSpace(string(text)), "\n")
			if len(lines) != 2*starts {
				return fmt.Errorf("its diary: %q", lines)
			}
			last := lines[len(lines)-1]
			if _, err := fmt.Sscanf(last, "pid %d", &pid); err != nil {
				return fmt.Errorf("%q: %w", last, err)
			}
			return wantIn(last, want)
		})
		return pid
	}
	first := lastPid(1, "sees 0 pods and 0 containers")
	app := n.RunPod(t, "served").Idle(t, "app")
	if got := app.Exec(t, "sh", "-c", "echo $INSTALLED"); got != "yes" {
		t.Errorf("the plugin's variable is %q", got)
	}
	wantGone := func(pid int, when string) {
		t.Helper()
		harness.Eventually(t, 10*time.Second, "end of the plugin "+when, func() error {
			if _, err := os.Stat("/proc/" + strconv.Itoa(pid)); err == nil {
				return fmt.Errorf("process %d is there", pid)
			}
			return nil
		})
		harness.Eventually(t, 10*time.Second, "end of all plugins "+when, func() error {
			if pids := zombiesOf(t, n.DaemonPid(t)); len(pids) > 0 {
				return fmt.Errorf("the daemon has not asked for the end of %v", pids)
			}
			return nil
		})
	}
	n.Restart(t)
	second := lastPid(2, "sees 1 pods and 1 containers")
	wantGone(first, "after a restart")
	if err := syscall.Kill(n.Pid(), syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	third := lastPid(3, "sees 1 pods and 1 containers")
	wantGone(second, "after a reload")
	n.Kill9(t)
	if err := n.Start(); err != nil {
		t.Fatal(err)
	}
	lastPid(4, "sees 1 pods and 1 containers")
	wantGone(third, "after a kill")
}

// zombiesOf are the children of a process that have ended and were not waited for.
func zombiesOf(t *testing.T, parent int) []int {
	t.Helper()
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		t.Fatal(err)
	}
	var pids []int
	for _, path := range stats {
		text, err := os.ReadFile(path)
		if err != nil {
			continue // gone
		}
		_, rest, _ := strings.Cut(string(text), ") ")
		if strings.HasPrefix(rest, fmt.Sprintf("Z %d ", parent)) {
			pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(path)))
			pids = append(pids, pid)
		}
	}
	return pids
}
