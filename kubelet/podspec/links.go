package podspec

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	v1 "k8s.io/api/core/v1"
)

// maxFileName is the longest name of a file, in bytes.
const maxFileName = 255

// linkPath is where collectors of logs look for that of a container, by upstream's name:
// /var/log/containers/<pod>_<namespace>_<container>-<id>.log
func (n *Node) linkPath(pod *v1.Pod, container, id string) string {
	const suffix = ".log"
	name := fmt.Sprintf("%s_%s_%s-%s", pod.Name, pod.Namespace, container, id)
	return filepath.Join(n.LinkDir, name[:min(len(name), maxFileName-len(suffix))]+suffix)
}

// LinkLog lets collectors find a container's log, if they are to.
func (n *Node) LinkLog(pod *v1.Pod, container, id string, restarts int) error {
	if n.LinkDir == "" {
		return nil
	}
	log, link := filepath.Join(n.PodLogDir(pod), logPath(container, restarts)), n.linkPath(pod, container, id)
	err := os.Symlink(log, link)
	if errors.Is(err, fs.ErrNotExist) {
		if err = os.MkdirAll(n.LinkDir, 0o755); err == nil {
			err = os.Symlink(log, link)
		}
	}
	if errors.Is(err, fs.ErrExist) { // a start that was begun before
		return nil
	}
	return err
}

// UnlinkLog takes a container's link away.
func (n *Node) UnlinkLog(pod *v1.Pod, container, id string) error {
	if n.LinkDir == "" {
		return nil
	}
	if err := os.Remove(n.linkPath(pod, container, id)); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// UnlinkLogs takes away all links to the logs of a pod.
func (n *Node) UnlinkLogs(pod *v1.Pod) error {
	if n.LinkDir == "" {
		return nil
	}
	entries, err := os.ReadDir(n.LinkDir)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	}
	var failed error
	for _, e := range entries {
		path := filepath.Join(n.LinkDir, e.Name())
		if !strings.HasPrefix(e.Name(), pod.Name+"_"+pod.Namespace+"_") {
			continue
		}
		// The next pod of the same name may have some already.
		if to, err := os.Readlink(path); err == nil && strings.HasPrefix(to, n.PodLogDir(pod)+"/") {
			failed = errors.Join(failed, os.Remove(path))
		}
	}
	return failed
}
