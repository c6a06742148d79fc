package main

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// A shape says how a case's pods differ from the usual one: a network of its own, one CPU, 256 MiB.
type shape struct {
	hostNetwork bool
	milliCPU    int64 // 0 for 1000
	containers  int   // 0 for 1
}

// A pod is one on a target.
type pod struct {
	on         *target
	id         string
	config     *cri.PodSandboxConfig
	containers []string
}

var serial atomic.Int64

// What the kubelet asks to be hidden of /proc and /sys in a container that is not privileged.
var (
	maskedPaths = []string{
		"/proc/asound", "/proc/acpi", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list",
		"/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware", "/sys/devices/virtual/powercap",
	}
	readonlyPaths = []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}
)

var runtimeDefault = &cri.SecurityProfile{ProfileType: cri.SecurityProfile_RuntimeDefault}

// newPod prepares a pod; its cgroup is made.
func (b *bench) newPod(t *target, s shape) (*pod, error) {
	name := fmt.Sprintf("bench-%d", serial.Add(1))
	p := &pod{on: t, config: &cri.PodSandboxConfig{
		Metadata:     &cri.PodSandboxMetadata{Name: name, Namespace: "bench", Uid: "uid-" + name},
		Hostname:     name,
		LogDirectory: logDir(t, name),
		DnsConfig:    &cri.DNSConfig{Servers: []string{"10.96.0.10"}, Searches: []string{"default.svc.cluster.local"}},
		Linux: &cri.LinuxPodSandboxConfig{
			CgroupParent: t.pods + "/" + name,
			SecurityContext: &cri.LinuxSandboxSecurityContext{
				NamespaceOptions: &cri.NamespaceOption{Pid: cri.NamespaceMode_CONTAINER, Network: s.network()},
				Seccomp:          runtimeDefault,
			},
		},
	}}
	if s.hostNetwork {
		p.config.Hostname = ""
	}
	return p, makePodCgroup(p.config.Linux.CgroupParent)
}

func (s shape) network() cri.NamespaceMode {
	if s.hostNetwork {
		return cri.NamespaceMode_NODE
	}
	return cri.NamespaceMode_POD
}

func (b *bench) containerConfig(t *target, s shape, i int) *cri.ContainerConfig {
	milli := s.milliCPU
	if milli == 0 {
		milli = 1000
	}
	return &cri.ContainerConfig{
		Metadata: &cri.ContainerMetadata{Name: fmt.Sprintf("app-%d", i)},
		Image:    &cri.ImageSpec{Image: t.app, UserSpecifiedImage: b.ref(appImage)},
		LogPath:  fmt.Sprintf("app-%d.log", i),
		Linux: &cri.LinuxContainerConfig{
			Resources: &cri.LinuxContainerResources{
				CpuPeriod: 100_000, CpuQuota: milli * 100, CpuShares: milli * 1024 / 1000, MemoryLimitInBytes: 256 << 20, OomScoreAdj: 900,
			},
			SecurityContext: &cri.LinuxContainerSecurityContext{
				NamespaceOptions: &cri.NamespaceOption{Pid: cri.NamespaceMode_CONTAINER, Network: s.network()},
				Seccomp:          runtimeDefault, MaskedPaths: maskedPaths, ReadonlyPaths: readonlyPaths,
			},
		},
	}
}

// start brings the pod up: what a kubelet does between the decision to run a pod and the running of its containers.
func (b *bench) start(ctx context.Context, p *pod, s shape) error {
	sandbox, err := p.on.Runtime.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: p.config})
	if err != nil {
		return fmt.Errorf("%s: RunPodSandbox: %w", p.on.name, err)
	}
	p.id = sandbox.PodSandboxId
	for i := range max(s.containers, 1) {
		container, err := p.on.Runtime.CreateContainer(ctx, &cri.CreateContainerRequest{PodSandboxId: p.id, Config: b.containerConfig(p.on, s, i), SandboxConfig: p.config})
		if err != nil {
			return fmt.Errorf("%s: CreateContainer: %w", p.on.name, err)
		}
		p.containers = append(p.containers, container.ContainerId)
		if _, err := p.on.Runtime.StartContainer(ctx, &cri.StartContainerRequest{ContainerId: container.ContainerId}); err != nil {
			return fmt.Errorf("%s: StartContainer: %w", p.on.name, err)
		}
	}
	return nil
}

// stop ends the containers, which obey SIGTERM, and removes the pod.
func (b *bench) stop(ctx context.Context, p *pod) error {
	for _, id := range p.containers {
		if _, err := p.on.Runtime.StopContainer(ctx, &cri.StopContainerRequest{ContainerId: id, Timeout: 30}); err != nil {
			return fmt.Errorf("%s: StopContainer: %w", p.on.name, err)
		}
	}
	if _, err := p.on.Runtime.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: p.id}); err != nil {
		return fmt.Errorf("%s: StopPodSandbox: %w", p.on.name, err)
	}
	if _, err := p.on.Runtime.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: p.id}); err != nil {
		return fmt.Errorf("%s: RemovePodSandbox: %w", p.on.name, err)
	}
	return nil
}

// cleanUp removes what the pod's start and stop do not make.
func (p *pod) cleanUp() error { return removePodCgroups(p.config.Linux.CgroupParent) }

// run starts a pod and removes it, and returns how long each took.
func (b *bench) run(ctx context.Context, t *target, s shape) (start, stop time.Duration, err error) {
	p, err := b.newPod(t, s)
	if err != nil {
		return 0, 0, err
	}
	began := time.Now()
	err = b.start(ctx, p, s)
	start = time.Since(began)
	time.Sleep(50 * time.Millisecond) // a program that has just begun does not listen to SIGTERM yet, and a kubelet does not hurry so
	began = time.Now()
	if p.id != "" {
		err = errors.Join(err, b.stop(ctx, p))
	}
	stop = time.Since(began)
	return start, stop, errors.Join(err, p.cleanUp())
}

// up starts n pods, some at a time; the function that it returns removes them.
func (b *bench) up(ctx context.Context, t *target, n int, s shape) (pods []*pod, remove func() error, err error) {
	for range n {
		p, err := b.newPod(t, s)
		if err != nil {
			return nil, nil, err
		}
		pods = append(pods, p)
	}
	remove = func() error {
		err := inParallel(pods, 4, func(p *pod) error {
			if p.id == "" {
				return nil
			}
			return b.stop(ctx, p)
		})
		for _, p := range pods {
			err = errors.Join(err, p.cleanUp())
		}
		return err
	}
	if err := inParallel(pods, 4, func(p *pod) error { return b.start(ctx, p, s) }); err != nil {
		return nil, nil, errors.Join(err, remove())
	}
	return pods, remove, nil
}

// inParallel calls f for all of list, at most n at once, and returns all errors.
func inParallel[T any](list []T, n int, f func(T) error) error {
	work, errs := make(chan T), make(chan error)
	for range n {
		go func() {
			var err error
			for item := range work {
				err = errors.Join(err, f(item))
			}
			errs <- err
		}()
	}
	for _, item := range list {
		work <- item
	}
	close(work)
	var err error
	for range n {
		err = errors.Join(err, <-errs)
	}
	return err
}
