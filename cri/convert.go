package cri

import (
	"cmp"
	"strconv"
	"strings"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-node/berth/runtime"
	"github.com/berth-node/berth/runtime/image"
)

// Labels, annotations and metadata are passed on as they came: the kubelet finds its pods again by them.

func toSandboxState(ready bool) cri.PodSandboxState {
	if ready {
		return cri.PodSandboxState_SANDBOX_READY
	}
	return cri.PodSandboxState_SANDBOX_NOTREADY
}

func toSandbox(sb runtime.Sandbox) *cri.PodSandbox {
	return &cri.PodSandbox{
		Id:             sb.ID,
		Metadata:       sb.Config.GetMetadata(),
		State:          toSandboxState(sb.Ready),
		CreatedAt:      sb.CreatedAt.UnixNano(),
		Labels:         sb.Config.GetLabels(),
		Annotations:    sb.Config.GetAnnotations(),
		RuntimeHandler: sb.Handler,
	}
}

func toSandboxStatus(sb runtime.Sandbox) *cri.PodSandboxStatus {
	return &cri.PodSandboxStatus{
		Id:        sb.ID,
		Metadata:  sb.Config.GetMetadata(),
		State:     toSandboxState(sb.Ready),
		CreatedAt: sb.CreatedAt.UnixNano(),
		Network:   toNetworkStatus(sb),
		Linux: &cri.LinuxPodSandboxStatus{Namespaces: &cri.Namespace{
			Options: sb.Config.GetLinux().GetSecurityContext().GetNamespaceOptions(),
		}},
		Labels:         sb.Config.GetLabels(),
		Annotations:    sb.Config.GetAnnotations(),
		RuntimeHandler: sb.Handler,
	}
}

// toNetworkStatus gives the first address the place that clients of one family look at. With host networking there is no
// address: the kubelet knows the node's.
func toNetworkStatus(sb runtime.Sandbox) *cri.PodSandboxNetworkStatus {
	n := &cri.PodSandboxNetworkStatus{}
	for i, ip := range sb.IPs {
		if i == 0 {
			n.Ip = ip.String()
			continue
		}
		n.AdditionalIps = append(n.AdditionalIps, &cri.PodIP{Ip: ip.String()})
	}
	return n
}

func fromSandboxFilter(f *cri.PodSandboxFilter) runtime.SandboxFilter {
	to := runtime.SandboxFilter{ID: f.GetId(), Labels: f.GetLabelSelector()}
	if f.GetState() != nil {
		ready := f.GetState().GetState() == cri.PodSandboxState_SANDBOX_READY
		to.Ready = &ready
	}
	return to
}

var containerStates = map[runtime.State]cri.ContainerState{
	runtime.Created: cri.ContainerState_CONTAINER_CREATED,
	runtime.Running: cri.ContainerState_CONTAINER_RUNNING,
	runtime.Exited:  cri.ContainerState_CONTAINER_EXITED,
	runtime.Unknown: cri.ContainerState_CONTAINER_UNKNOWN,
}

func toContainerState(st runtime.State) cri.ContainerState {
	if to, ok := containerStates[st]; ok {
		return to
	}
	return cri.ContainerState_CONTAINER_UNKNOWN
}

func fromContainerState(st cri.ContainerState) runtime.State {
	for from, to := range containerStates {
		if to == st {
			return from
		}
	}
	return runtime.Unknown
}

func fromContainerFilter(f *cri.ContainerFilter) runtime.ContainerFilter {
	to := runtime.ContainerFilter{ID: f.GetId(), SandboxID: f.GetPodSandboxId(), Labels: f.GetLabelSelector()}
	if f.GetState() != nil {
		st := fromContainerState(f.GetState().GetState())
		to.State = &st
	}
	return to
}

// nanos is t in nanoseconds since 1970, and 0 for "has not happened".
func nanos(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixNano()
}

func toContainer(c runtime.Container) *cri.Container {
	return &cri.Container{
		Id:           c.ID,
		PodSandboxId: c.SandboxID,
		Metadata:     c.Config.GetMetadata(),
		Image:        c.Config.GetImage(),
		ImageRef:     c.Image.Ref,
		ImageId:      c.Image.ID,
		State:        toContainerState(c.State),
		CreatedAt:    nanos(c.CreatedAt),
		Labels:       c.Config.GetLabels(),
		Annotations:  c.Config.GetAnnotations(),
	}
}

