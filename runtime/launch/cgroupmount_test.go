package launch_test

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/berth-node/berth/runtime/keeper"
)

// On cgroup v1 launchers away from the host's mounts make the mounts of /sys/fs/cgroup in libcontainer's place. A container
// finds there what it finds where libcontainer has made them.
func TestCgroupMountsAreLibcontainers(t *testing.T) {
	if unified() {
		t.Skip("libcontainer mounts cgroup v2 itself")
	}
	common := []string{"nosuid", "noexec", "nodev", "relatime"}
	for name, test := range map[string]struct {
		options []string
		adjust  func(*specs.Spec)
		ours    bool
	}{
		"read-only":     {append([]string{"ro"}, common...), nil, true},
		"writable":      {append([]string{"rw"}, common...), nil, true},
		"no options":    {nil, nil, true},
		"other options": {append([]string{"ro", "noatime"}, common...), nil, false},
		"propagation":   {append([]string{"ro", "rslave"}, common...), nil, false},
		"cgroup namespace": {append([]string{"ro"}, common...), func(s *specs.Spec) {
			s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.CgroupNamespace})
		}, false},
	} {
		t.Run(name, func(t *testing.T) {
			saw := map[bool]string{}
			for _, amidst := range []bool{true, false} {
				n := newNode(t)
				n.amidst = amidst
				c := n.bundle([]string{"pause"}, func(s *specs.Spec) {
					s.Linux.Namespaces = s.Linux.Namespaces[:5] // none of cgroups
					s.Mounts = append(s.Mounts,
						specs.Mount{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", "ro"}},
						specs.Mount{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: test.options})
					if test.adjust != nil {
						test.adjust(s)
					}
				}).create()
				if ours := c.madeCgroupMounts(); ours != (test.ours && !amidst) {
					t.Errorf("launcher among the host's mounts: %v, mounts made by it: %v", amidst, ours)
				}
				c.start()
				saw[amidst] = c.seesOfCgroups()
				c.kill()
				if result, _ := n.run(c.job(keeper.JobDestroy)); result.Error != "" {
					t.Error(result.Error)
				}
				c.wantNothingLeft()
			}
			if saw[true] != saw[false] || strings.Count(saw[true], "\n") < 5 {
				t.Errorf("away from the host's mounts a container sees\n%s\nby libcontainer alone\n%s", saw[false], saw[true])
			}
		})
	}
}

// madeCgroupMounts tells whether libcontainer found the mounts made.
func (c *container) madeCgroupMounts() bool {
	c.t.Helper()
	state, err := os.ReadFile(filepath.Join(c.state, c.id, "state.json"))
	if err != nil {
		c.t.Fatal(err)
	}
	return strings.Contains(string(state), `"`+filepath.Join(c.places, "cgroups")+`"`)
}

// mountinfo is a line of /proc/PID/mountinfo, of which parts differ from container to container: numbers of mount, parent and
// device, and of the group from which propagation comes.
var mountinfo = regexp.MustCompile(`(?m)^\d+ \d+ (\d+):\d+ (\S+) (\S+) (\S+) ((?:\w+(?::\d+)? )*)- (.*)$`)

// seesOfCgroups describes mounts, files and cgroups of a container that runs, whichever it is.
func (c *container) seesOfCgroups() string {
	c.t.Helper()
	var all strings.Builder
	for _, m := range mountinfo.FindAllStringSubmatch(mountsOf(c.t, c.pid), -1) {
		if strings.HasPrefix(m[3], "/sys") {
			propagation := regexp.MustCompile(`:\d+`).ReplaceAllString(m[5], "")
			fmt.Fprintln(&all, m[1], m[2], m[3], m[4], propagation, m[6])
		}
	}
	dir := fmt.Sprintf("/proc/%d/root/sys/fs/cgroup", c.pid)
	entries, err := os.ReadDir(dir)
	if err != nil {
		c.t.Fatal(err)
	}
	for _, e := range entries {
		st, err := os.Lstat(filepath.Join(dir, e.Name()))
		if err != nil {
			c.t.Fatal(err)
		}
		target, _ := os.Readlink(filepath.Join(dir, e.Name()))
		fmt.Fprintln(&all, e.Name(), st.Mode(), target)
	}
	groups, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", c.pid))
	if err != nil {
		c.t.Fatal(err)
	}
	lines := strings.SplitAfter(strings.ReplaceAll(all.String()+string(groups), c.id, "ID"), "\n")
	slices.Sort(lines) // mounts come in the order in which the launcher sees the host's
	return strings.Join(lines, "")
}
