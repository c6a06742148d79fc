package kubelet

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
	v1 "k8s.io/api/core/v1"

	"github.com/berth-node/berth/kubelet/podspec"
	"github.com/berth-node/berth/runtime"
	"github.com/berth-node/berth/runtime/crilog"
)

// How much of the last words of containers is kept, as upstream does: of each, of the log that stands in for them, and of all of
// a pod.
const (
	maxWords      = 4096
	maxLogWords   = 2048
	maxLogLines   = 80
	maxWordsOfPod = 12 << 10
)

// lastWords is the message of a container that has ended: the runtime's, and what the container left in its termination log, or
// if it failed and wants it so, the end of its log. It is read once, while the files are there.
func (w *worker) lastWords(c *runtime.Container) string {
	if m, ok := w.pod.messages[c.ID]; ok {
		return m
	}
	message := c.Message
	words := terminationLog(c)
	notes := c.Config.GetAnnotations()
	if words == "" && c.ExitCode != 0 && c.Reason != "StartError" &&
		notes[podspec.TerminationMessagePolicyAnnotation] == string(v1.TerminationMessageFallbackToLogsOnError) {
		words = endOfLog(c)
	}
	switch {
	case message == "":
		message = words
	case words != "":
		message += ": " + words
	}
	// The pod of a record that was lost has no containers, but what ran of it has.
	if limit := maxWordsOfPod / max(1, len(w.pod.pod.Spec.Containers)+len(w.pod.pod.Spec.InitContainers)); len(message) > limit {
		message = message[:limit]
	}
	if w.pod.messages == nil {
		w.pod.messages = map[string]string{}
	}
	w.pod.messages[c.ID] = message
	return message
}

// terminationLog reads the end of what the container left.
func terminationLog(c *runtime.Container) string {
	path := c.Config.GetAnnotations()[podspec.TerminationMessagePathAnnotation]
	if path == "" {
		return ""
	}
	for _, m := range c.Config.GetMounts() {
		if m.ContainerPath != path {
			continue
		}
		words, err := tail(m.HostPath, maxWords)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Sprintf("Error on reading termination log %s: %v", m.HostPath, err)
		}
		return words
	}
	return ""
}

// tail reads the last bytes of a regular file.
func tail(path string, limit int64) (string, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOFOLLOW, 0)
	if err != nil {
		return "", err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil || !st.Mode().IsRegular() {
		return "", err
	}
	data, err := io.ReadAll(io.NewSectionReader(f, max(0, st.Size()-limit), limit))
	return string(data), err
}

// endOfLog is the end of what the container has printed.
func endOfLog(c *runtime.Container) string {
	var words []byte
	err := crilog.Read(context.Background(), c.LogPath, crilog.Options{Tail: maxLogLines}, func(e crilog.Entry) error {
		words = append(words, e.Content...)
		if !e.Partial {
			words = append(words, '\n')
		}
		words = words[max(0, len(words)-maxLogWords):]
		return nil
	})
	if err != nil {
		return fmt.Sprintf("Error on reading termination message from logs: %v", err)
	}
	return string(words)
}
