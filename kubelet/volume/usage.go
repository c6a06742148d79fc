package volume

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
)

// Usage is the space that a volume takes.
type Usage struct {
	// Name of the volume, and its kind by upstream's name: empty-dir, configmap, nfs.
	Name, Kind    string
	Bytes, Inodes uint64
	// Mounted says that it has a file system of its own, memory or a remote one, and takes nothing of the node's disk.
	Mounted bool
	// On is the file system that it is on; nothing is known of one whose server may not answer.
	On FileSystem
}

// A FileSystem has room, in bytes and in files.
type FileSystem struct {
	Capacity, Available, Inodes, InodesFree uint64
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
	return u.ofFiles(dir)
}

// ofFiles counts the files in a folder, and it.
func (u *Usage) ofFiles(dir *os.File) error {
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(dir.Fd()), &st); err != nil {
		return &os.PathError{Op: "statfs", Path: dir.Name(), Err: err}
	}
	u.On = fileSystem(&st)
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
	u.On = fileSystem(&st)
	return nil
}

func fileSystem(st *unix.Statfs_t) FileSystem {
	block := uint64(st.Bsize)
	return FileSystem{Capacity: st.Blocks * block, Available: st.Bavail * block, Inodes: st.Files, InodesFree: st.Ffree}
}

// Measure returns what the volumes of a pod take, of the kinds that upstream's kubelet measures: those with a folder of the
// node's, and local volumes, of which it looks at the file system. What is on the host anyway, or in an image, is nobody's in
// particular. As with Usage, files are counted.
func (m *Manager) Measure(pod *v1.Pod) ([]Usage, error) {
	var out []Usage
	var failed error
	for i := range pod.Spec.Volumes {
		u := Usage{Name: pod.Spec.Volumes[i].Name}
		path := m.place(pod, &pod.Spec.Volumes[i], &u.Kind)
		if path == "" {
			failed = firstOf(failed, m.measureLocal(pod, &pod.Spec.Volumes[i], &out))
			continue
		}
		if err := u.measure(path); err != nil {
			failed = firstOf(failed, err)
			continue
		}
		if u.On != (FileSystem{}) { // it is there
			out = append(out, u)
		}
	}
	return out, failed
}

// measureLocal adds what the file system of a local volume has, if a claim is bound to one.
func (m *Manager) measureLocal(pod *v1.Pod, v *v1.Volume, out *[]Usage) error {
	if v.PersistentVolumeClaim == nil {
		return nil
	}
	bound, err := m.Bound(pod.Namespace, v.PersistentVolumeClaim.ClaimName)
	if err != nil || bound == nil || bound.Spec.Local == nil {
		return nil // the pod's events say so
	}
	path, err := m.checkLocal(context.Background(), bound)
	if err != nil {
		return err
	}
	u := Usage{Name: v.Name, Kind: localKind, Mounted: true}
	if err := u.ofFileSystem(path); err != nil {
		return err
	}
	*out = append(*out, u)
	return nil
}

// place is the folder of a volume and its kind, if it has one.
func (m *Manager) place(pod *v1.Pod, v *v1.Volume, kind *string) string {
	switch {
	case v.EmptyDir != nil:
		*kind = emptyDirKind
	case v.ConfigMap != nil:
		*kind = configMapKind
	case hasContent(v):
		return filepath.Join(m.MemoryDir, string(pod.UID), v.Name)
	case v.PersistentVolumeClaim != nil:
		name := v.PersistentVolumeClaim.ClaimName
		if bound, err := m.Bound(pod.Namespace, name); bound != nil || err != nil {
			return "" // it is on the host anyway, or its server may not answer
		}
		return m.ClaimDir(pod.Namespace, name)
	default:
		return ""
	}
	return m.path(pod.UID, *kind, v.Name)
}

// MeasureFolder returns what the files in a folder take, as du(1) counts. One that is not there takes nothing.
func MeasureFolder(path string) (Usage, error) {
	var u Usage
	return u, u.measure(path)
}
