package runtime

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/berth-node/berth/internal/errdefs"
	"github.com/berth-node/berth/runtime/checkpoint"
	"github.com/berth-node/berth/runtime/keeper"
)

// Checkpoint dumps a running container, which goes on running, and writes an archive to location, an absolute path.
func (r *Runtime) Checkpoint(ctx context.Context, id, location string) error {
	c, err := r.running(id, "checkpoint")
	if err != nil {
		return err
	}
	if !filepath.IsAbs(location) {
		return fmt.Errorf("location: %q is not absolute: %w", location, errdefs.ErrInvalidArgument)
	}
	if _, err := checkpoint.Probe(ctx); err != nil {
		return err
	}
	if err := c.op.lock(ctx); err != nil {
		return err
	}
	defer c.op.unlock()
	dir, err := os.MkdirTemp(c.dir, "checkpoint-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	images := filepath.Join(dir, "checkpoint")
	if err := os.Mkdir(images, 0o700); err != nil {
		return err
	}
	k, err := r.keeper.client(ctx)
	if err != nil {
		return err
	}
	began := time.Now()
	err = k.Checkpoint(ctx, c.id(), keeper.CheckpointOptions{
		ImagesDir: images, WorkDir: dir, LeaveRunning: true, TCPEstablished: true, FileLocks: true,
	})
	if err != nil {
		return fmt.Errorf("checkpoint container %s: %w", c.id(), err)
	}
	return r.archiveCheckpoint(ctx, c, dir, location, began)
}

// archiveCheckpoint packs criu's images, which are in dir, with what a restore needs to know.
func (r *Runtime) archiveCheckpoint(ctx context.Context, c *container, dir, location string, at time.Time) error {
	s, err := r.specOf(c)
	if err != nil {
		return err
	}
	spec, err := json.Marshal(s)
	if err != nil {
		return err
	}
	v := r.view(c)
	in := checkpoint.Input{
		ContainerID: v.ID, Name: v.Config.Metadata.Name, ImageRef: v.Image.Ref, ImageID: v.Image.ID, Runtime: v.Handler,
		Spec: spec, LogPath: v.LogPath, ImagesDir: filepath.Join(dir, "checkpoint"), WorkDir: dir,
		RootfsDiffDir: filepath.Join(c.dir, "upper"), LowerDirs: r.lowerDirs(v.Image.ID),
		Pid: v.Pid, CreatedAt: v.CreatedAt, StartedAt: v.StartedAt, CheckpointedAt: at,
	}
	if sb := r.index.sandbox(v.SandboxID); sb != nil {
		in.Network = sb.factsNow().CNI
	}
	return checkpoint.Archive(ctx, location, in)
}

// lowerDirs are the folders of an image's layers, topmost first. Of an image that was removed under its container nothing
// is known any more; the archive is then made without.
func (r *Runtime) lowerDirs(imageID string) []string {
	img, err := r.cfg.Images.Get(imageID)
	if err != nil {
		return nil
	}
	var dirs []string
	for _, chain := range slices.Backward(img.ChainIDs) {
		dirs = append(dirs, r.cfg.Images.Layers().Dir(chain))
	}
	return dirs
}
