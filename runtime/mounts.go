package runtime

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	securejoin "github.com/cyphar/filepath-securejoin"
	"github.com/moby/sys/mountinfo"
	"google.golang.org/protobuf/proto"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
	crierrors "k8s.io/cri-api/pkg/errors"

	"github.com/berth-node/berth/internal/errdefs"
	"github.com/berth-node/berth/internal/failpoint"
	"github.com/berth-node/berth/runtime/image/layer"
	"github.com/berth-node/berth/runtime/spec"
)

// resolveMounts makes the sources of the container's mounts ready on the host.
func (r *Runtime) resolveMounts(ctx context.Context, sb *sandbox, c *container, mountLabel string) ([]spec.Mount, error) {
	var out []spec.Mount
	for i, m := range c.config.GetMounts() {
		source, err := r.mountSource(ctx, sb, c, i, m, mountLabel)
		if err != nil {
			return nil, err
		}
		resolved := spec.NewMount(m, source)
		if m.GetImage().GetImage() != "" {
			resolved.UIDMappings, resolved.GIDMappings = nil, nil // the image's mount is mapped already
		}
		out = append(out, resolved)
	}
	return out, nil
}

func (r *Runtime) mountSource(ctx context.Context, sb *sandbox, c *container, i int, m *cri.Mount, mountLabel string) (string, error) {
	if m.GetImage().GetImage() != "" {
		return r.mountImage(ctx, sb, c, i, m, mountLabel)
	}
	source, err := r.hostPath(ctx, m.HostPath)
	if err != nil {
		return "", fmt.Errorf("mounts[%s].host_path: %w", m.ContainerPath, err)
	}
	if m.Propagation != cri.MountPropagation_PROPAGATION_PRIVATE {
		mounts, err := mountinfo.GetMounts(mountinfo.ParentsFilter(source))
		if err != nil {
			return "", err
		}
		if err := checkPropagation(mounts, source, m); err != nil {
			return "", err
		}
	}
	if m.SelinuxRelabel {
		if err := spec.RelabelSELinux(source, mountLabel); err != nil {
			return "", fmt.Errorf("mounts[%s]: %w", m.ContainerPath, err)
		}
	}
	return source, nil
}

// hostPath follows the symbolic links of a path on the host. A folder that does not exist is made, as other runtimes
// do; the kubelet checks beforehand what it wants to be there.
func (r *Runtime) hostPath(ctx context.Context, path string) (string, error) {
	if !filepath.IsAbs(path) {
		return "", fmt.Errorf("%q is not absolute: %w", path, errdefs.ErrInvalidArgument)
	}
	return r.cfg.HostPaths.Resolve(ctx, path)
}

// checkPropagation refuses a propagation that the mount below the source does not have: it would silently do nothing.
// mounts are those that hold the source, in the order in which they were made.
func checkPropagation(mounts []*mountinfo.Info, source string, m *cri.Mount) error {
	var over *mountinfo.Info
	for _, mount := range mounts {
		if over == nil || len(mount.Mountpoint) >= len(over.Mountpoint) {
			over = mount
		}
	}
	if over == nil {
		return fmt.Errorf("mounts[%s]: no mount holds %s", m.ContainerPath, source)
	}
	shared := strings.Contains(over.Optional, "shared:")
	slave := strings.Contains(over.Optional, "master:")
	switch {
	case m.Propagation == cri.MountPropagation_PROPAGATION_BIDIRECTIONAL && !shared:
		return fmt.Errorf("mounts[%s].propagation: %s is on %s, which is not a shared mount: %w",
			m.ContainerPath, source, over.Mountpoint, errdefs.ErrFailedPrecondition)
	case m.Propagation == cri.MountPropagation_PROPAGATION_HOST_TO_CONTAINER && !shared && !slave:
		return fmt.Errorf("mounts[%s].propagation: %s is on %s, which is neither a shared nor a slave mount: %w",
			m.ContainerPath, source, over.Mountpoint, errdefs.ErrFailedPrecondition)
	}
	return nil
}

// mountImage mounts an image as a volume, and returns the place of the wanted folder in it.
func (r *Runtime) mountImage(ctx context.Context, sb *sandbox, c *container, i int, m *cri.Mount, mountLabel string) (string, error) {
	failed := func(err error) error {
		// The kubelet knows this failure by the beginning of its text.
		return fmt.Errorf("%w: mounts[%s].image: %w", crierrors.ErrImageVolumeMountFailed, m.ContainerPath, err)
	}
	img, err := r.cfg.Images.Get(m.Image.Image)
	if err != nil {
		return "", failed(err)
	}
	if err := r.cfg.Images.Acquire(img.ID, c.id()); err != nil {
		return "", failed(err)
	}
	target := filepath.Join(r.paths.imageMounts(c.id()), fmt.Sprint(i))
	if err := os.MkdirAll(target, 0o711); err != nil { // below the bundle, which keeps others out
		return "", failed(err)
	}
	err = r.cfg.Images.Layers().MountImage(ctx, layer.ImageRequest{
		Chain: img.ChainIDs, Target: target, IDMap: idMapOf(sb), MountLabel: mountLabel,
	})
	if err != nil {
		return "", failed(err)
	}
	failpoint.Here(failpoint.ContainerVolume)
	if m.ImageSubPath == "" {
		return target, nil
	}
	sub, err := imageSubPath(target, m.ImageSubPath)
	if err != nil {
		return "", failed(err)
	}
	return sub, nil
}

// imageSubPath finds a folder of an image; no symbolic link of the image leads out of it.
func imageSubPath(root, sub string) (string, error) {
	if !filepath.IsLocal(sub) {
		return "", fmt.Errorf("image_sub_path %q leaves the image: %w", sub, errdefs.ErrInvalidArgument)
	}
	path, err := securejoin.SecureJoin(root, sub)
	if err != nil {
		return "", err
	}
	st, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "", fmt.Errorf("image_sub_path %q does not exist: %w", sub, errdefs.ErrNotFound)
	case err != nil:
		return "", err
	case !st.IsDir():
		return "", fmt.Errorf("image_sub_path %q is not a folder: %w", sub, errdefs.ErrInvalidArgument)
	}
	return path, nil
}

// statusMounts are the mounts as the status shows them: the request's, images by their ID.
func (r *Runtime) statusMounts(c *container) ([]json.RawMessage, error) {
	var out []json.RawMessage
	for _, m := range c.config.GetMounts() {
		shown := proto.Clone(m).(*cri.Mount)
		if ref := shown.GetImage().GetImage(); ref != "" {
			img, err := r.cfg.Images.Get(ref)
			if err != nil {
				return nil, err
			}
			shown.Image.Image = img.ID
			if shown.Image.UserSpecifiedImage == "" {
				shown.Image.UserSpecifiedImage = ref
			}
		}
		data, err := marshalProto(shown)
		if err != nil {
			return nil, err
		}
		out = append(out, data)
	}
	return out, nil
}
