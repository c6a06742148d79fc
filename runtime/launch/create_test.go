package launch_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/contrib/seccomp"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/berth-node/berth/internal/startfifo"
	"github.com/berth-node/berth/internal/wire"
	"github.com/berth-node/berth/runtime/keeper"
)

func TestLauncherEndsWithItsKeeper(t *testing.T) {
	w := newNode(t).launch()
	w.end(t) // closes the connection, wants exit code 0 and no word
}

func TestStreamsAndExitCode(t *testing.T) { withBothInits(t, streamsAndExitCode) }

func streamsAndExitCode(t *testing.T, n *node) {
	c := n.bundle([]string{"cat", "-", "warn", "to stderr", "env", "NAME", "exit", "7"}, func(s *specs.Spec) {
		s.Process.Env = []string{"NAME=value"}
	}).create().start()
	if _, err := c.stdin.WriteString("through stdin\n"); err != nil {
		t.Fatal(err)
	}
	c.stdin.Close()
	if code := c.wait(); code != 7 {
		t.Errorf("exit code %d, want 7", code)
	}
	if got, want := <-c.out, "through stdin\nto stderr\nvalue\n"; got != want {
		t.Errorf("output %q, want %q", got, want)
	}
}

func TestCreatedContainerWaits(t *testing.T) { withBothInits(t, createdContainerWaits) }

func createdContainerWaits(t *testing.T, n *node) {
	c := n.bundle([]string{"exit", "0"}, nil).create()
	link, err := os.Readlink(filepath.Join("/proc", itoa(c.pid), "exe"))
	if err != nil || strings.HasSuffix(link, "/prog") {
		t.Errorf("the workload runs before it was started: %q, %v", link, err)
	}
	stat, err := os.ReadFile(filepath.Join("/proc", itoa(c.pid), "stat"))
	if err != nil || !strings.Contains(string(stat), " "+itoa(os.Getpid())+" ") {
		t.Errorf("init is not the keeper's child: %s, %v", stat, err)
	}
}

// Who opens the FIFO and goes has started nothing, and who lets init go may die at once.
func TestInitOutlivesWhoLetsItGo(t *testing.T) { withBothInits(t, initOutlivesWhoLetsItGo) }

func initOutlivesWhoLetsItGo(t *testing.T, n *node) {
	for range 5 {
		c := n.bundle([]string{"exit", "7"}, nil).create()
		c.fifo().Close()
		fifo := c.fifo()
		if blocked, err := startfifo.Blocked(fifo.Fd()); !blocked || err != nil {
			t.Errorf("init was let go by a look: %v", err)
		}
		startfifo.LetGo(fifo.Fd())
		fifo.Close()
		if code := c.wait(); code != 7 {
			t.Errorf("exit code %d, want 7", code)
		}
	}
}

func TestNoDescriptorLeaks(t *testing.T) { withBothInits(t, noDescriptorLeaks) }

func noDescriptorLeaks(t *testing.T, n *node) {
	if got := strings.Fields(n.bundle([]string{"fds"}, nil).create().output()); strings.Join(got, " ") != "0 1 2" {
		t.Errorf("the workload has descriptors %v", got)
	}
}

func TestPrivileges(t *testing.T) { withBothInits(t, privileges) }

func privileges(t *testing.T, n *node) {
	caps := []string{"CAP_NET_BIND_SERVICE", "CAP_CHOWN"}
	adjust := func(s *specs.Spec) {
		s.Process.User = specs.User{UID: 1000, GID: 1001, AdditionalGids: []uint32{5, 6}}
		s.Process.Capabilities = &specs.LinuxCapabilities{Bounding: caps, Permitted: caps, Inheritable: caps, Effective: caps, Ambient: caps[:1]}
		s.Process.NoNewPrivileges = true
		s.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 100, Hard: 200}}
		s.Linux.Seccomp = seccomp.DefaultProfile(s)
	}
	n.learn(adjust)
	status := n.bundle([]string{"cat", "/proc/self/status"}, adjust).create().output()
	for _, want := range []string{
		"Uid:\t1000\t1000\t1000\t1000", "Gid:\t1001\t1001\t1001\t1001", "Groups:\t5 6",
		"CapBnd:\t0000000000000401", "CapAmb:\t0000000000000400", "CapEff:\t0000000000000400",
		"NoNewPrivs:\t1", "Seccomp:\t2", "Seccomp_filters:\t1",
	} {
		if !strings.Contains(status, want+"\n") && !strings.Contains(status, want+" \n") {
			t.Errorf("/proc/self/status lacks %q:\n%s", want, status)
		}
	}
}