func toContainerStatus(c runtime.Container) *cri.ContainerStatus {
	return &cri.ContainerStatus{
		Id:          c.ID,
		Metadata:    c.Config.GetMetadata(),
		State:       toContainerState(c.State),
		CreatedAt:   nanos(c.CreatedAt),
		StartedAt:   nanos(c.StartedAt),
		FinishedAt:  nanos(c.FinishedAt),
		ExitCode:    c.ExitCode,
		Image:       toImageSpec(c.Image, c.Config.GetImage()),
		ImageRef:    c.Image.Ref,
		ImageId:     c.Image.ID,
		Reason:      c.Reason,
		Message:     c.Message,
		Labels:      c.Config.GetLabels(),
		Annotations: c.Config.GetAnnotations(),
		Mounts:      c.Mounts,
		LogPath:     c.LogPath,
		Resources:   c.Resources,
		User:        c.User,
		StopSignal:  c.StopSignal,
	}
}

// toImageSpec names the image of a container's status. The kubelet asks for an image by its ID and tells in
// user_specified_image what the pod says; people and the API server want to read the latter.
func toImageSpec(from runtime.ContainerImage, asked *cri.ImageSpec) *cri.ImageSpec {
	if from.Spec != nil {
		asked = from.Spec
	}
	user := cmp.Or(from.UserSpecified, asked.GetUserSpecifiedImage())
	return &cri.ImageSpec{
		Image:              cmp.Or(user, asked.GetImage()),
		Annotations:        asked.GetAnnotations(),
		UserSpecifiedImage: user,
		RuntimeHandler:     asked.GetRuntimeHandler(),
	}
}

// each converts a list, item by item.
func each[From, To any](list []From, convert func(From) To) []To {
	to := make([]To, 0, len(list))
	for _, item := range list {
		to = append(to, convert(item))
	}
	return to
}

var eventTypes = map[runtime.EventType]cri.ContainerEventType{
	runtime.EventCreated: cri.ContainerEventType_CONTAINER_CREATED_EVENT,
	runtime.EventStarted: cri.ContainerEventType_CONTAINER_STARTED_EVENT,
	runtime.EventStopped: cri.ContainerEventType_CONTAINER_STOPPED_EVENT,
	runtime.EventDeleted: cri.ContainerEventType_CONTAINER_DELETED_EVENT,
}

func toEvent(e runtime.Event) *cri.ContainerEventResponse {
	to := &cri.ContainerEventResponse{
		ContainerId:        e.ContainerID,
		ContainerEventType: eventTypes[e.Type],
		CreatedAt:          e.At.UnixNano(),
		ContainersStatuses: each(e.Containers, toContainerStatus),
	}
	if e.Sandbox != nil {
		to.PodSandboxStatus = toSandboxStatus(*e.Sandbox)
	}
	return to
}

func toImage(img image.Image) *cri.Image {
	uid, username := imageUser(img.Config.Config.User)
	return &cri.Image{
		Id:          img.ID,
		RepoTags:    img.RepoTags,
		RepoDigests: img.RepoDigests,
		Size:        img.Size,
		Uid:         uid,
		Username:    username,
		Spec:        &cri.ImageSpec{Image: img.ID, Annotations: img.Annotations},
		Pinned:      img.Pinned,
	}
}

// imageUser splits the user of an image's configuration, "user", "uid", "user:group" or "uid:gid": a number is the uid,
// anything else the username. The kubelet decides by it whether the container would run as root; neither means root.
func imageUser(user string) (*cri.Int64Value, string) {
	name, _, _ := strings.Cut(user, ":")
	if name == "" {
		return nil, ""
	}
	if uid, err := strconv.ParseInt(name, 10, 64); err == nil {
		return &cri.Int64Value{Value: uid}, ""
	}
	return nil, name
}

// fromAuth is nil for credentials that hold nothing, which clients send for public images.
func fromAuth(a *cri.AuthConfig) *image.Auth {
	to := image.Auth{
		Username:      a.GetUsername(),
		Password:      a.GetPassword(),
		Auth:          a.GetAuth(),
		ServerAddress: a.GetServerAddress(),
		IdentityToken: a.GetIdentityToken(),
		RegistryToken: a.GetRegistryToken(),
	}
	if to == (image.Auth{ServerAddress: to.ServerAddress}) {
		return nil
	}
	return &to
}

func toFilesystemUsage(at time.Time, mountpoint string, bytes, inodes uint64) *cri.FilesystemUsage {
	return &cri.FilesystemUsage{
		Timestamp:  at.UnixNano(),
		FsId:       &cri.FilesystemIdentifier{Mountpoint: mountpoint},
		UsedBytes:  &cri.UInt64Value{Value: bytes},
		InodesUsed: &cri.UInt64Value{Value: inodes},
	}
}
