package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/berth-node/berth/internal/admin"
	"github.com/berth-node/berth/internal/config"
	"github.com/berth-node/berth/runtime"
	"github.com/berth-node/berth/runtime/image"
)

// backend is what the operator's door of n calls.
func (b *berth) backend(n *node) admin.Backend {
	return admin.Backend{
		Images: func() []admin.Image {
			out := []admin.Image{}
			for _, img := range n.images.List() {
				out = append(out, adminImage(img))
			}
			return out
		},
		Load:   n.loadImages,
		Save:   func(ctx context.Context, to io.Writer, refs []string) error { return n.images.Save(ctx, to, refs...) },
		Pull:   n.pullImage,
		Remove: n.removeImage,
		Status: n.status,
		Repair: n.runtime.Repair,
		GiveUp: n.runtime.GiveUp,
		Drain: func(ctx context.Context, grace time.Duration, tell func(string)) error {
			if !b.exclusive.TryLock() {
				return errBusy
			}
			err := n.drain(ctx, grace, tell)
			if err != nil { // otherwise this daemon ends
				b.exclusive.Unlock()
			}
			return err
		},
		Stop:    func() { close(n.drained) },
		Upgrade: b.upgrade,
		ReplaceKeeper: func(ctx context.Context) (string, error) {
			binary := b.cfg.Keeper
			if binary == config.KeeperExternal {
				var err error
				if binary, err = config.FindKeeper(b.exe); err != nil {
					return "", err
				}
			}
			return n.runtime.ReplaceKeeper(ctx, binary, b.cfg.Launch)
		},
	}
}

func adminImage(img image.Image) admin.Image {
	return admin.Image{
		ID: img.ID, RepoTags: img.RepoTags, RepoDigests: img.RepoDigests, Size: img.Size, Pinned: img.Pinned, Pulled: img.Pulled,
	}
}

func (n *node) loadImages(ctx context.Context, archive io.Reader, name string) ([]admin.Image, error) {
	images, err := n.images.Load(ctx, archive, image.LoadOptions{Name: name})
	if err != nil {
		return nil, err
	}
	// An archive may name an image several times; the last mention knows all of its names.
	out := []admin.Image{}
	for _, img := range images {
		loaded := adminImage(img)
		if i := slices.IndexFunc(out, func(o admin.Image) bool { return o.ID == loaded.ID }); i >= 0 {
			out[i] = loaded
		} else {
			out = append(out, loaded)
		}
	}
	return out, nil
}

func (n *node) pullImage(ctx context.Context, ref string, creds admin.Credentials, tell func(string)) (admin.Image, error) {
	var auth *image.Auth
	if creds.Username != "" {
		auth = &image.Auth{Username: creds.Username, Password: creds.Password}
	}
	began := time.Now()
	img, err := n.images.Pull(ctx, ref, auth, image.PullOptions{Progress: func(p image.Progress) {
		tell(fmt.Sprintf("%d of %d layers, %s of %s", p.LayersDone, p.Layers, humanSize(uint64(p.BytesDone)), humanSize(uint64(p.Bytes))))
	}})
	n.metrics.ImagePulled(time.Since(began), img.Size, err)
	return adminImage(img), err
}

// removeImage differs from the CRI's removal in that an operator wants to know of a typing error.
func (n *node) removeImage(ctx context.Context, ref string) error {
	if _, err := n.images.Get(ref); err != nil {
		return err
	}
	return n.images.Remove(ctx, ref)
}

func (n *node) status(ctx context.Context) admin.Status {
	s := n.runtime.Status(ctx)
	out := admin.Status{
		Version: version, CgroupDriver: string(s.CgroupDriver), Limitations: append(s.Limitations, n.runtime.LostOutput(ctx)...), Damaged: s.Damaged,
		Sandboxes:  len(n.runtime.Sandboxes(runtime.SandboxFilter{})),
		Containers: len(n.runtime.Containers(runtime.ContainerFilter{})),
	}
	if s.Runtime != nil {
		out.RuntimeError = s.Runtime.Error()
	}
	if s.Network != nil {
		out.NetworkError = s.Network.Error()
	}
	select {
	case <-n.started:
		n.selfStatus(&out)
	default:
	}
	out.Lingering = lingeringStatus(n.cfg.RunDir)
	for _, h := range s.Handlers {
		name := h.Name
		if name == "" {
			name = "(default)"
		}
		out.Handlers = append(out.Handlers, name)
	}
	return out
}

// selfStatus adds how it stands with the node's own pods.
func (n *node) selfStatus(out *admin.Status) {
	out.Limitations = append(out.Limitations, n.lacks...)
	if n.self == nil {
		return
	}
	for _, f := range n.self.declared.Faults() {
		out.Manifests = append(out.Manifests, f.Error())
	}
}

// drainGrace is what containers get that came through the CRI, which does not say.
const drainGrace = 10 * time.Second

// drain leaves nothing of berth on the node but its images and, as long as this process lives, its sockets.
func (n *node) drain(ctx context.Context, grace time.Duration, tell func(string)) error {
	if err := n.drainSelf(ctx, grace, tell); err != nil {
		return err
	}
	if grace == 0 {
		grace = drainGrace
	}
	if err := n.runtime.Drain(ctx, grace, tell); err != nil {
		return err
	}
	if n.builtin != nil {
		if err := n.builtin.Teardown(ctx); err != nil {
			return fmt.Errorf("built-in network: %w", err)
		}
	}
	return n.runtime.ShutdownKeeper(ctx)
}