func TestSeccompProfileRefuses(t *testing.T) {
	for name, test := range map[string]struct {
		profile *specs.LinuxSeccomp
		want    string
	}{
		"none": {nil, "mkdir done\n"},
		"mkdir refused": {&specs.LinuxSeccomp{
			DefaultAction: specs.ActAllow,
			Syscalls:      []specs.LinuxSyscall{{Names: []string{"mkdir", "mkdirat"}, Action: specs.ActErrno}},
		}, "mkdir refused\n"},
	} {
		t.Run(name, func(t *testing.T) {
			withBothInits(t, func(t *testing.T, n *node) {
				adjust := func(s *specs.Spec) { s.Linux.Seccomp = test.profile }
				n.learn(adjust)
				if got := n.bundle([]string{"mkdir", "/tmp/x"}, adjust).create().output(); got != test.want {
					t.Errorf("got %q, want %q", got, test.want)
				}
			})
		})
	}
}

func TestTerminal(t *testing.T) {
	c := newNode(t).bundle([]string{"tty"}, func(s *specs.Spec) {
		s.Process.Terminal = true
		s.Process.ConsoleSize = &specs.Box{Width: 91, Height: 17}
	})
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "ours"), os.NewFile(uintptr(fds[1]), "theirs")
	defer ours.Close()
	job := c.job(keeper.JobCreate)
	job.Terminal = true
	result, pidfd := c.run(job, theirs)
	theirs.Close()
	if result.Error != "" {
		t.Fatal(result.Error)
	}
	c.take(result, pidfd)
	defer c.run(c.job(keeper.JobDestroy))

	name, oob := make([]byte, 256), make([]byte, unix.CmsgSpace(4))
	_, oobn, _, _, err := unix.Recvmsg(int(ours.Fd()), name, oob, unix.MSG_CMSG_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	messages, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil || len(messages) != 1 {
		t.Fatalf("no descriptor on the console socket: %v", err)
	}
	got, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(got) != 1 {
		t.Fatalf("no descriptor on the console socket: %v", err)
	}
	master := os.NewFile(uintptr(got[0]), "terminal")
	defer master.Close()
	c.start()
	line := make([]byte, 64)
	n, err := master.Read(line)
	if err != nil {
		t.Fatal(err)
	}
	for !strings.Contains(string(line[:n]), "\n") {
		more, err := master.Read(line[n:])
		if err != nil {
			t.Fatal(err)
		}
		n += more
	}
	if got, want := string(line[:n]), "tty 1 91x17\r\n"; got != want {
		t.Errorf("the workload says %q of its terminal, want %q", got, want)
	}
	c.wait()
}

