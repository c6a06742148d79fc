package launch

import (
	"encoding/json"
	"os"

	"github.com/opencontainers/cgroups/manager"
	"github.com/opencontainers/runc/libcontainer"
	"github.com/opencontainers/runc/libcontainer/apparmor"
	"github.com/opencontainers/runc/libcontainer/configs"
	"github.com/opencontainers/runc/libcontainer/specconv"
	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/opencontainers/selinux/go-selinux"

	"github.com/berth-node/berth/runtime/keeper"
	"github.com/berth-node/berth/runtime/launch/filter"
)

// warm does ahead of the job whatever a first use costs: it sends a spec through the steps of a create that touch
// nothing outside of this process. The decoders build their tables, libcontainer reads and keeps what it wants to know
// of the kernel (cgroup mounts, security modules, namespaces), and the code of these steps is paged in.
//
// Nothing depends on it. What fails here fails again with the job, and is reported then.
func warm() {
	// libcontainer hands this to its init, which then starts one processor only. It is all that init uses.
	_ = os.Setenv("GOMAXPROCS", "1")

	selinux.GetEnabled()
	apparmor.IsEnabled()
	for _, t := range configs.NamespaceTypes() {
		configs.IsNamespaceSupported(t)
	}
	if p, err := os.FindProcess(os.Getpid()); err == nil { // the first one forks to see whether pidfds work
		_ = p.Release()
	}

	job, err := json.Marshal(&keeper.Job{Kind: keeper.JobCreate, SubCgroups: map[string]string{"": "x"}})
	if err != nil {
		return
	}
	_ = json.Unmarshal(job, new(keeper.Job))
	_, _ = json.Marshal(new(keeper.JobResult))

	data, err := json.Marshal(sampleSpec())
	if err != nil {
		return
	}
	var spec specs.Spec
	if err := json.Unmarshal(data, &spec); err != nil {
		return
	}
	config, err := specconv.CreateLibcontainerConfig(&specconv.CreateOpts{CgroupName: "warm", Spec: &spec})
	if err != nil {
		return
	}
	_, _ = manager.New(config.Cgroups) // computes paths; no cgroup is made before init is in it
	_, _ = json.Marshal(&libcontainer.State{BaseState: libcontainer.BaseState{Config: *config}})

	filter.Warm()
	_, _ = newOutfit()
	if lp, err := newProcess(spec.Process, true, []*os.File{nil}); err == nil {
		_, _ = translate("warm", config, lp).Encode()
	}
}

// sampleSpec has something in all the places where the spec of a pod's container usually has something.
func sampleSpec() *specs.Spec {
	limit, quota, score := int64(1<<30), int64(100000), 0
	return &specs.Spec{
		Version: specs.Version,
		Process: &specs.Process{
			Args: []string{"/warm"}, Env: []string{"PATH=/bin"}, Cwd: "/", OOMScoreAdj: &score,
			User:         specs.User{AdditionalGids: []uint32{1}},
			Capabilities: &specs.LinuxCapabilities{Bounding: []string{"CAP_KILL"}},
			Rlimits:      []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 1024, Hard: 1024}},
		},
		Root:        &specs.Root{Path: "/", Readonly: true},
		Mounts:      []specs.Mount{{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "rbind"}}},
		Annotations: map[string]string{"warm": "true"},
		Linux: &specs.Linux{
			CgroupsPath: "/warm",
			Namespaces:  []specs.LinuxNamespace{{Type: specs.PIDNamespace}, {Type: specs.MountNamespace}},
			Resources: &specs.LinuxResources{
				CPU:     &specs.LinuxCPU{Quota: &quota},
				Memory:  &specs.LinuxMemory{Limit: &limit},
				Devices: []specs.LinuxDeviceCgroup{{Access: "rwm"}},
			},
			MaskedPaths: []string{"/proc/kcore"},
			Seccomp: &specs.LinuxSeccomp{
				DefaultAction: specs.ActErrno,
				Architectures: []specs.Arch{specs.ArchX86_64},
				Syscalls:      []specs.LinuxSyscall{{Names: []string{"read"}, Action: specs.ActAllow}},
			},
		},
	}
}
