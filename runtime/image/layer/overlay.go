package layer

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// features are what the kernel turned out to know.
type features struct {
	probe           sync.Once
	layerByLayer    bool        // overlayfs takes its layers one at a time, by fsconfig (6.7)
	noDetachedLower atomic.Bool // it refused layers in a mount that is attached nowhere (before 6.15)
}

// takesLayerByLayer tries whether the kernel knows the option "lowerdir+".
func (k *features) takesLayerByLayer() bool {
	k.probe.Do(func() {
		fd, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
		if err != nil {
			return
		}
		defer unix.Close(fd)
		// Before 6.5 overlayfs looked at its options only when all were there, and so took any.
		looks := unix.FsconfigSetString(fd, "berth", "no such option") != nil
		k.layerByLayer = looks && unix.FsconfigSetString(fd, "lowerdir+", "/") == nil
	})
	return k.layerByLayer
}

// overlay describes an overlay mount. Without upper it is read-only.
type overlay struct {
	lower       []directory // topmost first
	upper, work string
	target      string // must exist
	label       string // SELinux context
	readOnly    bool
	volatile    bool
}

// directory is a directory by its path, or by a descriptor if that is not -1.
type directory struct {
	path string
	fd   int
}

// name returns a path that leads to d as long as its descriptor is open.
func (d directory) name() string {
	if d.fd < 0 {
		return d.path
	}
	return "/proc/self/fd/" + strconv.Itoa(d.fd)
}

// params returns the options of overlayfs that have a value.
func (o overlay) params() [][2]string {
	// The kernel's configuration may switch these on. An index is of no use to a layer that is mounted in many roots,
	// and a copy of metadata alone would leave files in the upper layer that are not whole.
	p := [][2]string{{"index", "off"}, {"metacopy", "off"}}
	if o.label != "" {
		p = append(p, [2]string{"context", o.label})
	}
	return p
}

// mountOverlay mounts o: with the new mount API, which takes any number of layers (up to 500) with names of any
// length, or, where the kernel does not know that, with mount(2) and its one page of options.
func (s *Store) mountOverlay(o overlay) error {
	if s.kernel.takesLayerByLayer() {
		return mountByContext(o)
	}
	return mountByOptions(o)
}

// fsContext is a filesystem being configured, see fsopen(2).
type fsContext int

// mountByContext mounts o with the new mount API.
func mountByContext(o overlay) error {
	fd, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return fmt.Errorf("fsopen overlay: %w", err)
	}
	defer unix.Close(fd)
	c := fsContext(fd)
	if err := c.setLayers(o); err != nil {
		return err
	}
	for _, kv := range append(o.params(), [2]string{"source", "overlay"}) {
		if err := unix.FsconfigSetString(fd, kv[0], kv[1]); err != nil {
			return c.failed(kv[0]+"="+kv[1], err)
		}
	}
	if o.volatile {
		if err := unix.FsconfigSetFlag(fd, "volatile"); err != nil {
			return c.failed("volatile", err)
		}
	}
	if err := unix.FsconfigCreate(fd); err != nil {
		return c.failed("create", err)
	}
	attr := 0
	if o.readOnly || o.upper == "" {
		attr = unix.MOUNT_ATTR_RDONLY
	}
	m, err := unix.Fsmount(fd, unix.FSMOUNT_CLOEXEC, attr)
	if err != nil {
		return c.failed("fsmount", err)
	}
	defer unix.Close(m)
	return attach(m, o.target)
}

func (c fsContext) setLayers(o overlay) error {
	for _, d := range o.lower {
		if err := c.setDirectory("lowerdir+", d); err != nil {
			return c.failed("lowerdir+="+d.path, err)
		}
	}
	if o.upper == "" {
		return nil
	}
	for _, kv := range [][2]string{{"upperdir", o.upper}, {"workdir", o.work}} {
		if err := c.setDirectory(kv[0], directory{path: kv[1], fd: -1}); err != nil {
			return c.failed(kv[0]+"="+kv[1], err)
		}
	}
	return nil
}

