package volume

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	v1 "k8s.io/api/core/v1"
)

// checkHostPath makes what the type says is to be made, and refuses a path where something of another type is. Without a
// type nothing is looked at.
func (m *Manager) checkHostPath(ctx context.Context, h *v1.HostPathVolumeSource) error {
	if h.Type == nil || *h.Type == v1.HostPathUnset {
		return nil
	}
	wanted, ok := hostPathTypes[*h.Type]
	if !ok {
		return fmt.Errorf("%s is an invalid volume type", *h.Type)
	}
	mode, err := m.HostPaths.Mode(ctx, h.Path)
	if errors.Is(err, fs.ErrNotExist) {
		switch *h.Type {
		case v1.HostPathDirectoryOrCreate:
			_, err := m.HostPaths.Resolve(ctx, h.Path)
			return err
		case v1.HostPathFileOrCreate:
			return m.HostPaths.MakeFile(ctx, h.Path)
		}
		mode, err = fs.ModeIrregular, nil
	}
	if err != nil {
		return err
	}
	if mode.Type() != wanted.mode {
		return fmt.Errorf("hostPath type check failed: %s is not a %s", h.Path, wanted.words)
	}
	return nil
}

// hostPathTypes are what is wanted at the path, and upstream's words for it.
var hostPathTypes = map[v1.HostPathType]struct {
	mode  fs.FileMode
	words string
}{
	v1.HostPathDirectoryOrCreate: {fs.ModeDir, "directory"},
	v1.HostPathDirectory:         {fs.ModeDir, "directory"},
	v1.HostPathFileOrCreate:      {0, "file"},
	v1.HostPathFile:              {0, "file"},
	v1.HostPathSocket:            {fs.ModeSocket, "socket file"},
	v1.HostPathCharDev:           {fs.ModeDevice | fs.ModeCharDevice, "character device"},
	v1.HostPathBlockDev:          {fs.ModeDevice, "block device"},
}
