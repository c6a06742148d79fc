package runtime

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-node/berth/internal/errdefs"
	"github.com/berth-node/berth/internal/failpoint"
	"github.com/berth-node/berth/internal/procfs"
	"github.com/berth-node/berth/runtime/keeper"
	"github.com/berth-node/berth/runtime/spec"
)

// A container is a process with its children, in namespaces of its own and of its sandbox.
//
//	            CreateContainer            StartContainer            the kernel            release
//	(nothing) ------------------> created ----------------> running ------------> exited ---------> exited, nothing
//	                                 |                                              ^               left but records and
//	                                 +----- killed, or its command cannot start ----+               the writable layer
//
// RemoveContainer leads from each of them to nothing.
type container struct {
	twin
	record containerRecord
	config *cri.ContainerConfig
	// op serialises updating, checkpointing and removing.
	op opLock
	// life orders the creation, the start and the exit: an exit is not told before what it ends.
	life sync.Mutex
	// making says that nobody has seen the container yet, and early is an exit that came meanwhile. Both need life.
	making bool
	early  *keeper.Exit
	// telling is held over a step of which plugins are told, so that they are told of the end after it, however soon that
	// comes. It is not life, since a plugin takes its time.
	telling sync.Mutex
	// limits serialises changes of the limits; it is held for the change alone, and nothing else is locked under it but mu.
	limits sync.Mutex

	mu    sync.Mutex
	facts containerFacts
	// erased says that the records are being deleted.
	erased bool
	// signaled says that the stop signal was sent, or is being sent, in this life of the daemon.
	signaled bool
	// startTold says that a caller knows of the start.
	startTold bool
	specMemo  *specs.Spec
	// filterMemo is what Runtime.filters has for the container, once an exec has asked.
	filterMemo *keeper.Filter

	// exited is closed when FinishedAt is set, released when nothing is left but the records and the writable layer.
	exited, released chan struct{}
}

func newContainer(dir string) *container {
	return &container{
		twin: twin{dir: dir}, config: &cri.ContainerConfig{}, op: newOpLock(),
		exited: make(chan struct{}), released: make(chan struct{}),
	}
}

// update changes the facts whole, on disk first: nothing is believed that is not written.
func (c *container) update(change func(*containerFacts)) error { return c.change(change, true) }

// note is update for what is true whether or not there is room to write it. After an error a next daemon does not know it.
func (c *container) note(change func(*containerFacts)) error { return c.change(change, false) }

// learn changes the facts of a container that is being made. They are on disk with the next update: of one that is not complete
// a next daemon wants its record alone, by which it takes everything away.
func (c *container) learn(change func(*containerFacts)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	change(&c.facts)
}

func (c *container) change(change func(*containerFacts), must bool) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.erased {
		return errErased
	}
	facts := c.facts
	change(&facts)
	facts.ID = c.record.ID
	facts.Revision++
	err := c.save(c.record, facts, !facts.MadeAt.IsZero(), c.writeAgain)
	if err == nil || !must {
		c.facts = facts
	}
	return err
}

// writeAgain puts the facts as they are into the root dir.
func (c *container) writeAgain() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.erased {
		return errErased
	}
	return c.rewrite(c.record, c.facts, !c.facts.MadeAt.IsZero())
}

// errErased is the error of an update that comes too late. It would write into a folder that is being deleted.
var errErased = fmt.Errorf("it is being removed: %w", errdefs.ErrNotFound)

// erase deletes the records with the writable layer. If that fails they can be updated again.
func (c *container) erase() error {
	c.setErased(true)
	err := c.twin.erase()
	c.setErased(err == nil)
	return err
}

func (c *container) setErased(erased bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.erased = erased
}

func (c *container) factsNow() containerFacts {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.facts
}

func (c *container) state() State { return c.factsNow().state() }

func (c *container) id() string { return c.record.ID }

// precondition is the error of a call that the container's state does not allow.
func (c *container) precondition(call string) error {
	return fmt.Errorf("%s container %s: it is %s: %w", call, c.id(), c.state(), errdefs.ErrFailedPrecondition)
}

// String returns the state as a person would say it.
func (s State) String() string {
	switch s {
	case Created:
		return "created"
	case Running:
		return "running"
	case Exited:
		return "exited"
	default:
		return "unknown"
	}
}

