package podspec

import (
	"encoding/json"
	"hash/fnv"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"strconv"

	v1 "k8s.io/api/core/v1"
	"k8s.io/kubernetes/pkg/util/hash"
)

// The labels and annotations of sandboxes and containers. Tools know them by these names.
const (
	PodNameLabel       = "io.kubernetes.pod.name"
	PodNamespaceLabel  = "io.kubernetes.pod.namespace"
	PodUIDLabel        = "io.kubernetes.pod.uid"
	ContainerNameLabel = "io.kubernetes.container.name"

	HashAnnotation                     = "io.kubernetes.container.hash"
	RestartCountAnnotation             = "io.kubernetes.container.restartCount"
	TerminationMessagePathAnnotation   = "io.kubernetes.container.terminationMessagePath"
	TerminationMessagePolicyAnnotation = "io.kubernetes.container.terminationMessagePolicy"
	PreStopHandlerAnnotation           = "io.kubernetes.container.preStopHandler"
	PortsAnnotation                    = "io.kubernetes.container.ports"
	DeletionGracePeriodAnnotation      = "io.kubernetes.pod.deletionGracePeriod"
	TerminationGracePeriodAnnotation   = "io.kubernetes.pod.terminationGracePeriod"
)

// podLabels are the pod's own labels and who it is.
func podLabels(pod *v1.Pod) map[string]string {
	labels := map[string]string{}
	maps.Copy(labels, pod.Labels)
	labels[PodNameLabel] = pod.Name
	labels[PodNamespaceLabel] = pod.Namespace
	labels[PodUIDLabel] = string(pod.UID)
	return labels
}

func containerLabels(pod *v1.Pod, c *v1.Container) map[string]string {
	return map[string]string{
		PodNameLabel:       pod.Name,
		PodNamespaceLabel:  pod.Namespace,
		PodUIDLabel:        string(pod.UID),
		ContainerNameLabel: c.Name,
	}
}

// containerAnnotations are what must be known of the container when its pod is not known any more.
func containerAnnotations(pod *v1.Pod, c *v1.Container, restartCount int) map[string]string {
	a := map[string]string{
		HashAnnotation:                     strconv.FormatUint(HashContainer(c), 16),
		RestartCountAnnotation:             strconv.Itoa(restartCount),
		TerminationMessagePathAnnotation:   c.TerminationMessagePath,
		TerminationMessagePolicyAnnotation: string(c.TerminationMessagePolicy),
	}
	for name, seconds := range map[string]*int64{
		DeletionGracePeriodAnnotation:    pod.DeletionGracePeriodSeconds,
		TerminationGracePeriodAnnotation: pod.Spec.TerminationGracePeriodSeconds,
	} {
		if seconds != nil {
			a[name] = strconv.FormatInt(*seconds, 10)
		}
	}
	if c.Lifecycle != nil && c.Lifecycle.PreStop != nil {
		a[PreStopHandlerAnnotation] = asJSON(c.Lifecycle.PreStop)
	}
	if len(c.Ports) > 0 {
		a[PortsAnnotation] = asJSON(c.Ports)
	}
	return a
}

func asJSON(v any) string {
	data, err := json.Marshal(v)
	if err != nil {
		panic(err) // a type of the API, made of strings and numbers
	}
	return string(data)
}

// HashContainer is upstream's: it changes when a running container has to be replaced by one of the changed declaration.
func HashContainer(c *v1.Container) uint64 {
	h := fnv.New32a()
	hash.DeepHashObject(h, []byte(asJSON(map[string]string{"name": c.Name, "image": c.Image})))
	return uint64(h.Sum32())
}

// PodLogDir is the folder of a pod's logs.
func (n *Node) PodLogDir(pod *v1.Pod) string {
	return filepath.Join(n.LogDir, pod.Namespace+"_"+pod.Name+"_"+string(pod.UID))
}

// ContainerLogDir is the folder of the logs of a container and of those that it replaced.
func (n *Node) ContainerLogDir(pod *v1.Pod, container string) string {
	return filepath.Join(n.PodLogDir(pod), container)
}

// logPath is where a container's log is in the folder of the pod's.
func logPath(container string, restartCount int) string {
	return filepath.Join(container, strconv.Itoa(restartCount)+".log")
}

var logName = regexp.MustCompile(`^(\d+)\.log(\..*)?$`)

// NextRestartCount is a number that no log in the folder has yet, where nothing else tells how often a container was
// started: what is logged is never written over.
func NextRestartCount(logDir string) int {
	entries, _ := os.ReadDir(logDir) // no folder, no log
	next := 0
	for _, e := range entries {
		m := logName.FindStringSubmatch(e.Name())
		if m == nil || e.IsDir() {
			continue
		}
		if count, err := strconv.Atoi(m[1]); err == nil {
			next = max(next, count+1)
		}
	}
	return next
}
