//go:build integration

package chaos

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-node/berth/integration/harness"
	"github.com/berth-node/berth/integration/images"
)

// usualKills is how many kills at random moments a run of the suite has; KILLS says how many make soak has.
const usualKills = 200

// fromEnvironment returns the number that a variable holds.
func fromEnvironment(t *testing.T, name string, usual uint64) uint64 {
	t.Helper()
	text := os.Getenv(name)
	if text == "" {
		return usual
	}
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return n
}

// Killed at random moments, under the load of pods that live from beginning to end, the node is what it was. SEED repeats
// the choices of a run, though not the moments at which the kernel schedules whom.
func TestKilledAtRandom(t *testing.T) {
	kills, seed := fromEnvironment(t, "KILLS", usualKills), fromEnvironment(t, "SEED", uint64(time.Now().UnixNano()))
	t.Logf("SEED=%d KILLS=%d", seed, kills)
	t.Run("built-in network", func(t *testing.T) { atRandom(t, false, seed, int(kills*3/4)) })
	t.Run("CNI", func(t *testing.T) { atRandom(t, true, seed+1, int(kills-kills*3/4)) })
}

// kills in one round, after which everybody rests and is looked at.
const killsPerRound = 10

func atRandom(t *testing.T, cni bool, seed uint64, kills int) {
	r := newRig(t, cni)
	load := startLoad(t, r, seed)
	defer load.end()
	rng := rand.New(rand.NewPCG(seed, 0))
	for done := 0; done < kills; done += killsPerRound {
		load.resume()
		for i := range killsPerRound {
			time.Sleep(time.Duration(rng.IntN(250)) * time.Millisecond)
			w := everybody[rng.IntN(len(everybody))]
			before := r.keeperPid(t)
			r.kill(t, w)
			// A keeper may be killed while its predecessor's work is being taken over.
			if w != keeper || i == killsPerRound-1 || rng.IntN(2) == 0 {
				r.recover(t, before)
			}
			r.witnesses.gaps = r.witnesses.gaps || w != daemon
		}
		if err := r.node.AwaitReady(); err != nil {
			t.Fatal(err)
		}
		load.pause()
		r.witnesses.verify(t, daemon)
		r.wantClean(t)
		if t.Failed() {
			t.Fatalf("after %d kills; SEED=%d", done+killsPerRound, seed)
		}
		if (done+killsPerRound)%500 == 0 {
			t.Logf("%d kills", done+killsPerRound)
		}
	}
	r.witnesses.wantStarted(t)
}

// load are clients that let pods live from beginning to end, one after the other.
type load struct {
	t    *testing.T
	rig  *rig
	rest sync.RWMutex // read-locked by a life; who has it locked lets nobody begin another one
	over chan struct{}
	all  sync.WaitGroup
	// paused says that rest is locked; for those who pause and resume.
	paused bool
}

// pause waits until each life has come to its end.
func (l *load) pause() {
	l.rest.Lock()
	l.paused = true
}

func (l *load) resume() {
	l.paused = false
	l.rest.Unlock()
}

// workers are how many pods live at a time.
const workers = 4

// startLoad returns clients that rest.
func startLoad(t *testing.T, r *rig, seed uint64) *load {
	l := &load{t: t, rig: r, over: make(chan struct{})}
	l.pause()
	for i := range workers {
		rng := rand.New(rand.NewPCG(seed, uint64(i)+1))
		l.all.Go(func() {
			for l.live(i, rng) {
			}
		})
	}
	return l
}

func (l *load) end() {
	close(l.over)
	if l.paused {
		l.resume()
	}
	l.all.Wait()
}

// live is one life; false when no other one is to begin.
func (l *load) live(worker int, rng *rand.Rand) bool {
	l.rest.RLock()
	defer l.rest.RUnlock()
	select {
	case <-l.over:
		return false
	default:
	}
	ctx, cancel := context.WithTimeout(context.Background(), harness.Patience(3*time.Minute))
	defer cancel()
	life := &life{load: l, rng: rng, ctx: ctx, config: l.rig.node.PodConfig(fmt.Sprintf("load-%d", worker))}
	if worker == 0 { // one of them has a port: two cannot have the same
		withPort(drivenPort)(life.config)
	}
	if worker == 1 {
		sharesPID(life.config)
	}
	life.image = worker == 2 && rng.IntN(2) == 0
	if err := life.run(); err != nil {
		l.t.Errorf("%s: %v", life.config.Metadata.Name, err)
		return false
	}
	return true
}

// A life is that of one pod, by a client that repeats each call until it has an answer.
type life struct {
	load   *load
	rng    *rand.Rand
	ctx    context.Context
	config *cri.PodSandboxConfig
	pod    string
	app    string
	image  bool
}

