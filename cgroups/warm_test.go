package cgroups

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestThreadsFile(t *testing.T) {
	const hybrid = "12:cpu,cpuacct:/a/b\n3:name=systemd:/s\n0::/u/v\n"
	for name, test := range map[string]struct {
		list   string
		mounts map[string]string
		want   string
	}{
		"v2":                      {"0::/system.slice/berth.service\n", map[string]string{"": "/c"}, "/c/system.slice/berth.service/cgroup.threads"},
		"hybrid":                  {hybrid, map[string]string{"": "/c/unified", "cpu": "/c/cpu"}, "/c/unified/u/v/cgroup.threads"},
		"v1":                      {hybrid, map[string]string{"cpu": "/c/cpu"}, "/c/cpu/a/b/tasks"},
		"nothing that is mounted": {hybrid, map[string]string{"pids": "/c/pids"}, ""},
	} {
		list := filepath.Join(t.TempDir(), "cgroup")
		if err := os.WriteFile(list, []byte(test.list), 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := (&Host{mounts: test.mounts}).threadsFile(list)
		if got != test.want || (err == nil) != (test.want != "") {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
}

// A thread of this process is written where it is, and once more for the calls that came meanwhile.
func TestWarm(t *testing.T) {
	host := &Host{mounts: map[string]string{}}
	probe, err := Probe(Cgroupfs, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Skip("no cgroups: ", err)
	}
	root := t.TempDir()
	for name := range probe.mounts {
		host.mounts[name] = root
	}
	path, err := host.threadsFile("/proc/self/cgroup")
	if err != nil {
		t.Skip(err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mkfifo(path, 0o600); err != nil { // who writes waits for us
		t.Fatal(err)
	}
	for range 5 {
		host.Warm()
	}
	fifo, err := os.OpenFile(path, os.O_RDWR, 0) // now nobody waits any more
	if err != nil {
		t.Fatal(err)
	}
	defer fifo.Close()
	for host.warming.Load() != 0 {
		time.Sleep(time.Millisecond)
	}
	buf := make([]byte, 64)
	n, err := fifo.Read(buf)
	if err != nil {
		t.Fatal(err)
	}
	got := string(buf[:n])
	tid, err := strconv.Atoi(got[:n/2])
	if err != nil || tid <= 0 || got != fmt.Sprint(tid)+fmt.Sprint(tid) {
		t.Errorf("written: %q, want the number of a thread, twice", got)
	}
}
