package keeper

import (
	"encoding/json"
	"fmt"
	"os"
	"time"

	"github.com/berth-node/berth/internal/errdefs"
)

// SealedLauncher is the name of the file in memory from which a keeper starts its launchers.
const SealedLauncher = "berth-launch"

// The keeper's files, in its run dir.
const (
	// SocketName is the unix stream socket on which the keeper listens, mode 0600.
	SocketName = "keeper.sock"
	// LockName is the file that the one keeper of a run dir holds locked (flock) while it lives.
	LockName = "keeper.lock"
	// LogName is the keeper's own log when Start starts it; the one before is LogName + ".1".
	LogName = "keeper.log"
	// ContainersDir holds one folder per container, named by its ID and made by the daemon. In it the keeper makes the
	// FIFOs and its records, and removes them again; the rest is the daemon's.
	ContainersDir = "containers"
	// LibcontainerDir is libcontainer's root: one state folder per container, named by its ID.
	LibcontainerDir = "libcontainer"
	// FiltersDir holds compiled seccomp filters. The launchers make it and what is in it.
	FiltersDir = "seccomp"
	// PlacesDir is a folder that is always empty. Launchers have mount points there, in namespaces of their own.
	PlacesDir = "places"
)

// A CreateRequest asks for a container. The folder containers/ID in the run dir exists already.
type CreateRequest struct {
	// ID of the container: letters, digits and "_.-+", first a letter or a digit.
	ID string `json:"id"`
	// Bundle is the absolute folder with config.json, the OCI runtime spec.
	Bundle string `json:"bundle"`
	// LogPath is the absolute path of the log, made if it is not there. Empty: the output is read and dropped.
	LogPath string `json:"logPath,omitempty"`
	// Terminal gives the workload a terminal as stdin, stdout and stderr.
	Terminal bool `json:"terminal,omitempty"`
	// Stdin keeps the workload's input open for attached clients; otherwise it is /dev/null.
	Stdin bool `json:"stdin,omitempty"`
	// StdinOnce is for an input that CloseStdin is to end, which the daemon calls when the first attached client has gone.
	// Such an input also ends when the keeper and the daemon die at once; any other one does not.
	StdinOnce bool `json:"stdinOnce,omitempty"`
	// SystemdCgroup makes libcontainer use the systemd cgroup driver.
	SystemdCgroup bool `json:"systemdCgroup,omitempty"`
	// Libcontainer has libcontainer set up init, also where package enter could.
	Libcontainer bool `json:"libcontainer,omitempty"`
	// Hooks says that the spec has poststop hooks (or something else that libcontainer must undo itself): Delete then
	// runs libcontainer's Destroy in a launcher.
	Hooks bool `json:"hooks,omitempty"`
	// MaxLogLine bounds the content of one line of the log, in bytes; 0 is crilog's default of 16 KiB.
	MaxLogLine int `json:"maxLogLine,omitempty"`
}

// A Process is named by both: the kernel gives old numbers to new processes.
type Process struct {
	// Pid in the pid namespace of the keeper.
	Pid int `json:"pid"`
	// StartTime is field 22 of /proc/PID/stat: clock ticks since boot.
	StartTime uint64 `json:"startTime"`
}

// An ExecRequest asks for a further process in a running container.
type ExecRequest struct {
	ContainerID string `json:"containerID"`
	// ExecID names the process within the container; the rules are those of a container's ID.
	ExecID string `json:"execID"`
	// Process is the OCI process.
	Process json.RawMessage `json:"process"`
	// Terminal gives the process a terminal; Stdin, Stdout and Stderr are not used then.
	Terminal bool `json:"terminal,omitempty"`
	// SubCgroups places the process below the container's cgroup, see Job.SubCgroups.
	SubCgroups map[string]string `json:"subCgroups,omitempty"`

	// Stdin, Stdout and Stderr go to the process as they are; nil is /dev/null. They stay the caller's to close.
	Stdin  *os.File `json:"-"`
	Stdout *os.File `json:"-"`
	Stderr *os.File `json:"-"`
	// Plan, if it is not nil, is Process as an encoded plan of package enter, which is then used in place of libcontainer.
	// Cgroup is the folder of the cgroup in which the process is born, on cgroup v2. They stay the caller's to close.
	Plan   *os.File `json:"-"`
	Cgroup *os.File `json:"-"`
}

