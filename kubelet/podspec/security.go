package podspec

import (
	"errors"
	"fmt"
	"math"
	"path/filepath"
	"strings"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
	podutil "k8s.io/kubernetes/pkg/api/v1/pod"
	"k8s.io/kubernetes/pkg/securitycontext"
)

// privileged says that some container of the pod is.
func privileged(pod *v1.Pod) bool {
	return !podutil.VisitContainers(&pod.Spec, podutil.AllContainers, func(c *v1.Container, _ podutil.ContainerType) bool {
		return c.SecurityContext == nil || c.SecurityContext.Privileged == nil || !*c.SecurityContext.Privileged
	})
}

// security returns the container's security context: its own settings before the pod's before the image's.
func (n *Node) security(pod *v1.Pod, c *v1.Container, in ContainerInputs) (*cri.LinuxContainerSecurityContext, error) {
	effective := securitycontext.DetermineEffectiveSecurityContext(pod, c)
	if err := verifyNonRoot(pod, c, effective, in.Image); err != nil {
		return nil, err
	}
	out := &cri.LinuxContainerSecurityContext{
		Capabilities:     capabilities(effective.Capabilities),
		Privileged:       isTrue(effective.Privileged),
		NamespaceOptions: namespaces(pod, in.UserNS),
		SelinuxOptions:   selinux(effective.SELinuxOptions),
		RunAsUser:        id(effective.RunAsUser),
		RunAsGroup:       id(effective.RunAsGroup),
		ReadonlyRootfs:   isTrue(effective.ReadOnlyRootFilesystem),
		NoNewPrivs:       securitycontext.AddNoNewPrivileges(effective),
		MaskedPaths:      securitycontext.ConvertToRuntimeMaskedPaths(effective.ProcMount),
		ReadonlyPaths:    securitycontext.ConvertToRuntimeReadonlyPaths(effective.ProcMount),
	}
	if out.RunAsUser == nil {
		out.RunAsUser, out.RunAsUsername = id(in.Image.UID), in.Image.Username
	}
	if in.TargetID != "" && out.NamespaceOptions.Pid == cri.NamespaceMode_CONTAINER {
		out.NamespaceOptions.Pid, out.NamespaceOptions.TargetId = cri.NamespaceMode_TARGET, in.TargetID
	}
	var err error
	if sc := pod.Spec.SecurityContext; sc != nil {
		if out.SupplementalGroups, out.SupplementalGroupsPolicy, err = groups(sc); err != nil {
			return nil, err
		}
	}
	if out.Seccomp, err = n.seccomp(pod, c); err != nil {
		return nil, err
	}
	//lint:ignore SA1019 older runtimes read the old field
	out.Apparmor, out.ApparmorProfile, err = apparmor(pod, c)
	return out, err
}

// verifyNonRoot refuses what would run as root, or might, where the pod says that it must not.
func verifyNonRoot(pod *v1.Pod, c *v1.Container, effective *v1.SecurityContext, image Image) error {
	if !isTrue(effective.RunAsNonRoot) {
		return nil
	}
	where := fmt.Sprintf("(pod: %q, container: %s)", fmt.Sprintf("%s_%s(%s)", pod.Name, pod.Namespace, pod.UID), c.Name)
	if user := effective.RunAsUser; user != nil {
		if *user == 0 {
			return fmt.Errorf("container's runAsUser breaks non-root policy %s", where)
		}
		return nil
	}
	if image.UID == nil {
		if image.Username == "" {
			return fmt.Errorf("container has runAsNonRoot and image will run as root %s", where)
		}
		return fmt.Errorf("container has runAsNonRoot and image has non-numeric user (%s), cannot verify user is non-root %s",
			image.Username, where)
	}
	if *image.UID == 0 {
		return fmt.Errorf("container has runAsNonRoot and image will run as root %s", where)
	}
	if faults := validation.IsValidUserID(*image.UID); len(faults) > 0 {
		return fmt.Errorf("container has runAsNonRoot and image has an invalid user id (%d). (Must be 1-(%d)): %s %s",
			*image.UID, math.MaxInt32, strings.Join(faults, "; "), where)
	}
	return nil
}

func isTrue(b *bool) bool { return b != nil && *b }

func id(n *int64) *cri.Int64Value {
	if n == nil {
		return nil
	}
	return &cri.Int64Value{Value: *n}
}

func selinux(o *v1.SELinuxOptions) *cri.SELinuxOption {
	if o == nil {
		return nil
	}
	return &cri.SELinuxOption{User: o.User, Role: o.Role, Type: o.Type, Level: o.Level}
}

func capabilities(c *v1.Capabilities) *cri.Capability {
	if c == nil {
		return nil
	}
	out := &cri.Capability{}
	for _, name := range c.Add {
		out.AddCapabilities = append(out.AddCapabilities, string(name))
	}
	for _, name := range c.Drop {
		out.DropCapabilities = append(out.DropCapabilities, string(name))
	}
	return out
}