// view is a container without its details.
func (r *Runtime) view(c *container) Container { return r.viewOf(c, c.factsNow()) }

func (r *Runtime) viewOf(c *container, f containerFacts) Container {
	v := Container{
		ID: c.id(), SandboxID: c.record.SandboxID, Config: c.config,
		Image: ContainerImage{
			ID: c.record.Image.ID, Ref: c.record.Image.Ref, UserSpecified: c.record.Image.UserSpecified, Spec: c.config.Image,
		},
		State: f.state(), CreatedAt: c.record.CreatedAt, StartedAt: f.StartedAt, FinishedAt: f.FinishedAt,
		ExitCode: f.ExitCode, Reason: f.Reason, Message: f.Message,
		LogPath: c.record.LogPath, CgroupsPath: c.record.CgroupsPath,
		StopSignal: spec.SignalToCRI(unix.Signal(c.record.StopSignal)), Bundle: r.paths.bundle(c.id()),
	}
	if sb := r.index.sandbox(c.record.SandboxID); sb != nil {
		v.Handler = sb.record.Handler
	}
	if v.State == Created || v.State == Running {
		v.Pid = f.Process.Pid
	}
	return v
}

// details is view with what takes longer to read than all the rest.
func (r *Runtime) details(c *container) Container {
	f := c.factsNow()
	v := r.viewOf(c, f)
	v.Resources = &cri.ContainerResources{Linux: &cri.LinuxContainerResources{}}
	// What the daemon wrote itself it can read; a record damaged later leaves these out of the answer.
	_ = unmarshalProto(f.Resources, v.Resources.Linux)
	if len(f.User) > 0 {
		v.User = &cri.ContainerUser{}
		_ = unmarshalProto(f.User, v.User)
	}
	for _, data := range f.Mounts {
		m := &cri.Mount{}
		if unmarshalProto(data, m) == nil {
			v.Mounts = append(v.Mounts, m)
		}
	}
	return v
}

// Container returns the container of this ID, or of the only ID that begins so.
func (r *Runtime) Container(_ context.Context, id string) (Container, error) {
	c, err := r.index.findContainer(id)
	if err != nil {
		return Container{}, err
	}
	return r.details(c), nil
}

// CheckRunning returns the container if a process can be started in it or attached to it.
func (r *Runtime) CheckRunning(_ context.Context, id string) (Container, error) {
	c, err := r.running(id, "enter")
	if err != nil {
		return Container{}, err
	}
	return r.view(c), nil
}

func (r *Runtime) running(id, call string) (*container, error) {
	c, err := r.index.findContainer(id)
	if err != nil {
		return nil, err
	}
	if c.state() != Running {
		return nil, c.precondition(call)
	}
	return c, nil
}

// Containers returns the containers that fit, newest first, without their details.
func (r *Runtime) Containers(f ContainerFilter) []Container {
	var out []Container
	for _, c := range r.selected(f) {
		out = append(out, r.view(c))
	}
	return out
}

// SandboxContainers returns the containers of a sandbox, newest first, with their details.
func (r *Runtime) SandboxContainers(id string) []Container {
	var out []Container
	for _, c := range r.selected(ContainerFilter{SandboxID: id}) {
		out = append(out, r.details(c))
	}
	return out
}

// selected returns the containers that fit, newest first.
func (r *Runtime) selected(f ContainerFilter) []*container {
	candidates := r.index.allContainers()
	if f.ID != "" {
		c, err := r.index.findContainer(f.ID)
		if err != nil {
			return nil
		}
		candidates = []*container{c}
	}
	if f.SandboxID != "" {
		sb, err := r.index.findSandbox(f.SandboxID)
		if err != nil {
			return nil
		}
		candidates = slices.DeleteFunc(candidates, func(c *container) bool { return c.record.SandboxID != sb.record.ID })
	}
	candidates = slices.DeleteFunc(candidates, func(c *container) bool {
		return f.State != nil && c.state() != *f.State || !hasLabels(c.config.Labels, f.Labels)
	})
	slices.SortFunc(candidates, func(a, b *container) int { return b.record.CreatedAt.Compare(a.record.CreatedAt) })
	return candidates
}

