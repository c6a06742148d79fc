package runtime

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-node/berth/internal/errdefs"
	"github.com/berth-node/berth/internal/failpoint"
	"github.com/berth-node/berth/runtime/image"
	"github.com/berth-node/berth/runtime/spec"
)

// CreateContainer makes a container in a ready sandbox and leaves its init waiting for the start. As with RunSandbox, a
// repeated call joins the running one or returns the ID of the container that it made.
func (r *Runtime) CreateContainer(ctx context.Context, sandboxID string, cfg *cri.ContainerConfig, _ *cri.PodSandboxConfig) (string, error) {
	if cfg.GetMetadata() == nil {
		return "", fmt.Errorf("config.metadata is missing: %w", errdefs.ErrInvalidArgument)
	}
	sb, err := r.index.findSandbox(sandboxID)
	if err != nil {
		return "", err
	}
	key := containerKey(sb.record.ID, cfg.Metadata)
	return join(ctx, r, key, func() (string, error) {
		if c := r.index.containerByKey(key); c != nil {
			if c.state() == Created {
				return c.id(), nil
			}
			return "", fmt.Errorf("attempt %d at container %s of this sandbox was started already (container %s): %w",
				cfg.Metadata.Attempt, cfg.Metadata.Name, c.id(), errdefs.ErrAlreadyExists)
		}
		if err := r.held.refuseContainer(sb.record.ID, cfg.Metadata.Name); err != nil {
			return "", err
		}
		ctx, cancel := r.detached(createLimit)
		defer cancel()
		ctx, done, err := sb.creations.enter(ctx)
		if err != nil {
			return "", err
		}
		defer done()
		id, err := r.createContainer(ctx, sb, cfg)
		return id, becauseOf(ctx, err)
	})
}

func (r *Runtime) createContainer(ctx context.Context, sb *sandbox, cfg *cri.ContainerConfig) (string, error) {
	if !sb.ready() {
		return "", sb.notReady()
	}
	if err := r.holdNetNS(sb); err != nil {
		return "", err
	}
	if err := spec.ValidateContainer(sb.config, cfg); err != nil {
		return "", err
	}
	r.cfg.Cgroups.Warm() // libcontainer puts init into its cgroup in some milliseconds
	img, err := r.cfg.Images.Get(cfg.GetImage().GetImage())
	if err != nil {
		return "", fmt.Errorf("config.image: %w", err)
	}
	c, err := r.newContainerRecord(sb, cfg, img)
	if err != nil {
		return "", err
	}
	r.index.addMaking(c)
	defer r.index.dropMaking(c)
	failpoint.Here(failpoint.ContainerRecorded)
	if err := r.build(ctx, sb, c, img); err != nil {
		undo, cancel := r.detached(teardownLimit)
		defer cancel()
		r.undoCreate(undo, c)
		return "", fmt.Errorf("create container %s: %w", cfg.Metadata.Name, err)
	}
	return c.id(), nil
}

// undoCreate leaves nothing of a container that could not be made. If that fails, the container is left as exited, for
// its removal to try again.
func (r *Runtime) undoCreate(ctx context.Context, c *container) {
	err := r.eraseContainer(ctx, c)
	if err == nil {
		r.index.dropContainer(c) // where an earlier daemon began to make it
		return
	}
	if r.ctx.Err() != nil {
		return // the next daemon goes on
	}
	r.log.Error("container could not be undone", "container", c.id(), "err", err)
	c.life.Lock()
	defer c.life.Unlock()
	c.making = false
	r.index.addContainer(c)
	if c.state() == Exited { // an earlier daemon failed too
		r.background(func() { r.release(c) })
		return
	}
	_ = r.failStart(c, errors.New("it could not be made"))
}

