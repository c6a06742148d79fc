package sandboxns

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/berth-node/berth/internal/errdefs"
	"github.com/berth-node/berth/internal/nsfile"
)

const hostID = 300000

var mappings = &IDMappings{
	UIDs: []specs.LinuxIDMapping{{ContainerID: 0, HostID: hostID, Size: 65536}},
	GIDs: []specs.LinuxIDMapping{{ContainerID: 0, HostID: hostID, Size: 65536}},
}

// newRequest is for a sandbox with everything of its own in folders of the test.
func newRequest(t *testing.T) Request {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("namespaces need root")
	}
	dir := t.TempDir()
	netDir := filepath.Join(dir, "netns")
	t.Cleanup(func() {
		if err := unix.Unmount(netDir, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
			t.Error(err)
		}
	})
	return Request{
		Dir: dir, NetPath: filepath.Join(netDir, "web"), IPC: true, UTS: true,
		Hostname: "web-0", Domainname: "example",
		Sysctls: map[string]string{
			"net.ipv4.ip_unprivileged_port_start": "81",
			"net/ipv4/ip_local_port_range":        "20000 20999",
			"kernel.shm_rmid_forced":              "1",
			"kernel.msgmax":                       "4444",
			"fs.mqueue.msg_max":                   "11",
		},
	}
}

func ino(t *testing.T, path string) uint64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	return st.Ino
}

// read returns the text of a file, or of what stands for it in /proc/sys.
func read(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Error(err)
	}
	return strings.Join(strings.Fields(string(data)), " ")
}

func nodename(t *testing.T) string {
	t.Helper()
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		t.Error(err)
	}
	return unix.ByteSliceToString(u.Nodename[:]) + "." + unix.ByteSliceToString(u.Domainname[:])
}

// owner returns the inode of the user namespace that the namespace at path belongs to.
func owner(t *testing.T, path string) uint64 {
	t.Helper()
	ns, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	fd, err := unix.IoctlRetInt(int(ns.Fd()), unix.NS_GET_USERNS)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		t.Fatal(err)
	}
	return st.Ino
}

// loopbackIsUp looks at lo of the calling thread's network namespace.
func loopbackIsUp(t *testing.T) bool {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	lo, err := unix.NewIfreq("lo")
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.IoctlIfreq(fd, unix.SIOCGIFFLAGS, lo); err != nil {
		t.Fatal(err)
	}
	return lo.Uint16()&unix.IFF_UP != 0
}

func wantNothingLeft(t *testing.T, req Request) {
	t.Helper()
	for _, k := range PathsIn(req.Dir, req.NetPath).kinds() {
		if _, err := os.Lstat(k.path); !os.IsNotExist(err) {
			t.Errorf("%s is left behind (%v)", k.path, err)
		}
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, "nsfs") && strings.Contains(line, req.Dir) {
			t.Errorf("a mount is left behind: %s", line)
		}
	}
	files, err := filepath.Glob("/proc/self/task/*/children")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		if data, err := os.ReadFile(file); err == nil && len(strings.TrimSpace(string(data))) > 0 {
			t.Errorf("processes are left behind: %s", data)
		}
	}
}

