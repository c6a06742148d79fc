package server

import (
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/berth-node/berth/internal/mountns"
	"github.com/berth-node/berth/runtime/keeper"
)

// lean is where launchers are born: a mount namespace without the mounts of all the pods, of which a launcher and each init
// that it makes would get copies. What a container takes of the host its launcher fetches from there (runtime/launch/lean.go).
type lean struct{ ns, host *os.File }

// newLean makes the namespace. It has what a launcher works with: the run dir, the network namespaces' files, systemd's sockets.
func newLean(runDir string) (*lean, error) {
	places := filepath.Join(runDir, keeper.PlacesDir)
	if err := os.Mkdir(places, 0o700); err != nil && !os.IsExist(err) {
		return nil, err
	}
	ns, host, err := mountns.NewLean(places, runDir, "/run/netns", "/run/systemd", "/run/dbus")
	if err != nil {
		return nil, err
	}
	return &lean{ns, host}, nil
}

// startProcess is startProcess in a copy of the namespace that is the new process's alone.
func (l *lean) startProcess(binary *os.File, args []string, files ...*os.File) (*process, error) {
	return startWith(binary, append(args, keeper.LeanArg), fdsOf(append(files, l.host)), l.enter)
}

// enter is for a thread that starts one process.
func (l *lean) enter() error {
	if err := mountns.Enter(l.ns); err != nil {
		return err
	}
	return os.NewSyscallError("unshare", unix.Unshare(unix.CLONE_NEWNS))
}