// newContainerRecord puts on record what is going to be made.
func (r *Runtime) newContainerRecord(sb *sandbox, cfg *cri.ContainerConfig, img image.Image) (*container, error) {
	config, err := marshalProto(cfg)
	if err != nil {
		return nil, fmt.Errorf("config: %w", err)
	}
	id := newID()
	cgroupsPath, err := r.cfg.Cgroups.ContainerPath(sb.record.Anchors.CgroupParent, id)
	if err != nil {
		return nil, err
	}
	signal, err := spec.StopSignal(cfg.GetStopSignal(), img.Config.Config.StopSignal)
	if err != nil {
		return nil, err
	}
	logPath, err := logPathOf(sb.config, cfg)
	if err != nil {
		return nil, err
	}
	c := newContainer(r.paths.container(id))
	c.twin, c.config, c.making = r.paths.containerTwin(id, r.records), cfg, true
	c.record = containerRecord{
		Version: recordVersion, ID: id, SandboxID: sb.record.ID, CreatedAt: time.Now(), Boot: r.boot,
		Image:   imageRecord{ID: img.ID, Ref: imageRef(img), UserSpecified: userSpecified(cfg.GetImage()), Layers: img.ChainIDs},
		LogPath: logPath, CgroupsPath: cgroupsPath, StopSignal: int(signal), Config: config,
	}
	return c, writeRecord(c.dir, c.record)
}

// logPathOf joins the pod's folder and the container's file, which must lie in it.
func logPathOf(pod *cri.PodSandboxConfig, cfg *cri.ContainerConfig) (string, error) {
	if pod.GetLogDirectory() == "" || cfg.GetLogPath() == "" {
		return "", nil
	}
	if !filepath.IsLocal(cfg.LogPath) {
		return "", fmt.Errorf("config.log_path: %q leaves the pod's log_directory: %w", cfg.LogPath, errdefs.ErrInvalidArgument)
	}
	return filepath.Join(pod.LogDirectory, cfg.LogPath), nil
}

func imageRef(img image.Image) string {
	if len(img.RepoDigests) > 0 {
		return img.RepoDigests[0]
	}
	return img.ID
}

func userSpecified(s *cri.ImageSpec) string {
	if s.GetUserSpecifiedImage() != "" {
		return s.UserSpecifiedImage
	}
	return s.GetImage()
}

// build makes the container, in an order in which each step needs only the ones before it.
func (r *Runtime) build(ctx context.Context, sb *sandbox, c *container, img image.Image) error {
	if err := r.cfg.Images.Acquire(img.ID, c.id()); err != nil {
		return err
	}
	if err := makePodDir(r.paths.bundle(c.id()), sb); err != nil {
		return err
	}
	labels, err := r.labels(sb, c.config)
	if err != nil {
		return err
	}
	if err := r.mountRootfs(ctx, sb, c, img, labels.mount); err != nil {
		return fmt.Errorf("root filesystem: %w", err)
	}
	failpoint.Here(failpoint.ContainerMounted)
	s, err := r.specFor(ctx, sb, c, img, labels)
	if err != nil {
		return err
	}
	return r.publishContainer(ctx, sb, c, s)
}

// publishContainer lets the plugins adjust the container, makes its process and only then shows it to everybody.
func (r *Runtime) publishContainer(ctx context.Context, sb *sandbox, c *container, s *specs.Spec) error {
	c.telling.Lock()
	defer c.telling.Unlock()
	release := r.cfg.NRI.Block()
	defer release()
	s, err := r.adjust(ctx, sb, c, s)
	if err != nil {
		return err
	}
	now := time.Now()
	if err = r.followCgroup(c, s); err == nil {
		err = r.launch(ctx, sb, c, s)
	}
	if err == nil {
		failpoint.Here(failpoint.ContainerLimited)
		err = c.update(func(f *containerFacts) { f.MadeAt = now })
	}
	if err != nil {
		// The plugins have seen a container that there will not be.
		if nerr := r.cfg.NRI.RemoveContainer(ctx, r.nriPod(sb), r.nriContainer(c)); nerr != nil {
			r.log.Warn("NRI plugin failed on the removal of a container, ignoring", "container", c.id(), "err", nerr)
		}
		return err
	}
	failpoint.Here(failpoint.ContainerMade)
	r.becomeVisible(c, now)
	if err := r.cfg.NRI.PostCreateContainer(ctx, r.nriPod(sb), r.nriContainer(c)); err != nil {
		r.log.Warn("NRI plugin failed after the creation of a container, ignoring", "container", c.id(), "err", err)
	}
	return nil
}

// becomeVisible shows a container that is made, and then its end if that came already.
func (r *Runtime) becomeVisible(c *container, at time.Time) {
	c.life.Lock()
	c.making = false
	r.index.addContainer(c)
	r.announce(EventCreated, c.record.SandboxID, c.id(), at)
	early := c.early
	c.life.Unlock()
	if early != nil {
		r.finish(c, *early)
	}
}
