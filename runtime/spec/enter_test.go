package spec

import (
	"reflect"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/berth-node/berth/internal/enter"
)

// enterable is the spec of a container whose execs need no libcontainer.
func enterable() *specs.Spec {
	adj := 900
	return &specs.Spec{
		Process: &specs.Process{
			Args: []string{"sleep"}, Cwd: "/", Env: []string{"A=b"}, OOMScoreAdj: &adj, NoNewPrivileges: true,
			User:         specs.User{UID: 1, GID: 2, AdditionalGids: []uint32{3}},
			Capabilities: &specs.LinuxCapabilities{Bounding: []string{"CAP_CHOWN", "CAP_KILL", "CAP_NO_SUCH"}, Effective: []string{"CAP_KILL"}},
			Rlimits:      []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 4, Hard: 5}},
		},
		Linux: &specs.Linux{Namespaces: []specs.LinuxNamespace{{Type: specs.MountNamespace}, {Type: specs.PIDNamespace, Path: "/x"}, {Type: specs.CgroupNamespace}}},
	}
}

func TestEnter(t *testing.T) {
	s := enterable()
	p := ExecProcess(s, []string{"echo", "x"}, false)
	if !CanEnter(s, p) {
		t.Fatal("it needs libcontainer")
	}
	want := &enter.Plan{
		OOMScoreAdj: 900, Rlimits: []enter.Rlimit{{Resource: unix.RLIMIT_NOFILE, Soft: 4, Hard: 5}},
		Namespaces: unix.CLONE_NEWNS | unix.CLONE_NEWPID, OwnCgroupNamespace: true, NoNewPrivileges: true,
		Cwd: "/", UID: 1, GID: 2, Groups: []uint32{3}, Bounding: 1<<unix.CAP_CHOWN | 1<<unix.CAP_KILL, Effective: 1 << unix.CAP_KILL,
		Args: []string{"echo", "x"}, Env: []string{"A=b"},
	}
	if got := Enter(s, p); !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v\nwant %+v", got, want)
	}
}

func TestWhatNeedsLibcontainer(t *testing.T) {
	for name, change := range map[string]func(*specs.Spec, *specs.Process){
		"terminal":           func(_ *specs.Spec, p *specs.Process) { p.Terminal = true },
		"SELinux":            func(_ *specs.Spec, p *specs.Process) { p.SelinuxLabel = "x" },
		"no capabilities":    func(_ *specs.Spec, p *specs.Process) { p.Capabilities = nil },
		"scheduler":          func(_ *specs.Spec, p *specs.Process) { p.Scheduler = &specs.Scheduler{} },
		"I/O priority":       func(_ *specs.Spec, p *specs.Process) { p.IOPriority = &specs.LinuxIOPriority{} },
		"CPU affinity":       func(_ *specs.Spec, p *specs.Process) { p.ExecCPUAffinity = &specs.CPUAffinity{} },
		"personality":        func(s *specs.Spec, _ *specs.Process) { s.Linux.Personality = &specs.LinuxPersonality{} },
		"RDT":                func(s *specs.Spec, _ *specs.Process) { s.Linux.IntelRdt = &specs.LinuxIntelRdt{} },
		"unknown limit":      func(_ *specs.Spec, p *specs.Process) { p.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_X"}} },
		"no mount namespace": func(s *specs.Spec, _ *specs.Process) { s.Linux.Namespaces = s.Linux.Namespaces[1:] },
		"time namespace": func(s *specs.Spec, _ *specs.Process) {
			s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.TimeNamespace})
		},
		"seccomp agent": func(s *specs.Spec, _ *specs.Process) {
			s.Linux.Seccomp = &specs.LinuxSeccomp{Syscalls: []specs.LinuxSyscall{{Names: []string{"mkdir"}, Action: specs.ActNotify}}}
		},
	} {
		s := enterable()
		p := ExecProcess(s, []string{"echo"}, false)
		change(s, p)
		if CanEnter(s, p) {
			t.Errorf("%s: no libcontainer", name)
		}
	}
}
