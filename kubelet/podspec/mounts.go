package podspec

import (
	"fmt"
	"path"
	"strings"

	v1 "k8s.io/api/core/v1"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const etcHosts = "/etc/hosts"

// mounts returns the container's volumes, the pod's hosts file where the container brings none, and the file of the
// termination message.
func (n *Node) mounts(c *v1.Container, vars *variables, in ContainerInputs) ([]*cri.Mount, error) {
	var out []*cri.Mount
	ownHosts := false
	for i := range c.VolumeMounts {
		m, err := n.mount(c, i, vars, in)
		if err != nil {
			return nil, err
		}
		out = append(out, m)
		ownHosts = ownHosts || c.VolumeMounts[i].MountPath == etcHosts
	}
	if in.Files.Hosts != "" && !ownHosts {
		out = append(out, &cri.Mount{HostPath: in.Files.Hosts, ContainerPath: etcHosts, SelinuxRelabel: n.SELinux})
	}
	if in.Files.TerminationLog != "" && c.TerminationMessagePath != "" {
		out = append(out, &cri.Mount{
			HostPath: in.Files.TerminationLog, ContainerPath: path.Join("/", c.TerminationMessagePath), SelinuxRelabel: n.SELinux,
		})
	}
	if ns := in.UserNS; ns != nil && ns.Mode == cri.NamespaceMode_POD {
		for _, m := range out {
			m.UidMappings, m.GidMappings = ns.Uids, ns.Gids
		}
	}
	return out, nil
}

func (n *Node) mount(c *v1.Container, i int, vars *variables, in ContainerInputs) (*cri.Mount, error) {
	m := &c.VolumeMounts[i]
	v, ok := in.Volumes[m.Name]
	if !ok {
		return nil, fmt.Errorf("cannot find volume %q to mount into container %q", m.Name, c.Name)
	}
	subPath, err := subPathOf(m, vars)
	if err != nil {
		return nil, err
	}
	out := &cri.Mount{
		ContainerPath:  path.Join("/", m.MountPath),
		HostPath:       v.Path,
		Readonly:       m.ReadOnly || v.ReadOnly,
		SelinuxRelabel: v.Relabel && n.SELinux,
	}
	switch {
	case v.Image != nil:
		out.HostPath, out.Image, out.ImageSubPath, out.Readonly = "", v.Image, subPath, true
	case subPath != "":
		if out.HostPath, err = in.SubPath(c, i, subPath); err != nil {
			return nil, err
		}
	}
	if out.Propagation, err = propagation(m.MountPropagation); err != nil {
		return nil, err
	}
	if out.RecursiveReadOnly, err = n.recursiveReadOnly(m); err != nil {
		return nil, fmt.Errorf("failed to resolve recursive read-only mode: %w", err)
	}
	return out, nil
}

// subPathOf is the path below a volume that is mounted; "" for all of it.
func subPathOf(m *v1.VolumeMount, vars *variables) (string, error) {
	sub := m.SubPath
	if m.SubPathExpr != "" {
		var err error
		if sub, err = vars.expandPath(m.SubPathExpr); err != nil {
			return "", err
		}
	}
	if path.IsAbs(sub) {
		return "", fmt.Errorf("error SubPath `%s` must not be an absolute path", sub)
	}
	for part := range strings.SplitSeq(sub, "/") {
		if part == ".." {
			return "", fmt.Errorf("unable to provision SubPath `%s`: must not contain '..'", sub)
		}
	}
	return sub, nil
}

func propagation(mode *v1.MountPropagationMode) (cri.MountPropagation, error) {
	if mode == nil {
		return cri.MountPropagation_PROPAGATION_PRIVATE, nil
	}
	switch *mode {
	case v1.MountPropagationNone:
		return cri.MountPropagation_PROPAGATION_PRIVATE, nil
	case v1.MountPropagationHostToContainer:
		return cri.MountPropagation_PROPAGATION_HOST_TO_CONTAINER, nil
	case v1.MountPropagationBidirectional:
		return cri.MountPropagation_PROPAGATION_BIDIRECTIONAL, nil
	}
	return 0, fmt.Errorf("invalid MountPropagation mode: %q", *mode)
}

// recursiveReadOnly says whether what is mounted below the volume becomes read-only too.
func (n *Node) recursiveReadOnly(m *v1.VolumeMount) (bool, error) {
	if m.RecursiveReadOnly == nil || *m.RecursiveReadOnly == v1.RecursiveReadOnlyDisabled {
		return false, nil
	}
	if !m.ReadOnly {
		return false, fmt.Errorf("volume %q requested recursive read-only mode, but it is not read-only", m.Name)
	}
	if p := m.MountPropagation; p != nil && *p != v1.MountPropagationNone {
		return false, fmt.Errorf("volume %q requested recursive read-only mode, but it is not compatible with propagation %q", m.Name, *p)
	}
	switch *m.RecursiveReadOnly {
	case v1.RecursiveReadOnlyIfPossible:
		return n.RecursiveReadOnly, nil
	case v1.RecursiveReadOnlyEnabled:
		if !n.RecursiveReadOnly {
			return false, fmt.Errorf("volume %q requested recursive read-only mode, but it is not supported by the runtime", m.Name)
		}
		return true, nil
	}
	return false, fmt.Errorf("unknown recursive read-only mode %q", *m.RecursiveReadOnly)
}
