package main

import (
	"fmt"
	"time"

	apiresource "k8s.io/apimachinery/pkg/api/resource"

	"github.com/berth-node/berth/internal/config"
	"github.com/berth-node/berth/internal/errdefs"
	"github.com/berth-node/berth/kubelet/rotate"
	"github.com/berth-node/berth/runtime"
)

// logSize is the size from which on logs are rotated; negative is never.
func logSize(k *config.Kubelet) (int64, error) {
	amount, err := apiresource.ParseQuantity(k.LogMaxSize)
	if err == nil {
		if size, ok := amount.AsInt64(); ok && size != 0 {
			return size, nil
		}
	}
	return 0, fmt.Errorf("kubelet.containerLogMaxSize: want a size as 10Mi, or -1, not %q: %w", k.LogMaxSize, errdefs.ErrInvalidArgument)
}

// newRotator returns who rotates the logs of the node's own pods, nil if nobody is to.
func (n *node) newRotator() (*rotate.Rotator, error) {
	k := &n.cfg.Kubelet
	size, err := logSize(k)
	if err != nil || size < 0 {
		return nil, err
	}
	return rotate.New(rotate.Config{
		MaxSize: size, MaxFiles: k.LogMaxFiles, Interval: k.LogInterval,
		Logs: n.ownLogs, Reopen: n.runtime.ReopenLog, Now: time.Now, Log: n.log,
	}), nil
}

// ownLogs are those of the containers that run in the node's own pods. Another kubelet's are its to rotate, and what has ended says
// nothing more.
func (n *node) ownLogs() (logs []rotate.Log) {
	own := map[string]bool{}
	for _, sb := range n.runtime.Sandboxes(runtime.SandboxFilter{}) {
		own[sb.ID] = sb.Owner == runtime.OwnerKubelet
	}
	running := runtime.Running
	for _, c := range n.runtime.Containers(runtime.ContainerFilter{State: &running}) {
		if own[c.SandboxID] && c.LogPath != "" {
			logs = append(logs, rotate.Log{ID: c.ID, Path: c.LogPath})
		}
	}
	return logs
}