// run goes through all that can happen to a pod, or a part of it.
func (f *life) run() error {
	n := f.load.rig.node
	err := f.call("RunPodSandbox", func(ctx context.Context) error {
		resp, err := n.Runtime.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: f.config})
		f.pod = resp.GetPodSandboxId()
		return err
	})
	if err != nil {
		return err
	}
	steps := []func() error{f.create, f.start, f.exec, f.update, f.reopen, f.stop}
	if f.image {
		steps = append([]func() error{f.pull}, steps...)
	}
	for _, step := range steps[:f.rng.IntN(len(steps)+1)] {
		if err := step(); err != nil {
			return err
		}
	}
	if f.image {
		if err := f.call("RemoveImage", func(ctx context.Context) error {
			_, err := n.Images.RemoveImage(ctx, &cri.RemoveImageRequest{Image: &cri.ImageSpec{Image: images.Layered}})
			return err
		}); err != nil {
			return err
		}
	}
	if f.rng.IntN(2) == 0 {
		if err := f.call("StopPodSandbox", func(ctx context.Context) error {
			_, err := n.Runtime.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: f.pod})
			return err
		}); err != nil {
			return err
		}
	}
	return f.call("RemovePodSandbox", func(ctx context.Context) error {
		_, err := n.Runtime.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: f.pod})
		return err
	})
}

// call repeats a call until it is answered. Only that nobody is there, or goes meanwhile, is no answer.
func (f *life) call(name string, do func(context.Context) error) error {
	for {
		err := do(f.ctx)
		switch {
		case err == nil:
			return nil
		case f.ctx.Err() != nil:
			return fmt.Errorf("%s never succeeded; at last: %w", name, err)
		case status.Code(err) != codes.Unavailable:
			return fmt.Errorf("%s: %w", name, err)
		}
		select {
		case <-time.After(10 * time.Millisecond):
		case <-f.ctx.Done():
		}
	}
}

func (f *life) pull() error {
	return f.call("PullImage", func(ctx context.Context) error {
		_, err := f.load.rig.node.Images.PullImage(ctx, &cri.PullImageRequest{Image: &cri.ImageSpec{Image: images.Layered}})
		return err
	})
}

func (f *life) create() error {
	config := harness.ContainerConfig("app", images.Tools, "sh", "-c", politeScript)
	withVolume(config)
	config.Linux.Resources = &cri.LinuxContainerResources{MemoryLimitInBytes: 64 << 20}
	return f.call("CreateContainer", func(ctx context.Context) error {
		resp, err := f.load.rig.node.Runtime.CreateContainer(ctx, &cri.CreateContainerRequest{PodSandboxId: f.pod, Config: config, SandboxConfig: f.config})
		f.app = resp.GetContainerId()
		return err
	})
}

func (f *life) start() error {
	return f.call("StartContainer", func(ctx context.Context) error {
		_, err := f.load.rig.node.Runtime.StartContainer(ctx, &cri.StartContainerRequest{ContainerId: f.app})
		if status.Code(err) == codes.FailedPrecondition { // how it has ended says whose fault that is
			resp, _ := f.load.rig.node.Runtime.ContainerStatus(ctx, &cri.ContainerStatusRequest{ContainerId: f.app})
			return fmt.Errorf("%w: %v", err, resp.GetStatus())
		}
		return err
	})
}

func (f *life) exec() error {
	return f.call("ExecSync", func(ctx context.Context) error {
		resp, err := f.load.rig.node.Runtime.ExecSync(ctx, &cri.ExecSyncRequest{ContainerId: f.app, Cmd: []string{"sh", "-c", "echo hello; exit 3"}})
		if err == nil && (string(resp.Stdout) != "hello\n" || resp.ExitCode != 3) {
			err = fmt.Errorf("it printed %q and returned %d", resp.Stdout, resp.ExitCode)
		}
		return err
	})
}

func (f *life) update() error {
	return f.call("UpdateContainerResources", func(ctx context.Context) error {
		_, err := f.load.rig.node.Runtime.UpdateContainerResources(ctx, &cri.UpdateContainerResourcesRequest{
			ContainerId: f.app, Linux: &cri.LinuxContainerResources{MemoryLimitInBytes: 77 << 20},
		})
		return err
	})
}

func (f *life) reopen() error {
	return f.call("ReopenContainerLog", func(ctx context.Context) error {
		_, err := f.load.rig.node.Runtime.ReopenContainerLog(ctx, &cri.ReopenContainerLogRequest{ContainerId: f.app})
		return err
	})
}

// stop stops the container politely, and sees that it was polite.
func (f *life) stop() error {
	n := f.load.rig.node
	if err := f.call("StopContainer", func(ctx context.Context) error {
		_, err := n.Runtime.StopContainer(ctx, &cri.StopContainerRequest{ContainerId: f.app, Timeout: int64(harness.Patience(2 * time.Second).Seconds())})
		return err
	}); err != nil {
		return err
	}
	return f.call("ContainerStatus", func(ctx context.Context) error {
		resp, err := n.Runtime.ContainerStatus(ctx, &cri.ContainerStatusRequest{ContainerId: f.app})
		if err == nil && resp.Status.State != cri.ContainerState_CONTAINER_EXITED {
			err = fmt.Errorf("it was stopped and is %s", resp.Status.State)
		}
		return err
	})
}
