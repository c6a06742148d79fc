package launch

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"

	devices "github.com/opencontainers/cgroups/devices/config"
	"github.com/opencontainers/runc/libcontainer/configs"
	"golang.org/x/sys/unix"
)

// What libcontainer's init makes in /dev it makes file by file, each with a walk through the container's root that trusts
// nothing it finds there. Here a /dev is made ahead, at a place where nobody else is, and init mounts it: a file system of
// memory with the devices, and the terminals. The links and what belongs to namespaces of the pod stay init's, and so does
// the look at standard streams that are the host's /dev/null.
//
// As with the mounts of cgroups, what is not as usual is left to libcontainer.

// devPlace is where it is made, in the folder of places.
const devPlace = "dev"

// usualDevFlags are those that the mounts of /dev and /dev/pts may have.
const usualDevFlags = unix.MS_NOSUID | unix.MS_NOEXEC | unix.MS_STRICTATIME

// mountDev makes the /dev of a container that is about to start, and has init take it. If it fails everything is as before, and
// what is left at the place goes with the rest.
func (l *lean) mountDev(places string, config *configs.Config) error {
	if l == nil || l.left {
		return nil
	}
	i := usualDev(config)
	if i < 0 {
		return nil
	}
	dev, place := config.Mounts[i], filepath.Join(places, devPlace)
	if err := l.mountAt(place, dev); err != nil {
		return err
	}
	for _, d := range config.Devices {
		if err := makeDevice(place, d); err != nil {
			return err
		}
	}
	rest := config.Mounts[i+1:]
	if len(rest) > 0 && isUsual(rest[0], "devpts", "/dev/pts") {
		at := filepath.Join(place, "pts")
		if err := os.Mkdir(at, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(rest[0].Source, at, rest[0].Device, uintptr(rest[0].Flags), rest[0].Data); err != nil {
			return fmt.Errorf("mount %s: %w", at, err)
		}
		rest = rest[1:]
	}
	if err := makeMountPoints(place, rest); err != nil {
		return err
	}
	l.names[place] = dev.Source
	// libcontainer still takes it for the tmpfs that it is: of a bind mount it would believe that the host's devices are in it.
	dev.Source, dev.Data, dev.Flags = place, "", unix.MS_BIND|unix.MS_REC
	config.Devices = nil
	config.Mounts = slices.Concat(config.Mounts[:i+1], rest)
	return nil
}

// usualDev returns the index of the mount of /dev if all that is to be there is as most containers have it, or -1.
func usualDev(config *configs.Config) int {
	if config.Namespaces.Contains(configs.NEWUSER) || config.MountLabel != "" {
		return -1
	}
	usual := func(d *devices.Device) bool {
		return filepath.Dir(d.Path) == "/dev" && filepath.Base(d.Path) != "ptmx" && (d.Type == devices.CharDevice || d.Type == devices.BlockDevice) &&
			d.FileMode&^0o777 == 0
	}
	if slices.ContainsFunc(config.Devices, func(d *devices.Device) bool { return d.Path != "" && !usual(d) }) {
		return -1
	}
	return slices.IndexFunc(config.Mounts, func(m *configs.Mount) bool { return isUsual(m, "tmpfs", "/dev") })
}

func isUsual(m *configs.Mount, device, destination string) bool {
	return m.Device == device && m.Destination == destination && m.Flags&^usualDevFlags == 0 && m.Extensions == 0 &&
		m.RecAttr == nil && len(m.PropagationFlags) == 0
}

// makeDevice makes a device as libcontainer's init would. One without a path is a rule for the cgroup alone.
func makeDevice(dir string, d *devices.Device) error {
	if d.Path == "" {
		return nil
	}
	number, err := d.Mkdev()
	if err != nil {
		return err
	}
	mode := uint32(d.FileMode) | unix.S_IFCHR
	if d.Type == devices.BlockDevice {
		mode = uint32(d.FileMode) | unix.S_IFBLK
	}
	path := filepath.Join(dir, filepath.Base(d.Path))
	if err := unix.Mknod(path, mode, int(number)); err != nil {
		return &os.PathError{Op: "mknod", Path: path, Err: err}
	}
	if err := os.Chmod(path, d.FileMode); err != nil { // past the umask
		return err
	}
	return os.Lchown(path, int(d.Uid), int(d.Gid))
}

// makeMountPoints makes those folders in dir, a container's /dev, on which something is going to be mounted.
func makeMountPoints(dir string, mounts []*configs.Mount) error {
	for _, m := range mounts {
		if filepath.Dir(m.Destination) != "/dev" {
			continue
		}
		if m.Device == "bind" {
			if st, err := os.Stat(m.Source); err != nil || !st.IsDir() {
				continue
			}
		} else if m.Device != "mqueue" { // a tmpfs would take on its mode
			continue
		}
		if err := os.Mkdir(filepath.Join(dir, filepath.Base(m.Destination)), 0o755); err != nil && !os.IsExist(err) {
			return err
		}
	}
	return nil
}
