package runtime

import (
	"encoding/json"
	"io"
	"net/netip"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-node/berth/cgroups"
)

// A Sandbox is a pod sandbox as it was at the moment of the question. It is the caller's to read, not to change: Config
// is shared with everybody who asks.
type Sandbox struct {
	ID      string
	Config  *cri.PodSandboxConfig
	Handler string
	// Owner names the door through which the sandbox came: OwnerCRI or OwnerKubelet.
	Owner     string
	CreatedAt time.Time
	// Ready is false from the moment on at which the sandbox is being stopped, and if its namespaces are gone.
	Ready bool
	// IPs in the order in which the network gave them; empty with host networking.
	IPs []netip.Addr
	// NetNS is the path of the network namespace; empty with host networking.
	NetNS string
	// UserNS is the path of the user namespace; empty without one.
	UserNS string
	// PausePid is the pid of the pause process; 0 where there is none.
	PausePid int
	// CNI is the network's own report of the attachment, if it made one.
	CNI json.RawMessage
}

// The owners of sandboxes: each acts on its own only.
const (
	OwnerCRI     = "cri"     // who calls the CRI socket
	OwnerKubelet = "kubelet" // berth's own kubelet
)

// State says where a container is in its life.
type State int

const (
	// Created containers have an init that waits to be started.
	Created State = iota
	// Running containers run their command.
	Running
	// Exited containers have ended, or were never able to run.
	Exited
	// Unknown containers have a record that tells nothing certain.
	Unknown
)

// A Container is a container as it was at the moment of the question. Config is shared: read it only.
type Container struct {
	ID        string
	SandboxID string
	Config    *cri.ContainerConfig
	// Handler is the sandbox's runtime handler.
	Handler string
	// Image is what the container was made from.
	Image ContainerImage

	State      State
	CreatedAt  time.Time
	StartedAt  time.Time // zero until started
	FinishedAt time.Time // zero until exited
	ExitCode   int32
	// Reason is a word: Completed, Error, OOMKilled, StartError or Unknown; empty until the exit.
	Reason string
	// Message says more of the reason for a person.
	Message string
	// Pid of the container's init; 0 unless created or running.
	Pid int

	// LogPath is absolute; empty for a container without a log.
	LogPath    string
	StopSignal cri.Signal
	// Bundle is the folder of the container's OCI spec while the node has not been rebooted.
	Bundle string
	// CgroupsPath is the OCI cgroupsPath of the container.
	CgroupsPath string

	// The details, which are left out of lists and statistics. Mounts are those of the configuration as they were made
	// (image volumes resolved to their image).
	Mounts    []*cri.Mount
	Resources *cri.ContainerResources
	User      *cri.ContainerUser
}

// ContainerImage says from what image a container was made.
type ContainerImage struct {
	// ID is the image's ID: the digest of its configuration.
	ID string
	// Ref is a repo digest of the image, or its ID where it has none.
	Ref string
	// UserSpecified is what the user wrote.
	UserSpecified string
	// Spec is the CRI's ImageSpec of the request.
	Spec *cri.ImageSpec
}

// SandboxFilter selects sandboxes; its zero value selects all.
type SandboxFilter struct {
	ID     string // or a unique prefix
	Ready  *bool
	Labels map[string]string
}

// ContainerFilter selects containers; its zero value selects all.
type ContainerFilter struct {
	ID        string // or a unique prefix
	SandboxID string // or a unique prefix
	State     *State
	Labels    map[string]string
}

// ExecResult is what a command printed and how it ended.
type ExecResult struct {
	// Stdout and Stderr hold at most the configured cap each (16 MiB); what came after was discarded.
	Stdout, Stderr []byte
	ExitCode       int32
}

// Size is a terminal's, in characters.
type Size struct{ Width, Height uint16 }

// Streams connect a client to a process. Nil streams are not connected. Exec and Attach close none of them.
type Streams struct {
	Stdin          io.Reader
	Stdout, Stderr io.Writer
	// Terminal makes Stdout carry both outputs; Stderr is nil then.
	Terminal bool
	// Resize delivers the sizes of the client's terminal until it is closed; nil without one.
	Resize <-chan Size
}

// Stats are the numbers of one container or one pod at one moment.
type Stats struct {
	At time.Time
	// Cgroup is nil if the cgroup does not exist (not yet, or not any more).
	Cgroup *cgroups.Stats
	// Rootfs is the use of the container's writable layer; zero for a pod.
	Rootfs FsUsage
}

// FsUsage is space used on one file system.
type FsUsage struct {
	// Mountpoint of the file system that holds it.
	Mountpoint string
	Bytes      uint64
	Inodes     uint64
	At         time.Time
}

// ContainerStats are a container and its numbers.
type ContainerStats struct {
	Container Container
	Stats
}

// SandboxStats are a sandbox, its numbers and those of its containers.
type SandboxStats struct {
	Sandbox Sandbox
	Stats
	// Interfaces of the sandbox's network namespace, the default one (eth0) first; empty with host networking.
	Interfaces []InterfaceStats
	Containers []ContainerStats
	// Processes counts what runs in the pod's cgroup.
	Processes uint64
}

// InterfaceStats are the counters of a network interface since it was made.
type InterfaceStats struct {
	Name                                    string
	RxBytes, RxPackets, RxErrors, RxDropped uint64
	TxBytes, TxPackets, TxErrors, TxDropped uint64
}

// EventType says what happened to a container or a sandbox.
type EventType int

const (
	// EventCreated follows a successful RunSandbox or CreateContainer.
	EventCreated EventType = iota
	// EventStarted follows a start.
	EventStarted
	// EventStopped follows an exit, or the stop of a sandbox.
	EventStopped
	// EventDeleted follows a removal.
	EventDeleted
)

// An Event is one change, in the order in which the changes happened.
type Event struct {
	Type EventType
	At   time.Time
	// ContainerID is the sandbox's ID where the sandbox itself changed.
	ContainerID string
	SandboxID   string
	// Sandbox and Containers are the pod as it was right after the change; Sandbox is nil if it is gone.
	Sandbox    *Sandbox
	Containers []Container
}

// NodeStatus is the runtime's answer to "can pods run here".
type NodeStatus struct {
	// Runtime and Network are nil if ready, else the reason why not.
	Runtime, Network error
	Handlers         []Handler
	Features         Features
	// Limitations are what this node lacks, in words for an operator.
	Limitations []string
	// State says why nothing can be put on record; nil if it can. Pods that are there can be used, stopped and removed.
	State error
	// Damaged are files of records that were set aside, and records that cannot be used though their pods run.
	Damaged []string
	// CgroupDriver is in force for the life of the process.
	CgroupDriver cgroups.Driver
	// Info is more for a person or a tool, by topic.
	Info map[string]any
}

// A Handler is a name that a RuntimeClass may ask for; the default one has the name "".
type Handler struct {
	Name                    string
	RecursiveReadOnlyMounts bool
	UserNamespaces          bool
}

// Features are those of the whole runtime, as probed.
type Features struct {
	SupplementalGroupsPolicy  bool
	UserNamespacesHostNetwork bool
	MountOptions              bool
}