func TestCreateAndRemove(t *testing.T) {
	for name, user := range map[string]*IDMappings{"in the node's user namespace": nil, "in one of its own": mappings} {
		t.Run(name, func(t *testing.T) {
			req := newRequest(t)
			req.User = user
			outside := map[string]string{}
			for _, file := range []string{"net/ipv4/ip_unprivileged_port_start", "net/ipv4/ip_local_port_range",
				"kernel/shm_rmid_forced", "kernel/msgmax", "fs/mqueue/msg_max"} {
				outside[file] = read(t, "/proc/sys/"+file)
			}
			here := nodename(t)

			paths, err := Create(t.Context(), req)
			if err != nil {
				t.Fatal(err)
			}
			wantOwner := ino(t, "/proc/self/ns/user")
			if user != nil {
				wantOwner = ino(t, paths.User)
			}
			for _, k := range paths.kinds() {
				if !Verify(k.path) || ino(t, k.path) == ino(t, "/proc/self/ns/"+k.name) {
					t.Errorf("%s is no namespace of its own", k.path)
				}
				if k.name != "user" && owner(t, k.path) != wantOwner {
					t.Errorf("%s does not belong to the sandbox's user namespace", k.path)
				}
			}
			wantInside(t, paths)
			if nodename(t) != here {
				t.Errorf("the node is %s now, was %s", nodename(t), here)
			}
			for file, want := range outside {
				if got := read(t, "/proc/sys/"+file); got != want {
					t.Errorf("the node's %s is %q now, was %q", file, got, want)
				}
			}
			for range 2 {
				if err := Remove(t.Context(), PathsIn(req.Dir, req.NetPath)); err != nil {
					t.Error(err)
				}
			}
			wantNothingLeft(t, req)
		})
	}
}

