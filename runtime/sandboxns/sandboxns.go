// Package sandboxns makes the namespaces that the containers of a pod share: network, IPC, UTS and user.
//
// There is no process per pod to hold them. Each is bound to a file, by which containers are put into it and a restarted
// daemon finds it: the network namespace under /run/netns, where `ip netns` and agents such as Multus look, the others in
// the sandbox's folder of the run dir. Create makes them all or none, Remove lets them go; a namespace then ends with the
// last container in it.
//
// Without a user namespace a thread unshares, sets up what it is in, and binds it. In a pod with a user namespace the
// others must belong to that one, and only a process made with it can make them, never a thread of this program: a helper
// is started for that, which lives until its namespaces are bound. Hostname and sysctls are set from outside by a thread
// that enters them.
package sandboxns

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/berth-node/berth/internal/errdefs"
	"github.com/berth-node/berth/internal/failpoint"
	"github.com/berth-node/berth/internal/nsfile"
)

// Request says which namespaces a sandbox has of its own, and how they are set up.
type Request struct {
	// Dir is the existing folder that gets the files ipc, uts and user.
	Dir string
	// NetPath is the file of the network namespace. Its folder is made if it is not there, and made a shared mount.
	// Empty means that the sandbox uses the node's network.
	NetPath string
	// IPC and UTS ask for namespaces of these kinds.
	IPC, UTS bool
	// User asks for a user namespace, which then owns the others.
	User *IDMappings
	// Hostname and Domainname need UTS. Empty leaves the node's.
	Hostname, Domainname string
	// Sysctls of the network namespace (net.*) and of the IPC namespace (kernel.shm*, kernel.msg*, kernel.sem,
	// fs.mqueue.*), by their names with dots or with slashes. Others, and those of a namespace that is not asked for,
	// are ErrInvalidArgument: they would change the node.
	Sysctls map[string]string
}

// IDMappings are the mappings of a user namespace. Both need one for ID 0.
type IDMappings struct {
	UIDs, GIDs []specs.LinuxIDMapping
}

// Paths are the files of a sandbox's namespaces. Empty is a namespace that the sandbox has not of its own.
type Paths struct {
	Net, IPC, UTS, User string
}

// PathsIn returns the files of all namespaces that a Create with this folder and network path may have made, for a
// Remove that does not know which ones it did.
func PathsIn(dir, netPath string) Paths {
	return Paths{
		Net:  netPath,
		IPC:  filepath.Join(dir, "ipc"),
		UTS:  filepath.Join(dir, "uts"),
		User: filepath.Join(dir, "user"),
	}
}

// paths returns the files that req asks for.
func (req *Request) paths() Paths {
	p := PathsIn(req.Dir, req.NetPath)
	if !req.IPC {
		p.IPC = ""
	}
	if !req.UTS {
		p.UTS = ""
	}
	if req.User == nil {
		p.User = ""
	}
	return p
}

// A kind is one kind of namespace: its file in /proc/PID/ns, its flag, and the path it is bound to.
type kind struct {
	name string
	flag int
	path string
}

// kinds returns the namespaces that p has.
func (p Paths) kinds() []kind {
	all := []kind{
		{"user", unix.CLONE_NEWUSER, p.User},
		{"net", unix.CLONE_NEWNET, p.Net},
		{"ipc", unix.CLONE_NEWIPC, p.IPC},
		{"uts", unix.CLONE_NEWUTS, p.UTS},
	}
	var there []kind
	for _, k := range all {
		if k.path != "" {
			there = append(there, k)
		}
	}
	return there
}

func (p Paths) flags() (flags int) {
	for _, k := range p.kinds() {
		flags |= k.flag
	}
	return flags
}

// Create makes the namespaces of req, brings the loopback device of a network namespace up, and sets hostname and
// sysctls. What it made it undoes if something fails. ErrAlreadyExists is returned if one of the files exists, which is
// left alone.
func Create(ctx context.Context, req Request) (Paths, error) {
	tunables, err := checkRequest(&req)
	if err != nil {
		return Paths{}, err
	}
	if req.NetPath != "" {
		release, err := nsfile.ShareDir(filepath.Dir(req.NetPath))
		if err != nil {
			return Paths{}, err
		}
		defer release()
	}
	paths := req.paths()
	if err := ctx.Err(); err != nil {
		return Paths{}, err
	}
	err = nsfile.OnThread(func() error {
		if req.User != nil {
			return createOwned(ctx, &req, paths, tunables)
		}
		return createPlain(&req, paths, tunables)
	})
	if err != nil {
		return Paths{}, fmt.Errorf("make the namespaces of a sandbox: %w", err)
	}
	return paths, nil
}

