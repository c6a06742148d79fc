package launch

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/opencontainers/runc/libcontainer"
	"github.com/opencontainers/runc/libcontainer/configs"
	"github.com/opencontainers/runc/libcontainer/system"
	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/opencontainers/selinux/go-selinux"
	"golang.org/x/sys/unix"

	"github.com/berth-node/berth/internal/rlimit"
)

// A process is one that was started and that nobody was told of yet.
type process struct {
	pid       int
	startTime uint64
	pidfd     *os.File // the caller's to close
	// undo ends the process and what was made for it. It is of use until the keeper knows the process.
	undo func() error
	// fallback is why libcontainer made this init, if it was not asked for that, and tried whether package enter has tried before.
	fallback string
	tried    bool
	// unknown is a seccomp profile that somebody should learn about, see filter.Cache.
	unknown *configs.Seccomp
}

// adopt reads what identifies a process that has just been started. That of an exec is an unreaped child of ours, so its
// pid is still its own, even if it has ended meanwhile; an init waits for its start. A socket on which init sends its
// pidfd would only cost time.
func adopt(p *libcontainer.Process) (*process, error) {
	pid, err := p.Pid()
	if err != nil {
		return nil, err
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil, os.NewSyscallError("pidfd_open", err)
	}
	stat, err := system.Stat(pid)
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("read the start time of process %d: %w", pid, err)
	}
	return &process{pid: pid, startTime: stat.StartTime, pidfd: os.NewFile(uintptr(fd), "pidfd")}, nil
}

// killGrace bounds how long kill waits for the end of another's child, in milliseconds.
const killGrace = 2000

// kill ends a started process and returns when it has ended, and, if it is a child of ours, has been reaped.
func kill(p *libcontainer.Process) error {
	pid, err := p.Pid()
	if err != nil {
		return err
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil // it has been reaped
	}
	defer unix.Close(fd)
	err = p.Signal(unix.SIGKILL)
	_, _ = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, killGrace)
	_, _ = p.Wait() // says "signal: killed", or that it is not our child
	return err
}

// newProcess translates an OCI process. Its standard streams are those of the job: three descriptors that the workload
// gets as they are, or the one socket on which init sends the master end of the terminal.
func newProcess(p *specs.Process, terminal bool, files []*os.File) (*libcontainer.Process, error) {
	if err := checkProcess(p); err != nil {
		return nil, err
	}
	lp := &libcontainer.Process{
		Args:            p.Args,
		Env:             p.Env,
		UID:             int(p.User.UID),
		GID:             int(p.User.GID),
		Cwd:             p.Cwd,
		Label:           p.SelinuxLabel,
		NoNewPrivileges: &p.NoNewPrivileges,
		AppArmorProfile: p.ApparmorProfile,
		Scheduler:       p.Scheduler,
		IOPriority:      p.IOPriority,
		LogLevel:        initLogLevel,
	}
	for _, gid := range p.User.AdditionalGids {
		lp.AdditionalGroups = append(lp.AdditionalGroups, int(gid))
	}
	if c := p.Capabilities; c != nil {
		lp.Capabilities = &configs.Capabilities{
			Bounding:    c.Bounding,
			Effective:   c.Effective,
			Inheritable: c.Inheritable,
			Permitted:   c.Permitted,
			Ambient:     c.Ambient,
		}
	}
	for _, r := range p.Rlimits {
		limit, err := rlimitOf(r)
		if err != nil {
			return nil, err
		}
		lp.Rlimits = append(lp.Rlimits, limit)
	}
	affinity, err := configs.ConvertCPUAffinity(p.ExecCPUAffinity)
	if err != nil {
		return nil, argumentError("process.execCPUAffinity: %w", err)
	}
	lp.CPUAffinity = affinity
	if s := p.ConsoleSize; s != nil {
		lp.ConsoleWidth, lp.ConsoleHeight = uint16(s.Width), uint16(s.Height)
	}
	return lp, setStreams(lp, terminal, files)
}

// initLogLevel is logrus' warning level as libcontainer wants it: a number in text.
const initLogLevel = "3"

func checkProcess(p *specs.Process) error {
	switch {
	case p == nil:
		return argumentError("the spec has no process")
	case len(p.Args) == 0 || p.Args[0] == "":
		return argumentError("process.args is empty")
	case !filepath.IsAbs(p.Cwd):
		return argumentError("process.cwd %q is not an absolute path", p.Cwd)
	case p.SelinuxLabel != "" && !selinux.GetEnabled():
		return argumentError("process.selinuxLabel is %q, but SELinux is not enabled on this node", p.SelinuxLabel)
	}
	return nil
}

func setStreams(p *libcontainer.Process, terminal bool, files []*os.File) error {
	if terminal {
		if len(files) != 1 {
			return argumentError("a job with a terminal came with %d descriptors, want the console socket alone", len(files))
		}
		p.ConsoleSocket = files[0]
		return nil
	}
	if len(files) != 3 {
		return argumentError("the job came with %d descriptors, want stdin, stdout and stderr", len(files))
	}
	for _, f := range files {
		// Programs do not expect EAGAIN on their standard streams.
		if err := unix.SetNonblock(int(f.Fd()), false); err != nil {
			return fmt.Errorf("make a standard stream blocking: %w", err)
		}
	}
	p.Stdin, p.Stdout, p.Stderr = files[0], files[1], files[2]
	return nil
}

func rlimitOf(r specs.POSIXRlimit) (configs.Rlimit, error) {
	number, ok := rlimit.Number(r.Type)
	if !ok {
		return configs.Rlimit{}, argumentError("process.rlimits: unknown type %q", r.Type)
	}
	return configs.Rlimit{Type: number, Soft: r.Soft, Hard: r.Hard}, nil
}