// maxFsconfigString is the length of a value that fsconfig refuses.
const maxFsconfigString = 256

func (c fsContext) setDirectory(key string, d directory) error {
	if d.fd < 0 {
		if len(d.path) < maxFsconfigString {
			return unix.FsconfigSetString(int(c), key, d.path)
		}
		fd, err := unix.Open(d.path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		d.fd = fd
	}
	err := unix.FsconfigSetFd(int(c), key, d.fd)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EBADF) { // before 6.13
		err = unix.FsconfigSetString(int(c), key, d.name())
	}
	return err
}

// failed adds what the kernel has to say to an error of a step.
func (c fsContext) failed(step string, err error) error {
	var words []string
	buf := make([]byte, 4096)
	for {
		n, rerr := unix.Read(int(c), buf)
		if rerr != nil || n <= 0 {
			break
		}
		words = append(words, strings.TrimSpace(string(buf[:n])))
	}
	if len(words) == 0 {
		return fmt.Errorf("mount overlay: %s: %w", step, err)
	}
	return fmt.Errorf("mount overlay: %s: %w (kernel: %s)", step, err, strings.Join(words, "; "))
}

// attach makes the detached mount m visible at target.
func attach(m int, target string) error {
	err := unix.MoveMount(m, "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH)
	if err != nil {
		return &os.PathError{Op: "move_mount", Path: target, Err: err}
	}
	return nil
}

// mountByOptions mounts o with mount(2).
func mountByOptions(o overlay) error {
	data, err := o.options()
	if err != nil {
		return err
	}
	if len(data) >= os.Getpagesize() {
		// Descriptors have short names.
		fds, err := o.openLower()
		defer closeAll(fds)
		if err != nil {
			return err
		}
		if data, err = o.options(); err != nil {
			return err
		}
	}
	if len(data) >= os.Getpagesize() {
		return fmt.Errorf("mount overlay: %d layers are too many for this kernel", len(o.lower))
	}
	var flags uintptr
	if o.readOnly || o.upper == "" {
		flags = unix.MS_RDONLY
	}
	if err := unix.Mount("overlay", o.target, "overlay", flags, data); err != nil {
		return fmt.Errorf("mount overlay at %s: %w", o.target, err)
	}
	return nil
}

// openLower replaces the paths of the lower directories by descriptors, which the caller closes.
func (o *overlay) openLower() (fds []int, err error) {
	lower := make([]directory, len(o.lower))
	for i, d := range o.lower {
		if d.fd < 0 {
			if d.fd, err = unix.Open(d.path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0); err != nil {
				return fds, &os.PathError{Op: "open", Path: d.path, Err: err}
			}
			fds = append(fds, d.fd)
		}
		lower[i] = d
	}
	o.lower = lower
	return fds, nil
}

func closeAll(fds []int) {
	for _, fd := range fds {
		unix.Close(fd)
	}
}

// options returns o as mount(2) takes it.
func (o overlay) options() (string, error) {
	var lower []string
	for _, d := range o.lower {
		lower = append(lower, escape(d.name()))
	}
	opts := []string{"lowerdir=" + strings.Join(lower, ":")}
	if o.upper != "" {
		opts = append(opts, "upperdir="+escape(o.upper), "workdir="+escape(o.work))
	}
	for _, kv := range o.params() {
		v := kv[1]
		if strings.ContainsAny(v, `"`) {
			return "", fmt.Errorf("mount overlay: %s has a quotation mark: %q", kv[0], v)
		}
		if kv[0] == "context" {
			v = `"` + v + `"` // a level may have commas
		}
		opts = append(opts, kv[0]+"="+v)
	}
	if o.volatile {
		opts = append(opts, "volatile")
	}
	return strings.Join(opts, ","), nil
}

// escape writes a path as an option of overlayfs.
func escape(p string) string {
	return strings.NewReplacer(`\`, `\\`, `:`, `\:`, `,`, `\,`).Replace(p)
}
