package server

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// A launcher is to have nothing of what is mounted for pods, neither from before the keeper's start nor from later: it would
// copy all of it for each container.
func TestLaunchersAreBornAwayFromTheHostsMounts(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"before", "after"} {
		path := filepath.Join(dir, name)
		if err := os.Mkdir(path, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	mount := func(name string) {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := unix.Mount("pod", path, "tmpfs", 0, ""); err != nil {
			t.Skip(err)
		}
		t.Cleanup(func() { _ = unix.Unmount(path, unix.MNT_DETACH) })
	}
	mount("before")
	n := newNode(t)
	mount("after")
	n.run("c", "exec sleep 1000") // a launcher was used, and another one started
	checked := map[string]bool{}
	eventually(t, "three launchers", func() bool {
		for _, pid := range children(t, n.c.Keeper().Pid) {
			proc := fmt.Sprintf("/proc/%d/", pid)
			args, _ := os.ReadFile(proc + "cmdline")
			table, err := os.ReadFile(proc + "mountinfo")
			if err != nil || !strings.HasPrefix(string(args), "berth-launch\x00") {
				continue
			}
			if strings.Contains(string(table), dir) {
				t.Errorf("a launcher sees pods' mounts:\n%s", table)
			}
			ns, err := os.Readlink(proc + "ns/mnt")
			if err == nil {
				checked[ns] = true
			}
		}
		return len(checked) >= 3 // each has a namespace of its own
	})
}
