package launch

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/opencontainers/runc/libcontainer"
	"github.com/opencontainers/runc/libcontainer/utils"
	"golang.org/x/sys/unix"

	"github.com/berth-node/berth/runtime/keeper"
)

// A container's standard streams are FIFOs of the node, which criu would look for in the container's own mounts and not
// find. criu lets them pass if it is told that they are external, and the one way past libcontainer to tell it is its
// configuration file. libcontainer names that file after a label of the container, so every container gets the label
// when it is created; the file is written when a checkpoint needs it.
const (
	criuConfigLabel   = "org.criu.config"
	criuDefaultConfig = "/etc/criu/runc.conf" // what libcontainer names to criu without the label
)

func criuConfigPath(job *keeper.Job) string {
	return filepath.Join(job.Root, job.ID, "criu.conf")
}

// writeCriuConfig writes criu's configuration for a checkpoint of c: the operator's, and the external files.
// A container that names a configuration of its own keeps it.
func writeCriuConfig(job *keeper.Job, c *libcontainer.Container) error {
	path, _ := utils.SearchLabels(c.Config().Labels, criuConfigLabel)
	if path != criuConfigPath(job) {
		return nil
	}
	config, err := os.ReadFile(criuDefaultConfig)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	pids, err := c.Processes()
	if err != nil {
		return err
	}
	var external []string
	for _, pid := range pids {
		found, err := externalFIFOs(filepath.Join("/proc", strconv.Itoa(pid)))
		if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ESRCH) { // the process may end meanwhile
			return err
		}
		external = append(external, found...)
	}
	slices.Sort(external)
	text := bytes.NewBuffer(config)
	text.WriteByte('\n')
	for _, name := range slices.Compact(external) {
		fmt.Fprintf(text, "external %s\n", name)
	}
	return os.WriteFile(path, text.Bytes(), 0o600)
}

// externalFIFOs returns criu's names for the FIFOs that the process has open and that none of its mounts holds.
func externalFIFOs(proc string) ([]string, error) {
	mounts, err := mountIDs(proc)
	if err != nil {
		return nil, err
	}
	fds, err := os.ReadDir(filepath.Join(proc, "fd"))
	if err != nil {
		return nil, err
	}
	var names []string
	for _, fd := range fds {
		path := filepath.Join(proc, "fd", fd.Name())
		var st unix.Stat_t
		if err := unix.Stat(path, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFIFO {
			continue
		}
		if target, err := os.Readlink(path); err != nil || strings.HasPrefix(target, "pipe:") {
			continue // a pipe has no name and needs none
		}
		info, err := os.ReadFile(filepath.Join(proc, "fdinfo", fd.Name()))
		if err != nil {
			continue
		}
		mount, ok := mountOf(info)
		if ok && !mounts[mount] {
			names = append(names, fmt.Sprintf("file[%x:%x]", mount, st.Ino))
		}
	}
	return names, nil
}

// mountIDs returns the mounts that the process sees.
func mountIDs(proc string) (map[int]bool, error) {
	data, err := os.ReadFile(filepath.Join(proc, "mountinfo"))
	if err != nil {
		return nil, err
	}
	ids := make(map[int]bool)
	for line := range strings.Lines(string(data)) {
		first, _, _ := strings.Cut(line, " ")
		if id, err := strconv.Atoi(first); err == nil {
			ids[id] = true
		}
	}
	return ids, nil
}

// mountOf reads the mount of an open file from its /proc/PID/fdinfo.
func mountOf(fdinfo []byte) (int, bool) {
	for line := range strings.Lines(string(fdinfo)) {
		if value, ok := strings.CutPrefix(line, "mnt_id:"); ok {
			id, err := strconv.Atoi(strings.TrimSpace(value))
			return id, err == nil
		}
	}
	return 0, false
}
