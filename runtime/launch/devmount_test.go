package launch_test

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/berth-node/berth/runtime/keeper"
)

// Launchers away from the host's mounts make a container's /dev in libcontainer's place. The container finds there what it finds
// where libcontainer has made it.
func TestDevIsLibcontainers(t *testing.T) {
	options := func(o ...string) func(*container) {
		return func(c *container) { c.spec.Mounts[1].Options = o }
	}
	device := func(path string, mode os.FileMode, kind string, major, minor int64) func(*container) {
		uid, gid := uint32(7), uint32(8)
		return func(c *container) {
			c.spec.Linux.Devices = []specs.LinuxDevice{{Path: path, Type: kind, Major: major, Minor: minor, FileMode: &mode, UID: &uid, GID: &gid}}
		}
	}
	mount := func(m specs.Mount) func(*container) {
		return func(c *container) { c.spec.Mounts = append(c.spec.Mounts, m) }
	}
	file := filepath.Join(t.TempDir(), "file")
	write(t, file, "log")
	for name, test := range map[string]struct {
		adjust func(*container)
		ours   bool
	}{
		"as usual":        {func(*container) {}, true},
		"size":            {options("nosuid", "strictatime", "mode=755", "size=65536k"), true},
		"mode":            {options("nosuid", "noexec", "mode=711"), true},
		"read-only":       {options("nosuid", "mode=755", "ro"), false},
		"propagation":     {options("nosuid", "mode=755", "rslave"), false},
		"device":          {device("/dev/mine", 0o640, "c", 1, 3), true},
		"block device":    {device("/dev/mine", 0o600, "b", 7, 99), true},
		"device below":    {device("/dev/net/mine", 0o666, "c", 10, 200), false},
		"FIFO":            {device("/dev/mine", 0o666, "p", 0, 0), false},
		"the sticky bit":  {device("/dev/mine", 0o666|os.FileMode(unix.S_ISVTX), "c", 1, 3), false},
		"elsewhere":       {device("/mine", 0o666, "c", 1, 3), false},
		"no terminals":    {func(c *container) { c.spec.Mounts = c.spec.Mounts[:2] }, true},
		"late terminals":  {func(c *container) { m := c.spec.Mounts; m[0], m[1] = m[1], m[0] }, true},
		"message queues":  {mount(specs.Mount{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid"}}), true},
		"shared memory":   {mount(specs.Mount{Destination: "/dev/shm", Type: "bind", Source: t.TempDir(), Options: []string{"rbind", "rprivate", "rw"}}), true},
		"own memory":      {mount(specs.Mount{Destination: "/dev/shm", Type: "tmpfs", Source: "shm", Options: []string{"size=1m"}}), true},
		"termination log": {mount(specs.Mount{Destination: "/dev/log", Type: "bind", Source: file, Options: []string{"rbind", "rprivate", "rw"}}), true},
		"the host's null": {mount(specs.Mount{Destination: "/dev/null", Type: "bind", Source: "/dev/null", Options: []string{"rbind", "ro"}}), true},
		"the host's /dev": {func(c *container) {
			c.spec.Mounts[1] = specs.Mount{Destination: "/dev", Type: "bind", Source: "/dev", Options: []string{"rbind", "rprivate"}}
		}, false},
		"a user namespace": {mapRoot, false},
	} {
		t.Run(name, func(t *testing.T) {
			saw := map[bool]string{}
			for _, amidst := range []bool{true, false} {
				n := newNode(t)
				n.amidst = amidst
				c := n.bundle([]string{"pause"}, nil)
				test.adjust(c)
				if err := os.WriteFile(filepath.Join(c.bundle, "config.json"), mustJSON(t, c.spec), 0o600); err != nil {
					t.Fatal(err)
				}
				files := c.streams()
				files[0].Close()
				null, err := os.Open(os.DevNull)
				if err != nil {
					t.Fatal(err)
				}
				files[0] = null // as most have it
				result, pidfd := n.run(c.job(keeper.JobCreate), files...)
				closeEach(files)
				if result.Error != "" {
					t.Fatal(result.Error)
				}
				c.take(result, pidfd)
				if ours := c.madeDev(); ours != (test.ours && !amidst) {
					t.Errorf("launcher among the host's mounts: %v, /dev made by it: %v", amidst, ours)
				}
				c.start()
				saw[amidst] = c.seesOfDev()
				c.kill()
				if result, _ := n.run(c.job(keeper.JobDestroy)); result.Error != "" {
					t.Error(result.Error)
				}
				c.wantNothingLeft()
			}
			if saw[true] != saw[false] || !strings.Contains(saw[true], "null") {
				t.Errorf("away from the host's mounts a container sees\n%s\nby libcontainer alone\n%s", saw[false], saw[true])
			}
		})
	}
}

// mapRoot gives the container a user namespace.
func mapRoot(c *container) {
	c.spec.Linux.Namespaces = append(c.spec.Linux.Namespaces, specs.LinuxNamespace{Type: specs.UserNamespace})
	c.spec.Linux.UIDMappings = []specs.LinuxIDMapping{{ContainerID: 0, HostID: 100000, Size: 65536}}
	c.spec.Linux.GIDMappings = c.spec.Linux.UIDMappings
}

// madeDev tells whether libcontainer found /dev made.
func (c *container) madeDev() bool {
	c.t.Helper()
	state, err := os.ReadFile(filepath.Join(c.state, c.id, "state.json"))
	if err != nil {
		c.t.Fatal(err)
	}
	return strings.Contains(string(state), `"`+filepath.Join(c.places, "dev")+`"`)
}

// seesOfDev describes the mounts and files of /dev of a container that runs, and its standard input.
func (c *container) seesOfDev() string {
	c.t.Helper()
	var all strings.Builder
	mounts := mountsOf(c.t, c.pid)
	devMount := ""
	for _, m := range mountinfo.FindAllStringSubmatch(mounts, -1) {
		if strings.HasPrefix(m[3], "/dev") {
			propagation := regexp.MustCompile(`:\d+`).ReplaceAllString(m[5], "")
			fmt.Fprintln(&all, m[1], m[3], m[4], propagation, m[6])
			if m[3] == "/dev" {
				devMount = strings.Fields(m[0])[0]
			}
		}
	}
	root := fmt.Sprintf("/proc/%d/root", c.pid)
	err := filepath.WalkDir(root+"/dev", func(path string, _ os.DirEntry, err error) error {
		var st unix.Stat_t
		if err == nil {
			err = unix.Lstat(path, &st)
		}
		if err != nil {
			return err
		}
		if name := strings.TrimPrefix(path, root); !strings.HasPrefix(name, "/dev/pts/") || name == "/dev/pts/ptmx" {
			target, _ := os.Readlink(path)
			fmt.Fprintf(&all, "%s %o %d %d %d %d:%d %s\n", name, st.Mode, st.Uid, st.Gid, st.Nlink, unix.Major(st.Rdev), unix.Minor(st.Rdev), target)
		}
		if strings.Count(path, "/") > strings.Count(root, "/")+2 && st.Mode&unix.S_IFMT == unix.S_IFDIR {
			return filepath.SkipDir
		}
		return nil
	})
	if err != nil {
		c.t.Fatal(err)
	}
	// Of its own /dev, not the host's, which it could change.
	in, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/0", c.pid))
	if err != nil {
		c.t.Fatal(err)
	}
	info, err := os.ReadFile(fmt.Sprintf("/proc/%d/fdinfo/0", c.pid))
	if err != nil {
		c.t.Fatal(err)
	}
	fmt.Fprintln(&all, "stdin", in, strings.Contains(string(info), "mnt_id:\t"+devMount+"\n"))
	return all.String()
}