// StartContainer lets the container's init run its command. Nobody starts it twice; but the first call after one whose
// caller got no answer gets that answer.
func (r *Runtime) StartContainer(ctx context.Context, id string) error {
	c, err := r.index.findContainer(id)
	if err != nil {
		return err
	}
	err = joinErr(ctx, r, "start "+c.id(), func() error {
		ctx, cancel := r.detached(createLimit)
		defer cancel()
		return r.startContainer(ctx, c)
	})
	if err == nil {
		c.mu.Lock()
		c.startTold = true
		c.mu.Unlock()
	}
	return err
}

// startUntold reports whether the container was started and no caller knows: each gave up waiting, or was an earlier
// daemon's. Who asks again then asks for the result.
func (c *container) startUntold() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return !c.startTold && !c.facts.StartedAt.IsZero()
}

func (r *Runtime) startContainer(ctx context.Context, c *container) error {
	sb := r.index.sandbox(c.record.SandboxID)
	if sb == nil || !sb.ready() {
		return fmt.Errorf("start container %s: its sandbox is not ready: %w", c.id(), errdefs.ErrFailedPrecondition)
	}
	if c.startUntold() {
		return nil
	}
	if c.state() != Created {
		return c.precondition("start")
	}
	c.telling.Lock()
	defer c.telling.Unlock()
	release := r.cfg.NRI.Block()
	defer release()
	if err := r.cfg.NRI.StartContainer(ctx, r.nriPod(sb), r.nriContainer(c)); err != nil {
		c.life.Lock()
		defer c.life.Unlock()
		return r.failStart(c, fmt.Errorf("NRI plugin refused it: %w", err))
	}
	if err := r.openFifo(ctx, c); err != nil {
		return err
	}
	if err := r.cfg.NRI.PostStartContainer(ctx, r.nriPod(sb), r.nriContainer(c)); err != nil {
		r.log.Warn("NRI plugin failed after the start of a container, ignoring", "container", c.id(), "err", err)
	}
	return nil
}

// openFifo lets init go on. It holds life, so that the exit of a short command is told after its start.
func (r *Runtime) openFifo(ctx context.Context, c *container) error {
	c.life.Lock()
	defer c.life.Unlock()
	f := c.factsNow()
	if f.state() != Created {
		return c.precondition("start")
	}
	if f.CommandError != "" {
		return r.failStart(c, fmt.Errorf("%s", f.CommandError))
	}
	if err := r.startInKeeper(ctx, c); err != nil {
		if r.ctx.Err() != nil || errors.Is(err, errdefs.ErrUnavailable) {
			return err // what became of it, the next daemon asks the next keeper, or whoever starts it again
		}
		return r.failStart(c, err)
	}
	failpoint.Here(failpoint.StartDone)
	now := time.Now()
	if err := c.update(func(f *containerFacts) { f.StartedAt = now }); err != nil {
		return r.failStart(c, err)
	}
	failpoint.Here(failpoint.StartRecorded)
	r.announce(EventStarted, c.record.SandboxID, c.id(), now)
	return nil
}

// startInKeeper has the keeper start the workload. If the keeper dies over it, the next one says what became of that.
func (r *Runtime) startInKeeper(ctx context.Context, c *container) error {
	k, err := r.keeper.client(ctx)
	if err != nil {
		return err
	}
	failpoint.Here(failpoint.StartAsked)
	for {
		err := k.Start(ctx, c.id())
		if err == nil || k.Err() == nil {
			return err
		}
		if k, err = r.keeper.client(ctx); err != nil {
			return err
		}
		states, err := k.List(ctx)
		if err != nil {
			continue // it is dead too
		}
		i := slices.IndexFunc(states, func(s keeper.State) bool { return s.ID == c.id() })
		if i < 0 {
			return errors.New("its init died with the keeper")
		}
		if states[i].Phase != keeper.PhaseCreated {
			return nil // and if it has ended already, that comes as every exit does
		}
	}
}

// startErrorCode is the exit code of a container that could not be started, as other runtimes have it.
const startErrorCode = 128

// failStart makes the container exited with the reason StartError, and returns the error for the caller. It needs
// c.life.
func (r *Runtime) failStart(c *container, cause error) error {
	if c.state() != Exited {
		r.becomeExited(c, time.Now(), startErrorCode, "StartError", cause.Error())
	}
	return fmt.Errorf("start container %s: %w", c.id(), cause)
}

// process returns init as long as it may live.
func (f containerFacts) process() (procfs.Process, bool) {
	return f.Process, f.Process.Pid != 0 && f.FinishedAt.IsZero()
}
