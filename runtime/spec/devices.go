package spec

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-node/berth/internal/errdefs"
)

// A Device is a device of the host for one container.
type Device struct {
	specs.LinuxDevice
	// Source is where it is on the host; Path is where it is in the container.
	Source string
	// Permissions is a combination of r (read), w (write) and m (mknod).
	Permissions string
}

// errNotDevice says that a file is no device node.
var errNotDevice = errors.New("not a device")

func validateDevice(d *cri.Device) error {
	if d.GetHostPath() == "" {
		return invalid("devices.host_path", "is empty")
	}
	if strings.Trim(d.GetPermissions(), "rwm") != "" {
		return invalid(fmt.Sprintf("devices[%s].permissions", d.GetHostPath()), "%q is not made of r, w and m", d.GetPermissions())
	}
	return nil
}

// devices adds the devices of the request and, for privileged containers, those of the host. What libcontainer gives to
// everybody (null, zero, a terminal…) it adds by itself.
func (b *builder) devices() error {
	linux := b.spec.Linux
	rules := []specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}}
	taken := map[string]bool{}
	for _, d := range b.Devices {
		if taken[d.Path] {
			continue
		}
		taken[d.Path] = true
		if UserMapping(b.Sandbox) != nil && d.Source != "" && d.Source != d.Path {
			// In a user namespace no device node can be made. libcontainer then binds the host's, which it looks for at the same
			// path; so one at another path is bound here.
			b.spec.Mounts = append(b.spec.Mounts, specs.Mount{
				Source: d.Source, Destination: d.Path, Type: "bind", Options: []string{"bind", "rprivate", "nosuid", "noexec"},
			})
		} else {
			linux.Devices = append(linux.Devices, d.LinuxDevice)
		}
		major, minor := d.Major, d.Minor
		access := d.Permissions
		if access == "" {
			access = "rwm"
		}
		rules = append(rules, specs.LinuxDeviceCgroup{Allow: true, Type: d.Type, Major: &major, Minor: &minor, Access: access})
	}
	if b.sc.GetPrivileged() && !b.Handler.PrivilegedWithoutHostDevices {
		for _, d := range b.Node.Devices {
			if !taken[d.Path] {
				linux.Devices = append(linux.Devices, d)
			}
		}
		rules = []specs.LinuxDeviceCgroup{{Allow: true, Access: "rwm"}}
	}
	linux.Resources.Devices = rules
	return nil
}

// ResolveDevices looks up the devices that CRI names. A folder stands for all devices in it.
func ResolveDevices(devices []*cri.Device) ([]Device, error) {
	var found []Device
	for _, d := range devices {
		host, err := filepath.EvalSymlinks(d.GetHostPath())
		if err != nil {
			class := errdefs.ErrInvalidArgument
			if errors.Is(err, fs.ErrNotExist) {
				class = errdefs.ErrNotFound
			}
			return nil, fmt.Errorf("devices[%s]: %w: %w", d.GetHostPath(), err, class)
		}
		inside := d.GetContainerPath()
		if inside == "" {
			inside = d.GetHostPath()
		}
		inside = path.Join("/", inside)
		nodes, err := devicesAt(host, inside)
		if errors.Is(err, errNotDevice) {
			err = invalid("devices.host_path", "%s is not a device", d.GetHostPath())
		}
		if err != nil {
			return nil, fmt.Errorf("devices[%s]: %w", d.GetHostPath(), err)
		}
		for _, n := range nodes {
			source := filepath.Join(host, strings.TrimPrefix(n.Path, inside))
			found = append(found, Device{LinuxDevice: n, Source: source, Permissions: d.GetPermissions()})
		}
	}
	return found, nil
}

// HostDevices lists the devices in /dev that a privileged container sees.
func HostDevices() ([]specs.LinuxDevice, error) {
	return devicesAt("/dev", "/dev")
}

// devicesAt lists the device, or the devices in the folder, at host with their paths below inside.
func devicesAt(host, inside string) ([]specs.LinuxDevice, error) {
	var st unix.Stat_t
	if err := unix.Lstat(host, &st); err != nil {
		return nil, &os.PathError{Op: "lstat", Path: host, Err: err}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		d, err := newDevice(&st, inside)
		if err != nil {
			return nil, err
		}
		return []specs.LinuxDevice{d}, nil
	}
	entries, err := os.ReadDir(host)
	if err != nil {
		return nil, err
	}
	var found []specs.LinuxDevice
	for _, e := range entries {
		if !e.IsDir() && e.Type()&fs.ModeDevice == 0 || skipped(e.Name()) {
			continue
		}
		below, err := devicesAt(filepath.Join(host, e.Name()), path.Join(inside, e.Name()))
		// Devices come and go.
		if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, errNotDevice) {
			return nil, err
		}
		found = append(found, below...)
	}
	return found, nil
}

// skipped are the entries of /dev that every container has for itself, or that container managers keep for themselves.
func skipped(name string) bool {
	switch name {
	case "pts", "shm", "fd", "mqueue", "console", ".lxc", ".lxd-mounts", ".udev":
		return true
	}
	return false
}

func newDevice(st *unix.Stat_t, at string) (specs.LinuxDevice, error) {
	var kind string
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFBLK:
		kind = "b"
	case unix.S_IFCHR:
		kind = "c"
	case unix.S_IFIFO:
		kind = "p"
	default:
		return specs.LinuxDevice{}, errNotDevice
	}
	mode := os.FileMode(st.Mode &^ unix.S_IFMT)
	uid, gid := st.Uid, st.Gid
	return specs.LinuxDevice{
		Path: at, Type: kind, Major: int64(unix.Major(st.Rdev)), Minor: int64(unix.Minor(st.Rdev)),
		FileMode: &mode, UID: &uid, GID: &gid,
	}, nil
}
