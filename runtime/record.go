package runtime

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"github.com/opencontainers/go-digest"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-node/berth/internal/atomicfile"
	"github.com/berth-node/berth/internal/procfs"
)

// recordVersion is that of the records on disk. A record of a newer version is set aside, not guessed at.
const recordVersion = 1

// anchors are what the teardown of a sandbox needs and what does not follow from its ID. They stand in the record and
// in the facts, so that a sandbox one of whose files is damaged can still be taken down.
type anchors struct {
	// NetNS is the path of the network namespace; empty with host networking.
	NetNS string `json:"netns,omitempty"`
	// CgroupParent is the pod's cgroup as the CRI names it.
	CgroupParent string `json:"cgroupParent,omitempty"`
	// MadeParent says that the pod's cgroup did not exist before the sandbox: it goes with it.
	MadeParent bool   `json:"madeParent,omitempty"`
	Name       string `json:"name"`
	Namespace  string `json:"namespace"`
	UID        string `json:"uid"`
}

// sandboxRecord is what was asked: written once, before anything is made.
type sandboxRecord struct {
	Version   int       `json:"version"`
	ID        string    `json:"id"`
	Handler   string    `json:"handler,omitempty"`
	Owner     string    `json:"owner"`
	CreatedAt time.Time `json:"createdAt"`
	Boot      string    `json:"boot"`
	Anchors   anchors   `json:"anchors"`
	// Config is the PodSandboxConfig in protobuf's JSON.
	Config json.RawMessage `json:"config"`
}

func (r sandboxRecord) label() (int, string) { return r.Version, r.ID }

// sandboxFacts is what happened: few facts, replaced whole.
type sandboxFacts struct {
	ID string `json:"id,omitempty"`
	// Revision counts the changes: of two files with the facts of one thing the later one is believed.
	Revision uint64  `json:"revision,omitempty"`
	Anchors  anchors `json:"anchors"`
	// ReadyAt is when the sandbox was complete; a sandbox without it is a leftover of a creation that was cut off.
	ReadyAt time.Time `json:"readyAt,omitzero"`
	// StoppedAt is when a stop began.
	StoppedAt time.Time `json:"stoppedAt,omitzero"`
	// TornDown says that the stop is complete: nothing of the sandbox but its records is left.
	TornDown bool `json:"tornDown,omitempty"`
	// Removing says that a removal began.
	Removing bool            `json:"removing,omitempty"`
	IPs      []netip.Addr    `json:"ips,omitempty"`
	CNI      json.RawMessage `json:"cni,omitempty"`
	UserNS   string          `json:"userns,omitempty"`
	IPCNS    string          `json:"ipcns,omitempty"`
	UTSNS    string          `json:"utsns,omitempty"`
	// NetInode is the number of the network namespace, by which it is known when its file was removed.
	NetInode uint64         `json:"netInode,omitempty"`
	Pause    procfs.Process `json:"pause,omitzero"`
	// ProcessLabel and MountLabel are the pod's SELinux labels; empty where SELinux is off.
	ProcessLabel string `json:"processLabel,omitempty"`
	MountLabel   string `json:"mountLabel,omitempty"`
}

func (f sandboxFacts) revision() uint64 { return f.Revision }
func (f sandboxFacts) of() string       { return f.ID }

// containerRecord is what was asked.
type containerRecord struct {
	Version     int             `json:"version"`
	ID          string          `json:"id"`
	SandboxID   string          `json:"sandboxID"`
	CreatedAt   time.Time       `json:"createdAt"`
	Boot        string          `json:"boot"`
	Image       imageRecord     `json:"image"`
	LogPath     string          `json:"logPath,omitempty"`
	CgroupsPath string          `json:"cgroupsPath"`
	StopSignal  int             `json:"stopSignal"`
	Config      json.RawMessage `json:"config"`
}

func (r containerRecord) label() (int, string) { return r.Version, r.ID }

type imageRecord struct {
	ID            string `json:"id"`
	Ref           string `json:"ref"`
	UserSpecified string `json:"userSpecified"`
	// Layers are the chain IDs of the layers that the root filesystem is made of, the lowest first. They must stay on disk
	// also if the image's own record cannot be read.
	Layers []digest.Digest `json:"layers,omitempty"`
}

