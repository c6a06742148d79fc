package layer

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"syscall"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

func (m IDMap) isZero() bool { return m.UserNS == "" && len(m.UID) == 0 && len(m.GID) == 0 }

// root returns the owner, on disk, of what root creates inside.
func (m IDMap) root() (uid, gid int) { return hostID(m.UID), hostID(m.GID) }

func hostID(maps []specs.LinuxIDMapping) int {
	for _, m := range maps {
		if m.ContainerID == 0 && m.Size > 0 {
			return int(m.HostID)
		}
	}
	return 0
}

// open opens a user namespace with these mappings.
func (m IDMap) open() (*os.File, error) {
	if m.UserNS != "" {
		return os.Open(m.UserNS)
	}
	return newUserNS(m)
}

// newUserNS makes a user namespace. Only a process can be in a new one, and a Go program, having threads, cannot go
// there itself; so a child is started there, stopped by ptrace before its first instruction, and killed.
func newUserNS(m IDMap) (*os.File, error) {
	// The tracer is a thread, and the child's parent death signal looks at the thread too.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	p, err := os.StartProcess("/proc/self/exe", []string{"userns"}, &os.ProcAttr{Sys: &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER,
		UidMappings: sysMappings(m.UID),
		GidMappings: sysMappings(m.GID),
		Ptrace:      true,
		Pdeathsig:   syscall.SIGKILL,
	}})
	if err != nil {
		return nil, fmt.Errorf("make a user namespace: %w", err)
	}
	ns, err := os.Open("/proc/" + strconv.Itoa(p.Pid) + "/ns/user")
	err = errors.Join(err, p.Kill())
	_, werr := p.Wait()
	if err = errors.Join(err, werr); err != nil && ns != nil {
		ns.Close()
	}
	return ns, err
}

func sysMappings(maps []specs.LinuxIDMapping) []syscall.SysProcIDMap {
	var out []syscall.SysProcIDMap
	for _, m := range maps {
		out = append(out, syscall.SysProcIDMap{ContainerID: int(m.ContainerID), HostID: int(m.HostID), Size: int(m.Size)})
	}
	return out
}

// clone returns a detached copy of the mount of dir and all below it, with the given attributes, and idmapped if m is
// not zero. The caller closes it.
func clone(dir string, m IDMap, attr uint64) (int, error) {
	fd, err := unix.OpenTree(unix.AT_FDCWD, dir, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return -1, &os.PathError{Op: "open_tree", Path: dir, Err: err}
	}
	set := unix.MountAttr{Attr_set: attr, Propagation: unix.MS_PRIVATE}
	if !m.isZero() {
		ns, err := m.open()
		if err != nil {
			unix.Close(fd)
			return -1, err
		}
		defer ns.Close()
		set.Attr_set |= unix.MOUNT_ATTR_IDMAP
		set.Userns_fd = uint64(ns.Fd())
	}
	if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &set); err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("mount_setattr %s, to map its owners: %w", dir, err)
	}
	return fd, nil
}

// withLower calls mount with the trees of a chain, topmost first, as m shows them. All layers are mapped by one clone
// of the directory that they lie in: one for each would cost a mount per layer and container.
func (s *Store) withLower(chain []digest.Digest, m IDMap, mount func([]directory) error) error {
	if m.isZero() {
		return mount(s.lower(chain, ""))
	}
	tree, err := clone(s.dir, m, 0)
	if err != nil {
		return err
	}
	defer unix.Close(tree)
	if !s.kernel.noDetachedLower.Load() {
		err := s.mountFrom(procPath(tree), chain, mount)
		if !errors.Is(err, unix.EINVAL) {
			return err
		}
	}
	// Older kernels take layers only from mounts that are attached somewhere; for the moment of the mount.
	at, err := os.MkdirTemp(s.path("ingest"), "idmap-")
	if err != nil {
		return err
	}
	if err := attach(tree, at); err != nil {
		return errors.Join(err, os.Remove(at))
	}
	err = s.mountFrom(at, chain, mount)
	if err == nil {
		s.kernel.noDetachedLower.Store(true)
	}
	return errors.Join(err, Unmount(at), os.Remove(at))
}

func procPath(fd int) string { return "/proc/self/fd/" + strconv.Itoa(fd) }

// mountFrom calls mount with the trees of a chain that are seen through the clone of the store at root.
func (s *Store) mountFrom(root string, chain []digest.Digest, mount func([]directory) error) error {
	o := overlay{lower: s.lower(chain, root)}
	fds, err := o.openLower()
	defer closeAll(fds)
	if err != nil {
		return err
	}
	return mount(o.lower)
}

// lower returns the trees of a chain, topmost first, in the store or in the clone of it that is seen at root.
func (s *Store) lower(chain []digest.Digest, root string) []directory {
	if root == "" {
		root = s.dir
	}
	if len(chain) == 0 {
		return []directory{{path: filepath.Join(root, "empty"), fd: -1}}
	}
	dirs := make([]directory, len(chain))
	for i, c := range chain {
		dirs[len(chain)-1-i] = directory{path: filepath.Join(root, "layers", c.Encoded(), treeName), fd: -1}
	}
	return dirs
}
