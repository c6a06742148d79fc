package runtime

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	continuity "github.com/containerd/continuity/fs"
	securejoin "github.com/cyphar/filepath-securejoin"
	"golang.org/x/sys/unix"

	"github.com/berth-node/berth/internal/errdefs"
	"github.com/berth-node/berth/runtime/image"
	"github.com/berth-node/berth/runtime/spec"
)

// imageVolumes makes the folders that stand for the image's VOLUMEs, with what the image has at these places.
func (r *Runtime) imageVolumes(c *container, img image.Image, sb *sandbox) ([]spec.Volume, error) {
	mounted := map[string]bool{}
	for _, m := range c.config.GetMounts() {
		mounted[filepath.Clean(m.GetContainerPath())] = true
	}
	if err := checkVolumes(img.Config.Config.Volumes); err != nil {
		return nil, err
	}
	var volumes []spec.Volume
	for _, path := range slices.Sorted(maps.Keys(img.Config.Config.Volumes)) { // one may lie in another
		if mounted[filepath.Clean(path)] {
			continue
		}
		mounted[filepath.Clean(path)] = true // an image may say it twice
		source := filepath.Join(c.dir, "volumes", strconv.Itoa(len(volumes)))
		if err := copyVolume(r.paths.rootfs(c.id()), path, source, sb); err != nil {
			return nil, fmt.Errorf("volume %s of the image: %w", path, err)
		}
		volumes = append(volumes, spec.Volume{Source: source, Destination: path})
	}
	return volumes, nil
}

// checkVolumes refuses paths that can be none, and more volumes than an image has reason for: each costs a folder and a mount.
func checkVolumes(volumes map[string]struct{}) error {
	if len(volumes) > maxImageVolumes {
		return fmt.Errorf("image: it names %d volumes, and may %d: %w", len(volumes), maxImageVolumes, errdefs.ErrInvalidArgument)
	}
	for path := range volumes {
		if len(path) >= unix.PathMax || strings.ContainsRune(path, 0) {
			return fmt.Errorf("image: its volume %.100q is no path: %w", path, errdefs.ErrInvalidArgument)
		}
	}
	return nil
}

const maxImageVolumes = 1000

// copyVolume fills source, the folder that stands for a VOLUME of an image, with what the image has at path. Without a
// folder at this place in the image, it is empty and belongs to root.
func copyVolume(rootfs, path, source string, sb *sandbox) error {
	if err := os.MkdirAll(source, 0o755); err != nil {
		return err
	}
	from, err := securejoin.SecureJoin(rootfs, path)
	if err != nil {
		return err
	}
	st, err := os.Stat(from)
	if errors.Is(err, fs.ErrNotExist) {
		if m := spec.UserMapping(sb.config); m != nil {
			return os.Chown(source, int(m.HostID), int(m.HostID))
		}
		return nil
	}
	if err != nil {
		return err
	}
	if !st.IsDir() {
		return fmt.Errorf("%s is not a folder in the image", path)
	}
	return continuity.CopyDir(source, from)
}
