package launch_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/berth-node/berth/runtime/keeper"
)

// What package enter refuses libcontainer makes, in the same launcher, as if nothing else had been tried.
func TestLibcontainerMakesWhatEnterRefuses(t *testing.T) {
	n := newNode(t)
	limit := int64(50)
	source := t.TempDir()
	write(t, filepath.Join(source, "file"), "found")
	c := n.bundle([]string{"cat", "/volume/file"}, func(s *specs.Spec) {
		s.Mounts = append(s.Mounts, specs.Mount{Destination: "/volume", Type: "bind", Source: source, Options: []string{"rbind"}})
		s.Linux.Resources = &specs.LinuxResources{Pids: &specs.LinuxPids{Limit: &limit}}
	})
	if err := os.Symlink("/not/there", filepath.Join(c.bundle, "rootfs/volume")); err != nil { // a place that libcontainer makes up
		t.Fatal(err)
	}
	w, files := n.launch(), c.streams()
	own := lockedMemory(t, os.Getpid(), nil)
	result, pidfd := w.do(t, c.job(keeper.JobCreate), files...)
	closeEach(files)
	if result.Error != "" {
		t.Fatal(result.Error)
	}
	if !strings.Contains(result.Fallback, "mount") || strings.Contains(result.Fallback, n.places) {
		t.Errorf("the reason is %q", result.Fallback)
	}
	n.init = libcontainersInit
	c.take(result, pidfd)
	if !result.Stays {
		t.Error("the launcher does not stay")
	}
	if now := lockedMemory(t, c.pid, nil); now != own {
		t.Errorf("init may lock %v of memory, the launcher was started with %v", now, own)
	}
	if got := c.output(); got != "found\n" {
		t.Errorf("it says %q", got)
	}
	if result, _ := n.run(c.job(keeper.JobDestroy)); result.Error != "" {
		t.Error(result.Error)
	}

	n.init = ownInit // and the launcher is as good as before
	next := n.bundle([]string{"exit", "3"}, nil)
	files = next.streams()
	result, pidfd = w.do(t, next.job(keeper.JobCreate), files...)
	closeEach(files)
	if result.Error != "" {
		t.Fatal(result.Error)
	}
	next.take(result, pidfd)
	next.start()
	if code := next.wait(); code != 3 {
		t.Errorf("the next container ended with %d", code)
	}
	w.end(t)
	if result, _ := n.run(next.job(keeper.JobDestroy)); result.Error != "" {
		t.Error(result.Error)
	}
	c.wantNothingLeft()
	next.wantNothingLeft()
}

// A container whose limits are too small for libcontainer's init says so, and one whose command is missing says that, however
// far it came before.
func TestLimitsAreNoneOfAFailedAttempt(t *testing.T) {
	for name, change := range map[string]func(*specs.LinuxResources){
		"processes": func(r *specs.LinuxResources) { limit := int64(1); r.Pids = &specs.LinuxPids{Limit: &limit} },
		"memory":    func(r *specs.LinuxResources) { limit := int64(32 << 20); r.Memory = &specs.LinuxMemory{Limit: &limit} },
	} {
		t.Run(name, func(t *testing.T) {
			withBothInits(t, func(t *testing.T, n *node) {
				result := n.failedCreate(func(s *specs.Spec) {
					s.Process.Args = []string{"/no/such"}
					s.Linux.Resources = &specs.LinuxResources{}
					change(s.Linux.Resources)
				})
				if result.Failure != keeper.FailureCommand {
					t.Errorf("failure %q: %s", result.Failure, result.Error)
				}
			})
		})
	}
}

// Package enter's program needs a process for itself before init is alone.
func TestOneProcessIsEnough(t *testing.T) {
	n := newNode(t)
	for limit, program := range map[int64]string{1: libcontainersInit, 2: ownInit} {
		c := n.bundle([]string{"exit", "4"}, func(s *specs.Spec) {
			s.Linux.Resources = &specs.LinuxResources{Pids: &specs.LinuxPids{Limit: &limit}}
		}).create()
		if link, err := os.Readlink(filepath.Join("/proc", itoa(c.pid), "exe")); !strings.HasPrefix(link, "/memfd:"+program) {
			t.Errorf("of %d processes the init is %s, %v; want %s", limit, link, err, program)
		}
		if code := c.start().wait(); code != 4 {
			t.Errorf("it ended with %d", code)
		}
	}
}

// What libcontainer has on record of a container is the same, whoever has made its init.
func TestRecordIsLibcontainers(t *testing.T) {
	records := map[string]map[string]any{}
	withBothInits(t, func(t *testing.T, n *node) {
		n.learn(runtimeDefault)
		null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		c := n.bundle([]string{"pause"}, runtimeDefault)
		files := c.streams()
		closeEach(files)
		c.createWith([]*os.File{null, null, null})
		record := map[string]any{}
		path := filepath.Join(n.state, c.id, "state.json")
		data, err := os.ReadFile(path)
		if err == nil {
			err = json.Unmarshal(data, &record)
		}
		if err != nil {
			t.Fatal(err)
		}
		if got, want := record["init_process_pid"], float64(c.pid); got != want {
			t.Errorf("the pid on record is %v, want %v", got, want)
		}
		var st unix.Stat_t
		if err := unix.Stat(path, &st); err != nil || st.Mode != unix.S_IFREG|0o600 {
			t.Errorf("mode %o, %v", st.Mode, err)
		}
		text := string(mustJSON(t, record))
		for _, own := range [][2]string{{"/proc/" + itoa(c.pid) + "/", "/proc/PID/"}, {c.id, "ID"}, {c.bundle, "BUNDLE"}, {n.places, "PLACES"}, {n.state, "STATE"}, {n.cgroups, "CGROUPS"}} {
			text = strings.ReplaceAll(text, own[0], own[1])
		}
		if err := json.Unmarshal([]byte(text), &record); err != nil {
			t.Fatal(err)
		}
		for _, own := range []string{"init_process_pid", "init_process_start", "created"} {
			if record[own] == nil || record[own] == float64(0) || record[own] == "0001-01-01T00:00:00Z" {
				t.Errorf("%s is %v", own, record[own])
			}
			delete(record, own)
		}
		records[n.init] = record
	})
	if got, want := string(mustJSON(t, records[ownInit])), string(mustJSON(t, records[libcontainersInit])); got != want {
		t.Errorf("on record is\n%s\nby libcontainer\n%s", got, want)
	}
}
