package podspec

import (
	"fmt"
	"net/netip"
	"strings"
	"unicode/utf8"

	v1 "k8s.io/api/core/v1"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// ContainerInputs are what a container has beside its declaration.
type ContainerInputs struct {
	// RestartCount says how often the container was started before.
	RestartCount int
	Image        Image
	// IPs are the sandbox's, in the order in which the runtime gave them.
	IPs []netip.Addr
	// UserNS is the pod's user namespace; nil means the node's.
	UserNS *cri.UserNamespace
	// Volumes of the pod that are set up, by name.
	Volumes map[string]Volume
	// SubPath returns the path on the host of a path below a volume, for the container's mount of this number.
	SubPath func(c *v1.Container, mount int, path string) (string, error)
	// ConfigMap and Secret return the pod's namespace's objects, nil if there is none of the name.
	ConfigMap func(name string) *v1.ConfigMap
	Secret    func(name string) *v1.Secret
	// Services of all namespaces.
	Services []*v1.Service
	Files    Files
	// TargetID is the container whose processes an ephemeral container sees; "" for none.
	TargetID string
}

// Image is what a container takes from its image.
type Image struct {
	// Ref is the image for the runtime: its ID.
	Ref string
	// UID or Username is the user that the image names, as a number or as a word; both empty for an image that names none
	// and so runs as root.
	UID      *int64
	Username string
}

// Container returns the configuration of a container. Every error keeps the container from being created with upstream's
// reason CreateContainerConfigError, and its message is the one that the status tells.
//
// The declaration of an ephemeral container is its EphemeralContainerCommon, converted.
func (n *Node) Container(pod *v1.Pod, c *v1.Container, in ContainerInputs) (*cri.ContainerConfig, error) {
	if in.Image.UID == nil && in.Image.Username == "" {
		in.Image.UID = new(int64)
	}
	vars, err := n.environment(pod, c, in)
	if err != nil {
		return nil, err
	}
	mounts, err := n.mounts(c, vars, in)
	if err != nil {
		return nil, err
	}
	security, err := n.security(pod, c, in)
	if err != nil {
		return nil, err
	}
	config := &cri.ContainerConfig{
		Metadata:    &cri.ContainerMetadata{Name: c.Name, Attempt: uint32(in.RestartCount)},
		Image:       &cri.ImageSpec{Image: in.Image.Ref, UserSpecifiedImage: c.Image},
		Command:     vars.expandAll(c.Command),
		Args:        vars.expandAll(c.Args),
		WorkingDir:  c.WorkingDir,
		Envs:        vars.list(),
		Mounts:      mounts,
		Labels:      containerLabels(pod, c),
		Annotations: containerAnnotations(pod, c, in.RestartCount),
		LogPath:     logPath(c.Name, in.RestartCount),
		Stdin:       c.Stdin,
		StdinOnce:   c.StdinOnce,
		Tty:         c.TTY,
		StopSignal:  stopSignal(c),
		Linux:       &cri.LinuxContainerConfig{Resources: n.Resources.Container(pod, c), SecurityContext: security},
	}
	return config, checkText(config)
}

// stopSignal is the signal that the declaration names, or none: then the image decides.
func stopSignal(c *v1.Container) cri.Signal {
	if c.Lifecycle == nil || c.Lifecycle.StopSignal == nil {
		return cri.Signal_SIGNAL_RUNTIME_DEFAULT
	}
	name := strings.NewReplacer("+", "PLUS", "-", "MINUS").Replace(string(*c.Lifecycle.StopSignal))
	return cri.Signal(cri.Signal_value["SIGNAL_"+name])
}

// checkText refuses what no process can be given, and what cannot be told to the runtime: the values of Secrets are any
// bytes. The message names no value.
func checkText(config *cri.ContainerConfig) error {
	for _, e := range config.Envs {
		if strings.ContainsRune(string(e.Value), 0) {
			return fmt.Errorf("environment variable %s: its value contains a NUL byte", e.Key)
		}
	}
	for what, words := range map[string][]string{"command": config.Command, "args": config.Args} {
		for i, w := range words {
			if strings.ContainsRune(w, 0) || !utf8.ValidString(w) {
				return fmt.Errorf("%s[%d] contains a NUL byte or is not UTF-8", what, i)
			}
		}
	}
	return nil
}