// groups are the groups of the pod's processes beside the first: that of its files among them.
func groups(sc *v1.PodSecurityContext) (all []int64, policy cri.SupplementalGroupsPolicy, err error) {
	if sc.FSGroup != nil {
		all = append(all, *sc.FSGroup)
	}
	all = append(all, sc.SupplementalGroups...)
	if p := sc.SupplementalGroupsPolicy; p != nil {
		value, ok := cri.SupplementalGroupsPolicy_value[string(*p)]
		if !ok {
			return nil, 0, fmt.Errorf("unsupported supplementalGroupsPolicy: %s", *p)
		}
		policy = cri.SupplementalGroupsPolicy(value)
	}
	return all, policy, nil
}

// seccomp is the container's profile, or the pod's, or the node's default.
func (n *Node) seccomp(pod *v1.Pod, c *v1.Container) (*cri.SecurityProfile, error) {
	var profile *v1.SeccompProfile
	if sc := pod.Spec.SecurityContext; sc != nil {
		profile = sc.SeccompProfile
	}
	if sc := c.SecurityContext; sc != nil && sc.SeccompProfile != nil {
		profile = sc.SeccompProfile
	}
	unconfined := &cri.SecurityProfile{ProfileType: cri.SecurityProfile_Unconfined}
	runtimeDefault := &cri.SecurityProfile{ProfileType: cri.SecurityProfile_RuntimeDefault}
	switch {
	case profile == nil && n.SeccompDefault:
		return runtimeDefault, nil
	case profile == nil:
		return unconfined, nil
	case profile.Type == v1.SeccompProfileTypeRuntimeDefault:
		return runtimeDefault, nil
	case profile.Type != v1.SeccompProfileTypeLocalhost:
		return unconfined, nil
	}
	// An empty one must not mean the folder, which a runtime might take for no profile (CVE-2023-2431).
	if profile.LocalhostProfile == nil || *profile.LocalhostProfile == "" {
		//lint:ignore ST1005 upstream's words
		return nil, errors.New("localhostProfile must be set if seccompProfile type is Localhost.")
	}
	return &cri.SecurityProfile{
		ProfileType:  cri.SecurityProfile_Localhost,
		LocalhostRef: filepath.Join(n.SeccompRoot, *profile.LocalhostProfile),
	}, nil
}

// apparmor is the container's profile or the pod's, also in the word that was used for it before there was a field.
func apparmor(pod *v1.Pod, c *v1.Container) (*cri.SecurityProfile, string, error) {
	profile := apparmorProfile(pod, c)
	if profile == nil {
		return nil, "", nil
	}
	switch profile.Type {
	case v1.AppArmorProfileTypeRuntimeDefault:
		return &cri.SecurityProfile{ProfileType: cri.SecurityProfile_RuntimeDefault}, v1.DeprecatedAppArmorBetaProfileRuntimeDefault, nil
	case v1.AppArmorProfileTypeUnconfined:
		return &cri.SecurityProfile{ProfileType: cri.SecurityProfile_Unconfined}, v1.DeprecatedAppArmorBetaProfileNameUnconfined, nil
	case v1.AppArmorProfileTypeLocalhost:
		if profile.LocalhostProfile == nil || *profile.LocalhostProfile == "" {
			return nil, "", errors.New("missing localhost apparmor profile name")
		}
		return &cri.SecurityProfile{ProfileType: cri.SecurityProfile_Localhost, LocalhostRef: *profile.LocalhostProfile},
			v1.DeprecatedAppArmorBetaProfileNamePrefix + *profile.LocalhostProfile, nil
	}
	return nil, "", fmt.Errorf("unknown apparmor profile type: %q", profile.Type)
}

func apparmorProfile(pod *v1.Pod, c *v1.Container) *v1.AppArmorProfile {
	if sc := c.SecurityContext; sc != nil && sc.AppArmorProfile != nil {
		return sc.AppArmorProfile
	}
	if p := annotatedProfile(pod.Annotations[v1.DeprecatedAppArmorBetaContainerAnnotationKeyPrefix+c.Name]); p != nil {
		return p
	}
	if sc := pod.Spec.SecurityContext; sc != nil {
		return sc.AppArmorProfile
	}
	return nil
}

// annotatedProfile reads the annotation by which profiles were named before there was a field: manifests still have it,
// and no API server has turned it into the field.
func annotatedProfile(value string) *v1.AppArmorProfile {
	switch value {
	case "":
		return nil
	case v1.DeprecatedAppArmorBetaProfileRuntimeDefault:
		return &v1.AppArmorProfile{Type: v1.AppArmorProfileTypeRuntimeDefault}
	case v1.DeprecatedAppArmorBetaProfileNameUnconfined:
		return &v1.AppArmorProfile{Type: v1.AppArmorProfileTypeUnconfined}
	}
	name, ok := strings.CutPrefix(value, v1.DeprecatedAppArmorBetaProfileNamePrefix)
	if !ok {
		return nil
	}
	return &v1.AppArmorProfile{Type: v1.AppArmorProfileTypeLocalhost, LocalhostProfile: &name}
}
