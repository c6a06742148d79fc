package keeper

import "encoding/json"

// The launcher's side of the protocol.
//
// A launcher is started ahead by the keeper with a unix stream socket as descriptor 3. It reads a Job, does it with
// libcontainer and answers with a JobResult, which says whether it stays for another; if not it exits 0. One that stays says
// so again when it is ready. A launcher that dies without an answer has failed its job.
//
//	keeper                                   launcher (one of 2-4 that wait)
//	Job  + [stdin stdout stderr | console]  -->
//	                                        <--  JobResult + [pidfd]
//
// With LeanArg as its first argument a launcher is in a mount namespace of its own with next to nothing in it
// (internal/mountns), and descriptor 4 is the host's.
//
// Descriptors with a Job of kind create or exec: stdin, stdout, stderr, in this order; with Terminal one only, the
// socket on which libcontainer's init sends the master end of the terminal. Descriptors with the JobResult of a create
// or exec that succeeded: the pidfd of the process.

// LeanArg tells a launcher that it was started away from the host's mounts.
const LeanArg = "lean"

// JobKind says what a launcher does.
type JobKind string

const (
	// JobCreate makes a container from a bundle and leaves its init waiting at the exec FIFO.
	JobCreate JobKind = "create"
	// JobExec starts a further process in a running container.
	JobExec JobKind = "exec"
	// JobFilter compiles a seccomp profile and starts no process.
	JobFilter JobKind = "filter"
	// JobDestroy runs libcontainer's Destroy for a stopped container (its poststop hooks, Intel RDT groups).
	JobDestroy JobKind = "destroy"
	// JobCheckpoint dumps a running container with criu.
	JobCheckpoint JobKind = "checkpoint"
)

// A Job is what a launcher is asked to do.
type Job struct {
	Kind JobKind `json:"kind"`
	// Root is libcontainer's state folder; the container's own is Root/ID.
	Root string `json:"root"`
	ID   string `json:"id"`
	// Bundle is the absolute folder with config.json, the OCI runtime spec (create).
	Bundle string `json:"bundle,omitempty"`
	// SystemdCgroup makes libcontainer use the systemd cgroup driver; the spec's cgroupsPath is then slice:prefix:name.
	SystemdCgroup bool `json:"systemdCgroup,omitempty"`
	// Libcontainer has libcontainer set up init, also where package enter could (create).
	Libcontainer bool `json:"libcontainer,omitempty"`
	// Terminal gives the process a terminal (create, exec).
	Terminal bool `json:"terminal,omitempty"`
	// Process is the OCI process to start (exec).
	Process json.RawMessage `json:"process,omitempty"`
	// Filters is the folder in which launchers keep compiled seccomp filters (create, exec). Empty: they keep none.
	Filters string `json:"filters,omitempty"`
	// Places is a folder in which a lean launcher makes mount points (create). They stay for others. A checkpoint knows by
	// it what was mounted there.
	Places string `json:"places,omitempty"`
	// SubCgroups places the process of an exec below the container's cgroup: by controller name on cgroup v1, under ""
	// on v2. The folders exist already.
	SubCgroups map[string]string `json:"subCgroups,omitempty"`
	// Seccomp is the profile of the runtime spec to compile (filter).
	Seccomp json.RawMessage `json:"seccomp,omitempty"`
	// Checkpoint holds what a checkpoint needs.
	Checkpoint *CheckpointOptions `json:"checkpoint,omitempty"`
}

// CheckpointOptions say how criu dumps a container.
type CheckpointOptions struct {
	// ImagesDir receives criu's images; it exists and is empty.
	ImagesDir string `json:"imagesDir"`
	// WorkDir receives criu's log.
	WorkDir string `json:"workDir"`
	// LeaveRunning lets the container go on afterwards.
	LeaveRunning bool `json:"leaveRunning"`
	// TCPEstablished, FileLocks and ExternalUnixConnections are criu's options of these names.
	TCPEstablished          bool `json:"tcpEstablished,omitempty"`
	FileLocks               bool `json:"fileLocks,omitempty"`
	ExternalUnixConnections bool `json:"externalUnixConnections,omitempty"`
}

// A JobResult is a launcher's answer.
type JobResult struct {
	// Pid of the new process, in the pid namespace of the node.
	Pid int `json:"pid,omitempty"`
	// StartTime of the process: field 22 of /proc/PID/stat, clock ticks since boot.
	StartTime uint64 `json:"startTime,omitempty"`
	// Stays says that the launcher waits for a further job, and that the process is the keeper's child already.
	Stays bool `json:"stays,omitempty"`
	// Fallback is why libcontainer set up an init that was asked of package enter, and Tried whether that has tried and failed, or
	// the container is none for it. They are for the log.
	Fallback string `json:"fallback,omitempty"`
	Tried    bool   `json:"tried,omitempty"`
	// Filter is the compiled profile.
	Filter *Filter `json:"filter,omitempty"`
	// Error is empty if the job is done.
	Error string `json:"error,omitempty"`
	// Failure classes Error.
	Failure Failure `json:"failure,omitempty"`
}

// Failure classes what went wrong in a launcher.
type Failure string

const (
	// FailureSetup is any failure that is not one of the others.
	FailureSetup Failure = "setup"
	// FailureCommand says that the container was made but its command is not there or may not be executed.
	FailureCommand Failure = "command"
	// FailureNotRunning says that the container of an exec or a checkpoint does not run.
	FailureNotRunning Failure = "not-running"
	// FailureUnsupported says that the node lacks what the job needs (criu, for one).
	FailureUnsupported Failure = "unsupported"
	// FailureArgument says that the job itself is wrong.
	FailureArgument Failure = "argument"
)