// containerFacts is what happened.
type containerFacts struct {
	ID string `json:"id,omitempty"`
	// Revision counts the changes, see sandboxFacts.
	Revision uint64 `json:"revision,omitempty"`
	// Process is the container's init; zero before it was made.
	Process procfs.Process `json:"process,omitzero"`
	// CommandError is why the command cannot be started: the start will fail with it.
	CommandError string    `json:"commandError,omitempty"`
	MadeAt       time.Time `json:"madeAt,omitzero"`
	StartedAt    time.Time `json:"startedAt,omitzero"`
	FinishedAt   time.Time `json:"finishedAt,omitzero"`
	ExitCode     int32     `json:"exitCode"`
	Reason       string    `json:"reason,omitempty"`
	Message      string    `json:"message,omitempty"`
	// StopBy is the deadline of a stop that began: at it the container is killed.
	StopBy time.Time `json:"stopBy,omitzero"`
	// StopUptime is the same by the clock that counts from the boot, which nobody sets: it is what counts. 0 in facts of
	// earlier versions.
	StopUptime time.Duration `json:"stopUptime,omitempty"`
	// StopSignaled says that the stop signal was sent.
	StopSignaled bool `json:"stopSignaled,omitempty"`
	// Released says that nothing of the container but its records and its writable layer is left.
	Released bool `json:"released,omitempty"`
	Removing bool `json:"removing,omitempty"`
	// Volumes are the image's own volumes, folders below the container's.
	Resources json.RawMessage `json:"resources,omitempty"`
	// Limits are what holds, after plugins and updates; Resources is what the CRI asked for. What it points to is not changed.
	Limits *specs.LinuxResources `json:"limits,omitempty"`
	User   json.RawMessage       `json:"user,omitempty"`
	Mounts []json.RawMessage     `json:"mounts,omitempty"`
	// Hooks says that the spec has hooks that run after the end.
	Hooks bool `json:"hooks,omitempty"`
}

func (f containerFacts) revision() uint64 { return f.Revision }
func (f containerFacts) of() string       { return f.ID }

// state follows from what happened.
//
//	FinishedAt set   exited
//	StartedAt set    running
//	otherwise        created
func (f containerFacts) state() State {
	switch {
	case !f.FinishedAt.IsZero():
		return Exited
	case !f.StartedAt.IsZero():
		return Running
	default:
		return Created
	}
}

func marshalProto(m proto.Message) (json.RawMessage, error) {
	return protojson.MarshalOptions{UseProtoNames: true}.Marshal(m)
}

func unmarshalProto(data json.RawMessage, m proto.Message) error {
	if len(data) == 0 {
		return nil
	}
	return protojson.UnmarshalOptions{DiscardUnknown: true}.Unmarshal(data, m)
}

// errDamaged marks a record that cannot be read.
var errDamaged = errors.New("damaged record")

// readRecord reads a file into v. One that is not there is fs.ErrNotExist, one that cannot be read or understood
// errDamaged.
func readRecord(path string, v any) error {
	err := atomicfile.ReadJSON(path, v)
	if err == nil || errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return fmt.Errorf("%w: %w", errDamaged, err)
}

// loadSandbox reads a sandbox; faults are the files that it could do without. The errors are readTwin's.
func loadSandbox(l layout, id string, h *recordHealth) (*sandbox, []fault, error) {
	sb := &sandbox{op: newOpLock(), twin: l.sandboxTwin(id, h), config: &cri.PodSandboxConfig{}}
	var faults []fault
	var err error
	sb.record, sb.facts, faults, err = readTwin[sandboxRecord, sandboxFacts](sb.twin, id)
	var factsOnly errFacts
	if err != nil && !errors.As(err, &factsOnly) {
		return sb, faults, err
	}
	if perr := unmarshalProto(sb.record.Config, sb.config); perr != nil {
		return sb, faults, fmt.Errorf("%s: %w: config: %w", sb.dir, errDamaged, perr)
	}
	if sb.config.Metadata == nil {
		return sb, faults, fmt.Errorf("%s: %w: no metadata", sb.dir, errDamaged)
	}
	if err != nil {
		sb.facts = sandboxFacts{}
	}
	if sb.facts.Anchors == (anchors{}) {
		sb.facts.Anchors = sb.record.Anchors // before the first facts are written, namespaces and addresses may be there
	}
	sb.facts.ID = id
	return sb, faults, err
}

// loadContainer reads a container; see loadSandbox.
func loadContainer(l layout, id string, h *recordHealth) (*container, []fault, error) {
	c := newContainer(l.container(id))
	c.twin = l.containerTwin(id, h)
	var faults []fault
	var err error
	c.record, c.facts, faults, err = readTwin[containerRecord, containerFacts](c.twin, id)
	var factsOnly errFacts
	if err != nil && !errors.As(err, &factsOnly) {
		return c, faults, err
	}
	if perr := unmarshalProto(c.record.Config, c.config); perr != nil {
		return c, faults, fmt.Errorf("%s: %w: config: %w", c.dir, errDamaged, perr)
	}
	if c.config.Metadata == nil {
		return c, faults, fmt.Errorf("%s: %w: no metadata", c.dir, errDamaged)
	}
	if err != nil {
		c.facts = containerFacts{}
	}
	c.facts.ID = id
	c.making = c.facts.MadeAt.IsZero()
	if c.facts.state() == Exited {
		close(c.exited)
	}
	return c, faults, err
}

// writeRecord makes the folder of a new thing and writes its record.
func writeRecord(dir string, record any) error {
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	if err := atomicfile.WriteJSON(filepath.Join(dir, recordFile), record, 0o600); err != nil {
		return errors.Join(err, os.RemoveAll(dir))
	}
	return nil
}
