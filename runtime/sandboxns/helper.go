package sandboxns

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/berth-node/berth/internal/memfile"
	"github.com/berth-node/berth/internal/nsfile"
	"github.com/berth-node/berth/internal/pause"
)

// createOwned makes a user namespace and the others inside it. It runs on a thread of its own.
func createOwned(ctx context.Context, req *Request, paths Paths, tunables []tunable) error {
	helper, err := startHelper(req.User, paths.flags())
	if err != nil {
		return fmt.Errorf("start the helper of a user namespace: %w", err)
	}
	defer stopHelper(helper)
	if err := bind(filepath.Join("/proc", strconv.Itoa(helper.Process.Pid), "ns"), paths); err != nil {
		return err
	}
	err = ctx.Err()
	if err == nil {
		err = enterAndSetUp(req, paths, tunables)
	}
	if err != nil {
		return errors.Join(err, unbind(paths.kinds()))
	}
	return nil
}

// enterAndSetUp moves the calling thread into the namespaces, but not into their user namespace, and sets them up.
func enterAndSetUp(req *Request, paths Paths, tunables []tunable) error {
	for _, k := range paths.kinds() {
		if k.flag == unix.CLONE_NEWUSER {
			continue // not for a thread; and the node's root has all capabilities there from outside
		}
		if err := nsfile.Enter(k.path, k.flag); err != nil {
			return err
		}
	}
	owner, err := hostRoot(req.User.UIDs)
	if err != nil {
		return err
	}
	return setUp(req, tunables, owner)
}

// startHelper starts a process with new namespaces that does nothing: the program of the pause container, a page or two,
// started from memory. It dies with the calling thread, so the caller's must live on until stopHelper.
func startHelper(m *IDMappings, flags int) (*exec.Cmd, error) {
	program, err := pauseProgram()
	if err != nil {
		return nil, err
	}
	defer program.Close()
	helper := exec.Command("/proc/self/fd/" + strconv.Itoa(int(program.Fd())))
	helper.Env = []string{}
	helper.Dir = "/"
	helper.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:                 uintptr(flags),
		UidMappings:                procMap(m.UIDs),
		GidMappings:                procMap(m.GIDs),
		GidMappingsEnableSetgroups: true, // it is a property of the namespace, and the containers need it
		Credential:                 &syscall.Credential{Uid: 0, Gid: 0},
		Pdeathsig:                  syscall.SIGKILL,
	}
	if err := helper.Start(); err != nil {
		return nil, err
	}
	return helper, nil
}

// stopHelper ends the helper and reaps it. Its namespaces live on where they are bound.
func stopHelper(helper *exec.Cmd) {
	_ = helper.Process.Kill()
	_ = helper.Wait() // says "signal: killed"
}

// pauseProgram returns the pause program in memory, for execve by its descriptor.
func pauseProgram() (*os.File, error) {
	return memfile.Sealed("berth-userns", memfile.Program, bytes.NewReader(pause.Binary()))
}

func procMap(mappings []specs.LinuxIDMapping) []syscall.SysProcIDMap {
	var ids []syscall.SysProcIDMap
	for _, m := range mappings {
		ids = append(ids, syscall.SysProcIDMap{ContainerID: int(m.ContainerID), HostID: int(m.HostID), Size: int(m.Size)})
	}
	return ids
}
