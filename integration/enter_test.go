//go:build integration

package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-node/berth/integration/harness"
)

// credentials are all that a process can be told apart by. Its own cgroup is not, which differs by design, nor are the signals
// that it ignores: libcontainer passes on what glibc's posix_spawn, and so make, leaves ignored; enter does not.
const credentials = `
grep -vE '^(Pid|Tgid|Ngid|PPid|NStgid|NSpid|NSpgid|NSsid|Vm|Rss|voluntary|nonvoluntary|SigQ|Threads|x86|untag|Hugetlb|Cpus_allowed|Mems_allowed|THP|Speculation|SigIgn)' /proc/self/status
cat /proc/self/oom_score_adj /proc/self/limits; pwd; env | sort; ls /proc/self/fd; umask; id
cat /proc/self/uid_map /proc/self/setgroups; cut -d' ' -f 7,8,40,41 /proc/self/stat
grep -l . /proc/self/attr/current 2>/dev/null && cat /proc/self/attr/current
for ns in ipc mnt net pid user uts; do readlink /proc/self/ns/$ns; done; readlink /proc/1/exe
hostname; ls /; cat /proc/self/personality /proc/self/timerslack_ns 2>&1`

// Whatever a container is, an exec that package enter starts finds itself as one that libcontainer starts.
func TestEnterIsAsLibcontainer(t *testing.T) {
	profile := filepath.Join(t.TempDir(), "profile.json")
	if err := os.WriteFile(profile, []byte(`{"defaultAction":"SCMP_ACT_ALLOW","architectures":["SCMP_ARCH_X86_64","SCMP_ARCH_X86"],
		"flags":["SECCOMP_FILTER_FLAG_LOG"],"syscalls":[{"names":["mkdirat","mkdir"],"action":"SCMP_ACT_ERRNO","errnoRet":99}]}`), 0o600); err != nil {
		t.Fatal(err)
	}
	n := ownNode(t)
	type change = func(*cri.ContainerConfig)
	sc := func(f func(*cri.LinuxContainerSecurityContext)) change {
		return func(c *cri.ContainerConfig) { f(c.Linux.SecurityContext) }
	}
	seccomp := func(kind cri.SecurityProfile_ProfileType, path string) change {
		return sc(func(s *cri.LinuxContainerSecurityContext) {
			s.Seccomp = &cri.SecurityProfile{ProfileType: kind, LocalhostRef: path}
		})
	}
	user := sc(func(s *cri.LinuxContainerSecurityContext) {
		s.RunAsUser, s.RunAsGroup = &cri.Int64Value{Value: 1234}, &cri.Int64Value{Value: 2345}
		s.SupplementalGroups = []int64{7, 8}
	})
	containers := map[string][]change{
		"plain":           nil,
		"default profile": {seccomp(cri.SecurityProfile_RuntimeDefault, "")},
		"no profile":      {seccomp(cri.SecurityProfile_Unconfined, "")},
		"own profile":     {seccomp(cri.SecurityProfile_Localhost, profile)},
		"user":            {user, seccomp(cri.SecurityProfile_RuntimeDefault, "")},
		"no new privileges": {user, seccomp(cri.SecurityProfile_RuntimeDefault, ""),
			sc(func(s *cri.LinuxContainerSecurityContext) { s.NoNewPrivs = true })},
		"root without new privileges": {seccomp(cri.SecurityProfile_Localhost, profile), sc(func(s *cri.LinuxContainerSecurityContext) { s.NoNewPrivs = true })},
		"privileged":                  {sc(func(s *cri.LinuxContainerSecurityContext) { s.Privileged = true })},
		"capabilities": {user, sc(func(s *cri.LinuxContainerSecurityContext) {
			s.Capabilities = &cri.Capability{DropCapabilities: []string{"ALL"}, AddCapabilities: []string{"NET_BIND_SERVICE", "CHOWN"}, AddAmbientCapabilities: []string{"CHOWN"}}
		})},
		"working directory": {user, func(c *cri.ContainerConfig) { c.WorkingDir = "/tmp" }},
		"environment": {func(c *cri.ContainerConfig) {
			c.Envs = []*cri.KeyValue{{Key: "HOME", Value: []byte{}}, {Key: "X", Value: []byte("a b\nc")}}
		}},
		"limits": {func(c *cri.ContainerConfig) {
			c.Linux.Resources = &cri.LinuxContainerResources{CpuQuota: 50000, CpuPeriod: 100000, CpuShares: 512, MemoryLimitInBytes: 64 << 20, OomScoreAdj: 900}
		}},
	}
	commands := map[string][]string{
		"credentials":     {"sh", "-c", credentials},
		"no such command": {"no-such-command"},
		"no such file":    {"/no/such/file"},
		"a folder":        {"/etc"},
		"not executable":  {"/etc/passwd"},
		"not a program":   {"/tmp/text"},
		"by its path":     {"/bin/busybox", "true"},
		"relative":        {"./busybox", "true"},
		"an exit status":  {"sh", "-c", "exit 42"},
		"a signal":        {"sh", "-c", "kill -9 $$"},
		"denied":          {"sh", "-c", "mkdir /tmp/denied; status=$?; rmdir /tmp/denied; exit $status"},
		"our descriptors": {"/proc/self/fd/4"},
		"many arguments":  append([]string{"echo"}, strings.Split(strings.Repeat("argument ", 5000), " ")...),
	}
	pod := n.RunPod(t, "enter", func(c *cri.PodSandboxConfig) { c.Linux.SecurityContext.Privileged = true })
	run := map[string]*harness.Container{}
	for name, changes := range containers {
		run[name] = pod.Idle(t, strings.ReplaceAll(name, " ", "-"), changes...)
		run[name].Exec(t, "sh", "-c", "echo text > /tmp/text-$(id -u) 2>/dev/null; [ -w /tmp ] && [ ! -e /tmp/text ] && echo text > /tmp/text && chmod 755 /tmp/text; true")
	}
	if (os.Getenv("BERTH_TEST_CGROUP_DRIVER")) == "" {
		ns := inUserNamespace(1_000_000)
		inner := n.RunPod(t, "enter-userns", func(c *cri.PodSandboxConfig) { c.Linux.SecurityContext.NamespaceOptions = ns })
		run["user namespace"] = inner.Idle(t, "userns", user, seccomp(cri.SecurityProfile_RuntimeDefault, ""), sc(func(s *cri.LinuxContainerSecurityContext) { s.NamespaceOptions = ns }))
		run["root of a user namespace"] = inner.Idle(t, "userns-root", seccomp(cri.SecurityProfile_RuntimeDefault, ""), sc(func(s *cri.LinuxContainerSecurityContext) { s.NamespaceOptions = ns }))
	}
	for _, c := range run {
		byEnter(t, n, c) // so that its filter is compiled
	}
	got := execAll(t, n, run, commands, "enter")
	n.Reconfigure(t, "exec:\n  libcontainer: true\n")
	want := execAll(t, n, run, commands, "libcontainer")
	for what, w := range want {
		if g := got[what]; g != w {
			t.Errorf("%s: by enter\n%s\nby libcontainer\n%s", what, g, w)
		}
	}
}

