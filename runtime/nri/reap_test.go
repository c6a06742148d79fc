package nri

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-node/berth/internal/procfs"
)

// Of the children those are waited for that are plugins, and no other: those that have ended and those that will.
func TestReap(t *testing.T) {
	plugins, others := t.TempDir(), t.TempDir()
	start := func(dir, name string) *exec.Cmd {
		t.Helper()
		path := filepath.Join(dir, name)
		must(t, os.Symlink("/bin/sleep", path))
		cmd := exec.Command(path, "1000")
		must(t, cmd.Start())
		return cmd
	}
	// It has ended, and stays a zombie.
	end := func(cmd *exec.Cmd) {
		t.Helper()
		must(t, cmd.Process.Kill())
		must(t, unix.Waitid(unix.P_PID, cmd.Process.Pid, nil, unix.WEXITED|unix.WNOWAIT, nil))
	}
	ended, lives, other := start(plugins, "10-a-rather-long-name"), start(plugins, "20-lives"), start(others, "10-other")
	for _, cmd := range []*exec.Cmd{ended, lives, other} {
		for nameOf(cmd.Process.Pid) != comm(filepath.Base(cmd.Path)) {
			time.Sleep(time.Millisecond) // it is about to execute
		}
	}
	end(ended)
	end(other)
	must(t, reap(plugins))
	wantGone(t, ended.Process.Pid)
	if st, err := procfs.ReadStat(lives.Process.Pid); err != nil || st.State == 'Z' {
		t.Errorf("a plugin that lives: %+v, %v", st, err)
	}
	must(t, lives.Process.Kill())
	wantGone(t, lives.Process.Pid)
	if st, err := procfs.ReadStat(other.Process.Pid); err != nil || st.State != 'Z' {
		t.Errorf("somebody else's child was waited for: %+v, %v", st, err)
	}
	_, err := unix.Wait4(other.Process.Pid, nil, 0, nil)
	must(t, err)
	must(t, reap(filepath.Join(plugins, "no-such")))
}

// wantGone waits until a process is not even a zombie.
func wantGone(t *testing.T, pid int) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
		if _, err := procfs.ReadStat(pid); err != nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("process %d was not waited for", pid)
		}
	}
}
