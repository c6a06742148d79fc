package spec

import (
	"path"
	"strings"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// The annotations by which hooks, plugins and tools tell what a container is; their names are containerd's.
const (
	AnnotationContainerType    = "io.kubernetes.cri.container-type"
	AnnotationContainerName    = "io.kubernetes.cri.container-name"
	AnnotationImageName        = "io.kubernetes.cri.image-name"
	AnnotationSandboxID        = "io.kubernetes.cri.sandbox-id"
	AnnotationSandboxName      = "io.kubernetes.cri.sandbox-name"
	AnnotationSandboxNamespace = "io.kubernetes.cri.sandbox-namespace"
	AnnotationSandboxUID       = "io.kubernetes.cri.sandbox-uid"
	AnnotationSandboxLogDir    = "io.kubernetes.cri.sandbox-log-directory"
)

// Values of AnnotationContainerType.
const (
	ContainerTypeSandbox   = "sandbox"
	ContainerTypeContainer = "container"
)

// actedUpon are prefixes of annotations that libcontainer and criu act upon, the first as properties of
// the systemd unit. Who may annotate a pod may not thereby configure systemd.
var actedUpon = []string{"org.systemd.property.", "org.criu."}

// annotations passes on the container's annotations, those of the pod that the handler's configuration names (a user of
// the Kubernetes API writes them), and says whose container it is.
func (b *builder) annotations() error {
	out := podAnnotations(b.SandboxID, b.Sandbox, ContainerTypeContainer)
	out[AnnotationContainerName] = b.Container.GetMetadata().GetName()
	out[AnnotationImageName] = b.ImageName
	passAnnotations(out, b.Container.GetAnnotations(), []string{"*"})
	passAnnotations(out, b.Sandbox.GetAnnotations(), b.Handler.PodAnnotations)
	b.spec.Annotations = out
	return nil
}

func podAnnotations(id string, pod *cri.PodSandboxConfig, kind string) map[string]string {
	return map[string]string{
		AnnotationContainerType:    kind,
		AnnotationSandboxID:        id,
		AnnotationSandboxName:      pod.GetMetadata().GetName(),
		AnnotationSandboxNamespace: pod.GetMetadata().GetNamespace(),
		AnnotationSandboxUID:       pod.GetMetadata().GetUid(),
	}
}

// passAnnotations copies what matches one of the patterns; what is in to already stays.
func passAnnotations(to, from map[string]string, patterns []string) {
	for key, value := range from {
		if _, taken := to[key]; taken || !matchesAny(key, patterns) {
			continue
		}
		to[key] = value
	}
}

func matchesAny(key string, patterns []string) bool {
	for _, prefix := range actedUpon {
		if strings.HasPrefix(key, prefix) {
			return false
		}
	}
	for _, p := range patterns {
		if prefix, ok := strings.CutSuffix(p, "*"); ok && strings.HasPrefix(key, prefix) {
			return true
		}
		if ok, err := path.Match(p, key); ok && err == nil {
			return true
		}
	}
	return false
}
