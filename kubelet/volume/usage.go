package volume

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
	"k8s.io/apimachinery/pkg/types"
)

// Usage is the space that a volume takes.
type Usage struct {
	// Name of the volume, and its kind by upstream's name: empty-dir, configmap, nfs.
	Name, Kind    string
	Bytes, Inodes uint64
	// Mounted says that it has a file system of its own, memory or a remote one, and takes nothing of the node's disk.
	Mounted bool
}

// Usage returns what the volumes in a pod's folder take. For those that are not mounted all files are counted, which takes
// as long as they are many.
func (m *Manager) Usage(uid types.UID) ([]Usage, error) {
	volumes := filepath.Join(m.podDir(uid), "volumes")
	kinds, err := os.ReadDir(volumes)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	var out []Usage
	var failed error
	for _, k := range kinds {
		_, kind, _ := strings.Cut(k.Name(), "~")
		names, err := os.ReadDir(filepath.Join(volumes, k.Name()))
		failed = firstOf(failed, err)
		for _, n := range names {
			if strings.HasPrefix(n.Name(), newPrefix) {
				continue
			}
			u := Usage{Name: n.Name(), Kind: kind}
			failed = firstOf(failed, u.measure(filepath.Join(volumes, k.Name(), n.Name())))
			out = append(out, u)
		}
	}
	return out, failed
}

func (u *Usage) measure(path string) error {
	there, err := mounted(path)
	if err != nil {
		return err
	}
	if u.Mounted = there; there {
		if u.Kind == nfsKind { // its server may not answer
			return nil
		}
		return u.ofFileSystem(path)
	}
	dir, err := openDir(path)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return err
	}
	defer dir.Close()
	u.Inodes = 1
	linked := map[uint64]bool{}
	return walk(dir, func(e entry) error {
		if e.stat.Nlink > 1 && e.stat.Mode&unix.S_IFMT != unix.S_IFDIR {
			if linked[e.stat.Ino] {
				return nil
			}
			linked[e.stat.Ino] = true
		}
		u.Inodes++
		u.Bytes += uint64(e.stat.Blocks) * 512
		return nil
	})
}

func (u *Usage) ofFileSystem(path string) error {
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return &os.PathError{Op: "statfs", Path: path, Err: err}
	}
	u.Bytes = (st.Blocks - st.Bfree) * uint64(st.Bsize)
	u.Inodes = st.Files - st.Ffree
	return nil
}