func TestFailedCreateLeavesNothing(t *testing.T) {
	for name, test := range map[string]struct {
		adjust  func(*specs.Spec)
		failure keeper.Failure
		says    []string
	}{
		"command not in PATH": {
			func(s *specs.Spec) { s.Process.Args = []string{"no-such"} },
			keeper.FailureCommand, []string{`exec: "no-such": executable file not found in $PATH`},
		},
		"command is no file": {
			func(s *specs.Spec) { s.Process.Args = []string{"/no/such"} },
			keeper.FailureCommand, []string{`exec: "/no/such": stat /no/such: no such file or directory`},
		},
		"command may not be executed": {
			func(s *specs.Spec) { s.Process.Args = []string{"/proc/version"} },
			keeper.FailureCommand, []string{`exec: "/proc/version": permission denied`},
		},
		"command is a folder": {
			func(s *specs.Spec) { s.Process.Args = []string{"/tmp"} },
			keeper.FailureCommand, []string{`exec: "/tmp": is a directory`},
		},
		"mount without a source": {
			func(s *specs.Spec) {
				s.Mounts = append(s.Mounts, specs.Mount{Destination: "/tmp", Source: "/no/such", Options: []string{"bind"}})
			},
			keeper.FailureSetup, []string{"mount", "/no/such", "no such file or directory"},
		},
		"mount of no file system": {
			func(s *specs.Spec) {
				s.Mounts = append(s.Mounts, specs.Mount{Destination: "/tmp", Type: "nosuchfs", Source: "none"})
			},
			keeper.FailureSetup, []string{"mounting", "/tmp", "no such device"},
		},
		"working directory that is not there": {
			func(s *specs.Spec) { s.Process.Cwd = "/proc/none" },
			keeper.FailureSetup, []string{"mkdir", "/proc/none"},
		},
		"no arguments":      {func(s *specs.Spec) { s.Process.Args = nil }, keeper.FailureArgument, []string{"process.args"}},
		"no process":        {func(s *specs.Spec) { s.Process = nil }, keeper.FailureArgument, []string{"no process"}},
		"unknown namespace": {func(s *specs.Spec) { s.Linux.Namespaces[0].Type = "colour" }, keeper.FailureArgument, []string{"colour"}},
		"unknown rlimit": {
			func(s *specs.Spec) { s.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_PATIENCE"}} },
			keeper.FailureArgument, []string{"RLIMIT_PATIENCE"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			withBothInits(t, func(t *testing.T, n *node) {
				result := n.failedCreate(test.adjust)
				if result.Failure != test.failure {
					t.Errorf("failure %q, want %q", result.Failure, test.failure)
				}
				for _, want := range test.says {
					if !strings.Contains(result.Error, want) {
						t.Errorf("error %q lacks %q", result.Error, want)
					}
				}
			})
		})
	}
}

// failedCreate wants a creation to leave nothing behind, and returns the answer to it.
func (n *node) failedCreate(adjust func(*specs.Spec)) keeper.JobResult {
	n.t.Helper()
	c := n.bundle(nil, adjust)
	files := c.streams()
	result, pidfd := c.run(c.job(keeper.JobCreate), files...)
	closeEach(files)
	if pidfd != nil {
		n.t.Error("a pidfd came with a failure")
	}
	c.wantNothingLeft()
	return result
}

func TestSecondCreateLeavesTheFirst(t *testing.T) { withBothInits(t, secondCreateLeavesTheFirst) }

func secondCreateLeavesTheFirst(t *testing.T, n *node) {
	c := n.bundle([]string{"exit", "3"}, nil).create()
	again := *c
	files := again.streams()
	result, _ := c.run(c.job(keeper.JobCreate), files...)
	closeEach(files)
	if !strings.Contains(result.Error, "already exists") {
		t.Errorf("second create: %+v", result)
	}
	c.start()
	if code := c.wait(); code != 3 {
		t.Errorf("the first container ended with %d, want 3", code)
	}
}

// A container that the keeper cannot be told of must not live on: nobody would ever look after it.
func TestUndeliverableAnswerIsUndone(t *testing.T) { withBothInits(t, undeliverableAnswerIsUndone) }

func undeliverableAnswerIsUndone(t *testing.T, n *node) {
	c := n.bundle([]string{"pause"}, nil)
	w := c.launch()
	files := c.streams()
	// The keeper's receive side is shut, so the answer meets a broken pipe; the job itself gets through.
	if err := wire.Write(w.conn, c.job(keeper.JobCreate), files...); err != nil {
		t.Fatal(err)
	}
	closeEach(files)
	if err := w.conn.CloseRead(); err != nil {
		t.Fatal(err)
	}
	err := w.cmd.Wait()
	w.conn.Close()
	if err == nil || !strings.Contains(w.out.String(), "broken pipe") {
		t.Errorf("the launcher ended with %v and said %q", err, w.out)
	}
	c.wantNothingLeft()
}

func TestJobsThatMakeNoSense(t *testing.T) {
	n := newNode(t)
	for name, job := range map[string]keeper.Job{
		"unknown kind":    {Kind: "dance", Root: n.state, ID: "a"},
		"relative root":   {Kind: keeper.JobDestroy, Root: "state", ID: "a"},
		"no ID":           {Kind: keeper.JobDestroy, Root: n.state},
		"ID is a path":    {Kind: keeper.JobDestroy, Root: n.state, ID: "../a"},
		"ID goes up":      {Kind: keeper.JobDestroy, Root: n.state, ID: ".."},
		"no bundle":       {Kind: keeper.JobCreate, Root: n.state, ID: "a", Bundle: "/no/such"},
		"no descriptors":  {Kind: keeper.JobExec, Root: n.state, ID: "a", Process: []byte(`{"args":["a"],"cwd":"/"}`)},
		"no exec process": {Kind: keeper.JobExec, Root: n.state, ID: "a"},
		"no options":      {Kind: keeper.JobCheckpoint, Root: n.state, ID: "a"},
	} {
		t.Run(name, func(t *testing.T) {
			if result, _ := n.run(job); result.Failure != keeper.FailureArgument || result.Error == "" {
				t.Errorf("result %+v, want failure %q", result, keeper.FailureArgument)
			}
		})
	}
}
