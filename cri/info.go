package cri

import (
	"encoding/json"
	"fmt"
	"maps"

	"github.com/berth-node/berth/runtime"
)

// verbose puts what there is to tell of one object under "info" as one JSON object, where crictl and the tools that read
// its output look for it.
func verbose(info map[string]any) (map[string]string, error) {
	text, err := json.Marshal(info)
	if err != nil {
		return nil, fmt.Errorf("verbose status: %w", err)
	}
	return map[string]string{"info": string(text)}, nil
}

// sandboxInfo completes what the runtime tells of a sandbox by what any tool expects: the names are those that are usual
// since Docker's time ("pid", "config", "runtimeSpec", "snapshotKey"…).
func sandboxInfo(sb runtime.Sandbox, containers []runtime.Container, from map[string]any) map[string]any {
	info := map[string]any{
		"pid":            sandboxPid(sb, containers),
		"config":         sb.Config,
		"runtimeHandler": sb.Handler,
		"createdAt":      sb.CreatedAt,
		"owner":          sb.Owner,
	}
	if sb.NetNS != "" {
		info["netNamespace"] = sb.NetNS
	}
	if sb.UserNS != "" {
		info["userNamespace"] = sb.UserNS
	}
	if len(sb.CNI) > 0 {
		info["cniResult"] = sb.CNI
	}
	maps.Copy(info, from)
	return info
}

// sandboxPid is a process in the namespaces of the sandbox. There is no pause process as a rule: any living container
// serves a tool that wants to enter them.
func sandboxPid(sb runtime.Sandbox, containers []runtime.Container) int {
	if sb.PausePid != 0 {
		return sb.PausePid
	}
	for _, c := range containers {
		if c.State == runtime.Running && c.Pid != 0 {
			return c.Pid
		}
	}
	return 0
}

// containerInfo completes what the runtime tells of a container, as sandboxInfo does.
func containerInfo(c runtime.Container, from map[string]any) map[string]any {
	info := map[string]any{
		"sandboxID":   c.SandboxID,
		"pid":         c.Pid,
		"config":      c.Config,
		"cgroupsPath": c.CgroupsPath,
		// The root file system has the container's name.
		"snapshotKey": c.ID,
		"snapshotter": "overlay",
	}
	if c.Bundle != "" {
		info["bundle"] = c.Bundle
	}
	maps.Copy(info, from)
	return info
}