// wantInside looks at the namespaces of newRequest from inside.
func wantInside(t *testing.T, paths Paths) {
	t.Helper()
	err := nsfile.OnThread(func() error {
		for _, k := range paths.kinds() {
			if k.name == "user" {
				continue
			}
			if err := nsfile.Enter(k.path, k.flag); err != nil {
				return err
			}
		}
		for file, want := range map[string]string{
			"net/ipv4/ip_unprivileged_port_start": "81", "net/ipv4/ip_local_port_range": "20000 20999",
			"kernel/shm_rmid_forced": "1", "kernel/msgmax": "4444", "fs/mqueue/msg_max": "11",
		} {
			if got := read(t, "/proc/sys/"+file); got != want {
				t.Errorf("%s is %q inside, want %q", file, got, want)
			}
		}
		if got := nodename(t); got != "web-0.example" {
			t.Errorf("the name inside is %s", got)
		}
		if !loopbackIsUp(t) {
			t.Error("lo is down")
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

func TestOnlyWhatIsAskedFor(t *testing.T) {
	req := newRequest(t)
	req = Request{Dir: req.Dir, User: mappings}
	paths, err := Create(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	if want := (Paths{User: filepath.Join(req.Dir, "user")}); paths != want {
		t.Errorf("paths %+v, want %+v", paths, want)
	}
	if err := Remove(t.Context(), paths); err != nil {
		t.Error(err)
	}
	wantNothingLeft(t, req)

	paths, err = Create(t.Context(), Request{})
	if err != nil || paths != (Paths{}) {
		t.Errorf("a sandbox with all of the node's namespaces: %+v, %v", paths, err)
	}
}

func TestFailureUndoesAll(t *testing.T) {
	for name, user := range map[string]*IDMappings{"in the node's user namespace": nil, "in one of its own": mappings} {
		for what, adjust := range map[string]func(*Request){
			"unknown sysctl":   func(r *Request) { r.Sysctls = map[string]string{"net.ipv4.no_such": "1"} },
			"bad sysctl value": func(r *Request) { r.Sysctls = map[string]string{"net.ipv4.ip_forward": "yes"} },
			"bad host name":    func(r *Request) { r.Hostname = strings.Repeat("x", 65) },
		} {
			t.Run(what+" "+name, func(t *testing.T) {
				req := newRequest(t)
				req.User = user
				adjust(&req)
				paths, err := Create(t.Context(), req)
				if !errors.Is(err, errdefs.ErrInvalidArgument) || paths != (Paths{}) {
					t.Errorf("Create: %+v, %v; want class %v", paths, err, errdefs.ErrInvalidArgument)
				}
				wantNothingLeft(t, req)
			})
		}
	}
}

func TestExistingFileIsLeftAlone(t *testing.T) {
	req := newRequest(t)
	file := filepath.Join(req.Dir, "uts")
	if err := os.WriteFile(file, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Create(t.Context(), req); !errors.Is(err, errdefs.ErrAlreadyExists) {
		t.Errorf("Create: %v, want class %v", err, errdefs.ErrAlreadyExists)
	}
	if read(t, file) != "mine" || Verify(file) {
		t.Error("the file was touched")
	}
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	wantNothingLeft(t, req)
}

func TestCancelled(t *testing.T) {
	req := newRequest(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Create(ctx, req); !errors.Is(err, context.Canceled) {
		t.Errorf("Create: %v", err)
	}
	wantNothingLeft(t, req)
}

func TestRefusedBeforeAnythingIsMade(t *testing.T) {
	sysctl := func(name string) map[string]string { return map[string]string{name: "1"} }
	for name, req := range map[string]Request{
		"sysctl of the node":             {Dir: "/d", IPC: true, NetPath: "/d/n/x", Sysctls: sysctl("vm.swappiness")},
		"net sysctl, node's network":     {Dir: "/d", IPC: true, Sysctls: sysctl("net.ipv4.ip_forward")},
		"IPC sysctl, node's IPC":         {NetPath: "/d/n/x", Sysctls: sysctl("kernel.shmmax")},
		"sysctl that leads out":          {NetPath: "/d/n/x", Sysctls: sysctl("net/../vm/swappiness")},
		"sysctl that leads out by dots":  {NetPath: "/d/n/x", Sysctls: sysctl("net.ipv4.//.//.vm.swappiness")},
		"kernel.semaphores is no sem":    {Dir: "/d", IPC: true, Sysctls: sysctl("kernel.sem_next_id")},
		"empty sysctl":                   {Dir: "/d", IPC: true, Sysctls: sysctl("")},
		"host name, node's UTS":          {Dir: "/d", IPC: true, Hostname: "x"},
		"relative folder":                {Dir: "d", IPC: true},
		"relative network path":          {NetPath: "x"},
		"user namespace without ID 0":    {Dir: "/d", User: &IDMappings{UIDs: []specs.LinuxIDMapping{{ContainerID: 1, Size: 1}}}},
		"user namespace without mapping": {Dir: "/d", User: &IDMappings{}},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := checkRequest(&req); !errors.Is(err, errdefs.ErrInvalidArgument) {
				t.Errorf("checkRequest: %v, want class %v", err, errdefs.ErrInvalidArgument)
			}
		})
	}
}

func TestSysctlFile(t *testing.T) {
	for name, want := range map[string]string{
		"net.ipv4.ip_forward":               "net/ipv4/ip_forward",
		"net/ipv4/ip_forward":               "net/ipv4/ip_forward",
		"net.ipv4.conf.eth0/100.forwarding": "net/ipv4/conf/eth0.100/forwarding",
		"net/ipv4/conf/eth0.100/forwarding": "net/ipv4/conf/eth0.100/forwarding",
		"kernel.sem":                        "kernel/sem",
		"/proc/sys/kernel/sem":              "",
		"kernel..sem":                       "",
		"net/ipv4/../../vm/swappiness":      "",
		"..":                                "",
	} {
		if got, err := sysctlFile(name); got != want || (err == nil) != (want != "") {
			t.Errorf("sysctlFile(%q) = %q, %v; want %q", name, got, err, want)
		}
	}
}

func BenchmarkCreate(b *testing.B) {
	if os.Geteuid() != 0 {
		b.Skip("namespaces need root")
	}
	for name, user := range map[string]*IDMappings{"user=node": nil, "user=own": mappings} {
		b.Run(name, func(b *testing.B) {
			dir := b.TempDir()
			req := Request{Dir: dir, NetPath: filepath.Join(dir, "netns", "web"), IPC: true, UTS: true, User: user, Hostname: "web"}
			defer unix.Unmount(filepath.Join(dir, "netns"), unix.MNT_DETACH)
			for b.Loop() {
				paths, err := Create(b.Context(), req)
				if err != nil {
					b.Fatal(err)
				}
				b.StopTimer()
				if err := Remove(b.Context(), paths); err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
			}
		})
	}
}
