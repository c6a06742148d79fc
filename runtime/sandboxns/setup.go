package sandboxns

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/berth-node/berth/internal/errdefs"
	"github.com/berth-node/berth/internal/procfs"
	"github.com/berth-node/berth/network/netns"
)

// setUp gives the namespaces that the calling thread is in what req asks for. Owner is the node's ID of the user who is
// root in the user namespace that owns them, or -1 if that is the node's own. The caller's namespaces must be those of
// the sandbox in every kind that req names.
func setUp(req *Request, tunables []tunable, owner int) error {
	if req.NetPath != "" {
		if err := netns.LoopbackUp(); err != nil {
			return fmt.Errorf("bring the loopback device up: %w", err)
		}
	}
	if req.Hostname != "" {
		if err := unix.Sethostname([]byte(req.Hostname)); err != nil {
			return badValue(fmt.Sprintf("host name %q", req.Hostname), err)
		}
	}
	if req.Domainname != "" {
		if err := unix.Setdomainname([]byte(req.Domainname)); err != nil {
			return badValue(fmt.Sprintf("domain name %q", req.Domainname), err)
		}
	}
	for _, t := range tunables {
		if err := t.write(owner); err != nil {
			return err
		}
	}
	return nil
}

// badValue classes the kernel's refusal of a value that came with the request.
func badValue(what string, err error) error {
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ERANGE) {
		return fmt.Errorf("%s: %w: %w", what, err, errdefs.ErrInvalidArgument)
	}
	return fmt.Errorf("%s: %w", what, err)
}

// A tunable is a sysctl and its value.
type tunable struct {
	name  string // as it was asked for
	file  string // below /proc/sys
	value string
}

// parseSysctls turns the sysctls of req into files, in the order of their names, and refuses those that are not a matter
// of the namespaces that req asks for.
func parseSysctls(req *Request) ([]tunable, error) {
	var found []tunable
	for name, value := range req.Sysctls {
		file, err := sysctlFile(name)
		if err != nil {
			return nil, err
		}
		var there bool
		switch {
		case strings.HasPrefix(file, "net/"):
			there = req.NetPath != ""
		case isIPC(file):
			there = req.IPC
		default:
			return nil, fmt.Errorf("sysctl %q is not one of a pod: %w", name, errdefs.ErrInvalidArgument)
		}
		if !there {
			return nil, fmt.Errorf("sysctl %q: the pod uses the node's namespace: %w", name, errdefs.ErrInvalidArgument)
		}
		found = append(found, tunable{name, file, value})
	}
	slices.SortFunc(found, func(a, b tunable) int { return strings.Compare(a.file, b.file) })
	return found, nil
}

// isIPC tells whether a sysctl belongs to the IPC namespace.
func isIPC(file string) bool {
	return strings.HasPrefix(file, "kernel/shm") || strings.HasPrefix(file, "kernel/msg") || file == "kernel/sem" ||
		strings.HasPrefix(file, "fs/mqueue/")
}

// sysctlFile returns the path of a sysctl below /proc/sys, and no other.
func sysctlFile(name string) (string, error) {
	file := procfs.SysctlFile(name)
	if file == "" || path.IsAbs(file) || path.Clean(file) != file || slices.Contains(strings.Split(file, "/"), "..") {
		return "", fmt.Errorf("sysctl %q is no name of one: %w", name, errdefs.ErrInvalidArgument)
	}
	return file, nil
}

// write sets the sysctl in the calling thread's namespaces.
func (t tunable) write(owner int) error {
	err := writeValue(t.file, t.value)
	if owner >= 0 && errors.Is(err, fs.ErrPermission) {
		// The sysctls of an IPC namespace go by the user who is root there; a capability of the node's root does not
		// count (ipc_permissions of the kernel, since 5.19).
		err = asUser(owner, func() error { return writeValue(t.file, t.value) })
	}
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("sysctl %q is unknown to this kernel: %w", t.name, errdefs.ErrInvalidArgument)
	}
	if err != nil {
		return badValue(fmt.Sprintf("sysctl %q to %q", t.name, t.value), err)
	}
	return nil
}

func writeValue(file, value string) error {
	f, err := os.OpenFile("/proc/sys/"+file, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(value)
	return errors.Join(err, f.Close())
}

// asUser runs fn while the effective user ID of this thread alone is uid. The wrappers of the libraries would set it for
// the whole process.
func asUser(uid int, fn func() error) error {
	const keep = ^uintptr(0)
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, keep, uintptr(uid), keep); errno != 0 {
		return fmt.Errorf("become user %d: %w", uid, errno)
	}
	err := fn()
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, keep, 0, keep); errno != 0 {
		return errors.Join(err, fmt.Errorf("become root again: %w", errno))
	}
	return err
}
