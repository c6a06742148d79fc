package nri

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// Of the children that have ended those are waited for that are plugins, and no other.
func TestReap(t *testing.T) {
	plugins, others := t.TempDir(), t.TempDir()
	start := func(dir, name string) int {
		t.Helper()
		path := filepath.Join(dir, name)
		must(t, os.Symlink("/bin/false", path))
		cmd := exec.Command(path)
		must(t, cmd.Start())
		// It has ended, and stays a zombie.
		must(t, unix.Waitid(unix.P_PID, cmd.Process.Pid, nil, unix.WEXITED|unix.WNOWAIT, nil))
		return cmd.Process.Pid
	}
	plugin, other := start(plugins, "10-a-rather-long-name"), start(others, "10-other")
	if name, zombie := look(plugin); name != "10-a-rather-lon" || !zombie {
		t.Fatalf("it is %q, ended %v", name, zombie)
	}
	reap(plugins)
	if name, zombie := look(plugin); zombie {
		t.Errorf("%s was not waited for", name)
	}
	if _, zombie := look(other); !zombie {
		t.Error("somebody else's child was waited for")
	}
	_, err := unix.Wait4(other, nil, 0, nil)
	must(t, err)
	reap(filepath.Join(plugins, "no-such"))
}