// createPlain makes namespaces that belong to the node's user namespace. It runs on a thread of its own.
func createPlain(req *Request, paths Paths, tunables []tunable) error {
	if err := unix.Unshare(paths.flags()); err != nil {
		return fmt.Errorf("unshare: %w", err)
	}
	if err := setUp(req, tunables, -1); err != nil {
		return err
	}
	return bind("/proc/thread-self/ns", paths)
}

// bind binds the namespaces in the folder procNS to paths, all or none.
func bind(procNS string, paths Paths) error {
	var bound []kind
	for _, k := range paths.kinds() {
		err := nsfile.Bind(filepath.Join(procNS, k.name), k.path)
		if err != nil {
			return errors.Join(err, unbind(bound))
		}
		bound = append(bound, k)
		failpoint.Here(failpoint.NamespaceBound)
	}
	return nil
}

func unbind(kinds []kind) error {
	var failed error
	for _, k := range kinds {
		failed = errors.Join(failed, nsfile.Unbind(k.path))
	}
	return failed
}

// Remove lets go of the namespaces, and does nothing where nothing is. It tries all of them whatever becomes of one.
func Remove(ctx context.Context, paths Paths) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := unbind(paths.kinds()); err != nil {
		return fmt.Errorf("remove the namespaces of a sandbox: %w", err)
	}
	return nil
}

// Inode is the number of the namespace at path, by which it is known while it lives; 0 if there is none.
func Inode(path string) uint64 {
	var st unix.Stat_t
	if !nsfile.Is(path) || unix.Stat(path, &st) != nil {
		return 0
	}
	return st.Ino
}

// Repin keeps at path the network namespace with this number, whose file was removed, if the process pid is in it. The
// error is of class ErrNotFound if it is in another.
func Repin(path string, inode uint64, pid int) error {
	source := filepath.Join("/proc", strconv.Itoa(pid), "ns/net")
	if inode == 0 || Inode(source) != inode {
		return fmt.Errorf("process %d is not in the network namespace: %w", pid, errdefs.ErrNotFound)
	}
	release, err := nsfile.ShareDir(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer release()
	if err := errors.Join(nsfile.Unbind(path), nsfile.Bind(source, path)); err != nil {
		return err
	}
	if Inode(path) != inode { // the process has ended, and its number is another's
		return errors.Join(nsfile.Unbind(path), fmt.Errorf("process %d has gone: %w", pid, errdefs.ErrNotFound))
	}
	return nil
}

// Verify tells whether a namespace is bound at path. After a reboot the file may be there without one.
func Verify(path string) bool { return nsfile.Is(path) }

// checkRequest refuses what cannot be done before anything is made, and returns the sysctls as files.
func checkRequest(req *Request) ([]tunable, error) {
	paths := req.paths()
	if (paths.IPC != "" || paths.UTS != "" || paths.User != "") && !filepath.IsAbs(req.Dir) {
		return nil, fmt.Errorf("namespaces: folder %q is not an absolute path: %w", req.Dir, errdefs.ErrInvalidArgument)
	}
	if req.NetPath != "" && !filepath.IsAbs(req.NetPath) {
		return nil, fmt.Errorf("namespaces: network path %q is not an absolute path: %w", req.NetPath, errdefs.ErrInvalidArgument)
	}
	if (req.Hostname != "" || req.Domainname != "") && !req.UTS {
		return nil, fmt.Errorf("namespaces: a host name without a UTS namespace would be the node's: %w", errdefs.ErrInvalidArgument)
	}
	if req.User != nil {
		if _, err := hostRoot(req.User.UIDs); err != nil {
			return nil, fmt.Errorf("namespaces: user IDs: %w", err)
		}
		if _, err := hostRoot(req.User.GIDs); err != nil {
			return nil, fmt.Errorf("namespaces: group IDs: %w", err)
		}
	}
	for _, k := range paths.kinds() {
		if _, err := os.Lstat(k.path); err == nil {
			return nil, fmt.Errorf("namespace file %s: %w", k.path, errdefs.ErrAlreadyExists)
		}
	}
	return parseSysctls(req)
}

// hostRoot returns the node's ID of the container's ID 0.
func hostRoot(mappings []specs.LinuxIDMapping) (int, error) {
	for _, m := range mappings {
		if m.ContainerID == 0 && m.Size > 0 {
			return int(m.HostID), nil
		}
	}
	return 0, fmt.Errorf("no mapping for ID 0: %w", errdefs.ErrInvalidArgument)
}