// execAll returns how each command went in each container, and checks who started them.
func execAll(t *testing.T, n *harness.Node, run map[string]*harness.Container, commands map[string][]string, by string) map[string]string {
	t.Helper()
	before := execsBy(t, n, by)
	ended := map[string]string{}
	for name, c := range run {
		for what, command := range commands {
			if !strings.Contains("credentials, denied", what) && !strings.Contains("plain, user, no new privileges, user namespace", name) {
				continue // what the command is does not depend on the rest
			}
			resp, err := c.ExecSync(harness.Ctx(t), 0, command...)
			if err != nil {
				// The words before differ: who says it. What is wrong with the command is the same.
				text := err.Error()
				ended[name+", "+what] = "error: " + text[max(strings.LastIndex(text, "exec: "), 0):]
				continue
			}
			ended[name+", "+what] = fmt.Sprintf("%d\n%s%s", resp.ExitCode, resp.Stdout, resp.Stderr)
		}
	}
	if after := execsBy(t, n, by); after == before {
		t.Errorf("none of them was started by %s", by)
	}
	return ended
}

// byEnter returns when an exec in the container was started by package enter.
func byEnter(t *testing.T, n *harness.Node, c *harness.Container) {
	t.Helper()
	harness.Eventually(t, 20*time.Second, "an exec by enter", func() error {
		before := execsBy(t, n, "enter")
		c.Exec(t, "true")
		if execsBy(t, n, "enter") == before {
			return fmt.Errorf("it was started by libcontainer")
		}
		return nil
	})
}

// execsBy reads the daemon's count of commands started.
func execsBy(t *testing.T, n *harness.Node, by string) float64 {
	t.Helper()
	count, _ := n.Metric(t, fmt.Sprintf("berth_execs_total{by=%q}", by))
	return count
}