// A Filter is a compiled seccomp filter, as the kernel takes it.
type Filter struct {
	// Code is an array of struct sock_filter.
	Code []byte `json:"code"`
	// Flags are those for seccomp(2).
	Flags uint32 `json:"flags"`
}

// UnknownExitCode is the exit code of a process whose real one is lost.
const UnknownExitCode = 255

// An Exit is the end of a container (of its init) or of an exec. When it is reported, the log is whole on disk.
type Exit struct {
	// ID of the container; ExecID is empty for the container itself.
	ID     string `json:"id"`
	ExecID string `json:"execID,omitempty"`
	// Code is the exit status, 128 + Signal if a signal ended the process, or UnknownExitCode with Unknown set.
	Code    int  `json:"code"`
	Unknown bool `json:"unknown,omitempty"`
	// Signal is the number of the signal that ended the process, 0 if none did.
	Signal int `json:"signal,omitempty"`
	// At is when the keeper learned of the end.
	At time.Time `json:"at"`
	// Seq rises with every exit, also from one keeper to the one that takes its place. It has gaps.
	Seq uint64 `json:"seq"`
}

// A Phase is where a container is in its life. It follows from what happened to it:
//
//	created --Start--> running --> exited
//	   `----------------------------^
type Phase string

const (
	// PhaseCreated says that init waits at the exec FIFO.
	PhaseCreated Phase = "created"
	// PhaseRunning says that the workload was let go and no exit was seen.
	PhaseRunning Phase = "running"
	// PhaseExited says that Exit is set.
	PhaseExited Phase = "exited"
)

// A State is what the keeper knows of one container.
type State struct {
	ID string `json:"id"`
	// Request is the request that made the container.
	Request CreateRequest `json:"request"`
	Process Process       `json:"process"`
	Phase   Phase         `json:"phase"`
	// Exit is nil until the container has exited; it stays until Delete, acknowledged or not.
	Exit *Exit `json:"exit,omitempty"`
	// Adopted says that the process was taken over from a keeper that died.
	Adopted bool `json:"adopted,omitempty"`
	// ConsoleLost says that the terminal's master end was lost with a keeper that died: no attach, resize or further
	// output. It happens only if the daemon, which holds a spare, died together with the keeper; and the hangup ends most
	// workloads then.
	ConsoleLost bool `json:"consoleLost,omitempty"`
	// StdinClosed says that CloseStdin was called.
	StdinClosed bool `json:"stdinClosed,omitempty"`
	// LogBytes and LogDropped count what this keeper wrote to the log, and what of the output it had to drop (disk full).
	LogBytes   uint64 `json:"logBytes,omitempty"`
	LogDropped uint64 `json:"logDropped,omitempty"`
	// Execs are the processes that Exec started and whose exit was not acknowledged yet.
	Execs []ExecState `json:"execs,omitempty"`
}

// An ExecState is what the keeper knows of a process that Exec started.
type ExecState struct {
	ExecID  string  `json:"execID"`
	Process Process `json:"process"`
	Exit    *Exit   `json:"exit,omitempty"`
}

// A LaunchError is a failure that a launcher reported, or of the launcher itself. Nothing of what was asked for is left.
type LaunchError struct {
	Failure Failure
	Message string
}

func (e *LaunchError) Error() string { return fmt.Sprintf("launch (%s): %s", e.Failure, e.Message) }

// Unwrap gives the class of the failure for errors.Is; nil where it has none.
func (e *LaunchError) Unwrap() error {
	switch e.Failure {
	case FailureNotRunning:
		return errdefs.ErrFailedPrecondition
	case FailureUnsupported:
		return errdefs.ErrUnimplemented
	case FailureArgument:
		return errdefs.ErrInvalidArgument
	default:
		return nil
	}
}
