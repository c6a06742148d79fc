package layer

import (
	"context"
	"errors"
	"fmt"
	"io"
	iofs "io/fs"
	"os"
	"path/filepath"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// IDMap says how the owners of the files of a read-only layer look from inside a mount. The zero value changes nothing.
type IDMap struct {
	// UID and GID are the mappings of the user namespace that will see the mount.
	UID, GID []specs.LinuxIDMapping
	// UserNS is the path of a user namespace that has these mappings, where the caller has one: making one costs the
	// start and the end of a process.
	UserNS string
}

// RootRequest describes the root filesystem of a container.
type RootRequest struct {
	Chain []digest.Digest // lowest first; empty for an image without layers
	// Upper takes what the container writes, Work is overlayfs's own. Both must be on one filesystem and are made if
	// they are not there. What is in Work is lost.
	Upper, Work string
	// Target is where the root is mounted. It is made if it is not there.
	Target   string
	ReadOnly bool
	IDMap    IDMap
	// MountLabel is the SELinux context of all files in the root; empty for none.
	MountLabel string
	// Volatile leaves out every sync of the upper layer: at unmount, and when the container asks. After a crash of the
	// machine the upper layer must be thrown away.
	Volatile bool
}

// ImageRequest describes an image that is mounted into containers as a volume.
type ImageRequest struct {
	Chain      []digest.Digest // lowest first
	Target     string          // made if it is not there
	IDMap      IDMap
	MountLabel string
}

// MountRoot mounts the root filesystem of a container. It does nothing if Target is a mount already. It waits for
// nothing but the kernel: no sync, and no process unless an IDMap comes without a user namespace.
func (s *Store) MountRoot(ctx context.Context, req RootRequest) error {
	if err := s.prepare(ctx, req.Chain, req.Target); err != nil {
		return mountedOr(err)
	}
	if err := makeUpper(req.Upper, req.IDMap); err != nil {
		return err
	}
	return s.withLower(req.Chain, req.IDMap, func(lower []directory) error {
		if err := renewWork(req.Work); err != nil {
			return err
		}
		return s.mountOverlay(overlay{
			lower: lower, upper: req.Upper, work: req.Work, target: req.Target,
			label: req.MountLabel, readOnly: req.ReadOnly, volatile: req.Volatile,
		})
	})
}

// MountImage mounts an image read-only. It does nothing if Target is a mount already.
func (s *Store) MountImage(ctx context.Context, req ImageRequest) error {
	if err := s.prepare(ctx, req.Chain, req.Target); err != nil {
		return mountedOr(err)
	}
	if len(req.Chain) <= 1 && req.MountLabel == "" {
		// One layer is a directory like any other. Only an overlay can give it a label.
		m, err := clone(s.lower(req.Chain, "")[0].path, req.IDMap, unix.MOUNT_ATTR_RDONLY)
		if err != nil {
			return err
		}
		defer unix.Close(m)
		return attach(m, req.Target)
	}
	return s.withLower(req.Chain, req.IDMap, func(lower []directory) error {
		if len(lower) == 1 {
			// Overlayfs wants two directories when none is to be written to.
			lower = append(lower, directory{path: s.path("empty"), fd: -1})
		}
		return s.mountOverlay(overlay{lower: lower, target: req.Target, label: req.MountLabel, readOnly: true})
	})
}

var errMounted = errors.New("mounted already")

func mountedOr(err error) error {
	if errors.Is(err, errMounted) {
		return nil
	}
	return err
}

// prepare makes the mount point and checks that all layers are there: a mount of a missing one says nothing useful.
func (s *Store) prepare(ctx context.Context, chain []digest.Digest, target string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	for _, c := range chain {
		if _, err := s.Get(c); err != nil {
			return err
		}
	}
	// Root in a user namespace must be able to pass here.
	if err := os.MkdirAll(target, 0o711); err != nil {
		return err
	}
	mounted, err := isMount(target)
	if err != nil {
		return err
	}
	if mounted {
		return errMounted
	}
	return nil
}

// isMount asks the kernel whether a mount is at p; reading the table of mounts would cost more with each pod.
func isMount(p string) (bool, error) {
	var st unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, p, unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT, 0, &st); err != nil {
		return false, &os.PathError{Op: "statx", Path: p, Err: err}
	}
	return st.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0, nil
}

// makeUpper makes the directory whose attributes become those of the container's "/". One that holds something is left
// as it is: the container may have changed it.
func makeUpper(dir string, m IDMap) error {
	if err := os.MkdirAll(filepath.Dir(dir), 0o711); err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o755); err != nil {
		if !errors.Is(err, iofs.ErrExist) {
			return err
		}
		if used, err := holdsFiles(dir); used || err != nil {
			return err
		}
	}
	uid, gid := m.root()
	if err := os.Chown(dir, uid, gid); err != nil {
		return err
	}
	return os.Chmod(dir, 0o755) // whatever the umask
}

// renewWork makes the work directory empty. A volatile overlay refuses one that was used before: for a root that was
// unmounted in order, and also for a mount that failed.
func renewWork(dir string) error {
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	return os.MkdirAll(dir, 0o700)
}

func holdsFiles(dir string) (bool, error) {
	d, err := os.Open(dir)
	if err != nil {
		return false, err
	}
	defer d.Close()
	_, err = d.Readdirnames(1)
	if errors.Is(err, io.EOF) {
		return false, nil
	}
	return err == nil, err
}

// Unmount takes the mount at target away, at once for all who come after, and later for those who still use it. It
// does nothing where no mount or no directory is.
func Unmount(target string) error {
	err := unix.Unmount(target, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
	if err == nil || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
		return nil
	}
	return fmt.Errorf("unmount %s: %w", target, err)
}
