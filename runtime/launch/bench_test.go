package launch_test

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/contrib/seccomp"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/berth-node/berth/runtime/keeper"
)

// BenchmarkCreate measures a create as the keeper sees it: from the job to the answer, with a launcher that waits.
func BenchmarkCreate(b *testing.B) {
	for name, adjust := range map[string]func(*specs.Spec){
		"seccomp=none": nil,
		"seccomp=default": func(s *specs.Spec) {
			s.Process.Capabilities = &specs.LinuxCapabilities{} // the profile depends on them
			s.Linux.Seccomp = seccomp.DefaultProfile(s)
		},
	} {
		for _, program := range []string{ownInit, libcontainersInit} {
			b.Run(name+"/"+program, func(b *testing.B) {
				n := newNode(b)
				n.init = program
				n.learn(adjust)
				var took []time.Duration
				for b.Loop() {
					b.StopTimer()
					took = append(took, n.makeOne(b, adjust))
					b.StartTimer()
				}
				slices.Sort(took)
				b.ReportMetric(float64(took[len(took)/2].Microseconds())/1000, "ms/median")
			})
		}
	}
}

// makeOne makes a container and destroys it, and returns what time the creation took.
func (n *node) makeOne(b *testing.B, adjust func(*specs.Spec)) time.Duration {
	b.Helper()
	c := n.bundle([]string{"pause"}, adjust)
	w, files := n.launch(), c.streams()
	time.Sleep(20 * time.Millisecond) // the launcher gets ready, as it does in life
	b.StartTimer()
	begin := time.Now()
	result, pidfd := w.do(b, c.job(keeper.JobCreate), files...)
	took := time.Since(begin)
	b.StopTimer()
	w.end(b)
	closeEach(files)
	if result.Error != "" {
		b.Fatal(result.Error)
	}
	c.take(result, pidfd)
	c.kill()
	if result, _ := n.run(c.job(keeper.JobDestroy)); result.Error != "" {
		b.Fatal(result.Error)
	}
	return took
}

// BenchmarkCPU measures the CPU time of creations by a launcher that stays: its own, with its start and end, and that of all
// processes up to the workload. Which launcher, BERTH_LAUNCH says: those of two builds are compared by turns.
func BenchmarkCPU(b *testing.B) {
	for _, program := range []string{ownInit, libcontainersInit} {
		b.Run(program, func(b *testing.B) {
			n := newNode(b)
			file := filepath.Join(b.TempDir(), "file")
			if err := os.WriteFile(file, nil, 0o644); err != nil {
				b.Fatal(err)
			}
			adjust := func(s *specs.Spec) { usual(s, file) }
			n.init = program
			n.learn(adjust)
			var used time.Duration
			made := 0
			for b.Loop() {
				cpu, containers := n.makeMany(b, adjust)
				used += cpu
				made += containers
			}
			b.ReportMetric(float64(used.Microseconds())/1000/float64(made), "cpu-ms/container")
		})
	}
}

// makeMany has a launcher make as many containers as it does, and returns what CPU time that took.
func (n *node) makeMany(b *testing.B, adjust func(*specs.Spec)) (used time.Duration, made int) {
	b.Helper()
	w, before := n.launch(), cpuOfChildren(b)
	var all []*container
	for stays := true; stays; {
		c := n.bundle([]string{"pause"}, adjust)
		files := c.streams()
		result, pidfd := w.do(b, c.job(keeper.JobCreate), files...)
		closeEach(files)
		if result.Error != "" {
			b.Fatal(result.Error)
		}
		c.take(result, pidfd)
		all, stays = append(all, c.start()), result.Stays
	}
	w.end(b)
	for _, c := range all {
		c.kill()
	}
	used = cpuOfChildren(b) - before
	for _, c := range all {
		if result, _ := n.run(c.job(keeper.JobDestroy)); result.Error != "" {
			b.Fatal(result.Error)
		}
	}
	return used, len(all)
}

// usual makes of s what the container of a pod usually has.
func usual(s *specs.Spec, file string) {
	s.Process.Capabilities = &specs.LinuxCapabilities{}
	s.Linux.Seccomp = seccomp.DefaultProfile(s)
	s.Linux.Namespaces = s.Linux.Namespaces[:5] // none of cgroups
	s.Linux.MaskedPaths = []string{"/proc/kcore", "/proc/keys", "/proc/timer_list", "/sys/firmware"}
	s.Linux.ReadonlyPaths = []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys"}
	hardened := []string{"nosuid", "noexec", "nodev"}
	s.Mounts = append(s.Mounts,
		specs.Mount{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: hardened},
		specs.Mount{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: append(hardened, "ro")},
		specs.Mount{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: append(hardened, "relatime", "ro")},
		specs.Mount{Destination: "/dev/shm", Type: "bind", Source: filepath.Dir(file), Options: []string{"rbind", "rprivate", "rw"}})
	for _, name := range []string{"hosts", "hostname", "resolv.conf"} {
		s.Mounts = append(s.Mounts, specs.Mount{Destination: "/etc/" + name, Type: "bind", Source: file, Options: []string{"rbind", "rprivate", "rw"}})
	}
}

// cpuOfChildren is the CPU time of all children that have ended, and of theirs.
func cpuOfChildren(b *testing.B) time.Duration {
	b.Helper()
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_CHILDREN, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
