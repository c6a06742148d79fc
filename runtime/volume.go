package runtime

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	continuity "github.com/containerd/continuity/fs"
	securejoin "github.com/cyphar/filepath-securejoin"

	"github.com/berth-node/berth/runtime/spec"
)

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
