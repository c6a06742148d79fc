package cgroups

import (
	"fmt"
	"path"
	"path/filepath"
	"strings"

	"github.com/opencontainers/cgroups/systemd"

	"github.com/berth-node/berth/internal/errdefs"
)

// scopePrefix begins the names of our scopes: cri-berth-<id>.scope.
const scopePrefix = "cri-berth"

// ContainerPath returns the OCI linux.cgroupsPath of a container.
//
// parent is the CRI's cgroup_parent, a path from the root of the hierarchies ("/kubepods/burstable/pod1"; with the systemd
// driver "/kubepods.slice/kubepods-burstable.slice/…", or the name of the last slice alone). "" means
// [Host.DefaultParent]. The result is parent/id, or slice:cri-berth:id for systemd. An error is an ErrInvalidArgument.
func (h *Host) ContainerPath(parent, id string) (string, error) {
	if id == "" || id == "." || id == ".." || strings.ContainsAny(id, "/:") {
		return "", fmt.Errorf("container id %q cannot name a cgroup: %w", id, errdefs.ErrInvalidArgument)
	}
	p, err := h.parent(parent)
	if err != nil {
		return "", err
	}
	if h.Driver == Systemd {
		return path.Base(p) + ":" + scopePrefix + ":" + id, nil
	}
	return path.Join(p, id), nil
}

// Open returns the cgroup of a container by its OCI linux.cgroupsPath. It makes nothing and needs nothing to be there.
// The path alone decides about the driver, so that what was made before a change of the driver can still be removed.
func (h *Host) Open(cgroupsPath string) (*Group, error) {
	if parts := strings.Split(cgroupsPath, ":"); len(parts) == 3 {
		return h.openScope(parts[0], parts[1], parts[2])
	}
	p, err := rooted("cgroups path", cgroupsPath)
	if err != nil {
		return nil, err
	}
	if p == "/" {
		return nil, fmt.Errorf("cgroups path %q is the root of all cgroups: %w", cgroupsPath, errdefs.ErrInvalidArgument)
	}
	return &Group{host: h, paths: h.under(p)}, nil
}

// OpenParent returns the cgroup that [Host.ContainerPath] puts the containers of a parent into: the pod's own one.
func (h *Host) OpenParent(parent string) (*Group, error) {
	p, err := h.parent(parent)
	if err != nil {
		return nil, err
	}
	g := &Group{host: h, paths: h.under(p)}
	if h.Driver == Systemd {
		g.unit = &unit{name: path.Base(p)}
		if above := path.Dir(p); above != "/" {
			g.unit.slice = path.Base(above)
		}
	}
	return g, nil
}

func (h *Host) openScope(slice, prefix, name string) (*Group, error) {
	dir, err := systemd.ExpandSlice(slice)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", err, errdefs.ErrInvalidArgument)
	}
	if prefix == "" || name == "" || strings.Contains(prefix+name, "/") {
		return nil, fmt.Errorf("scope %q-%q cannot name a unit: %w", prefix, name, errdefs.ErrInvalidArgument)
	}
	scope := prefix + "-" + name + ".scope"
	return &Group{
		host:  h,
		paths: h.under(path.Join(dir, scope)),
		unit:  &unit{slice: slice, prefix: prefix, name: name},
	}, nil
}

// parent checks a cgroup_parent and returns it as a clean path from the root.
func (h *Host) parent(parent string) (string, error) {
	if parent == "" {
		parent = h.DefaultParent
	}
	p, err := rooted("cgroup parent", parent)
	if err != nil {
		return "", err
	}
	isSlice := strings.HasSuffix(p, ".slice")
	if h.Driver == Cgroupfs {
		if isSlice {
			return "", fmt.Errorf("cgroup parent %q is a slice of systemd, but the cgroup driver here is cgroupfs: %w",
				parent, errdefs.ErrInvalidArgument)
		}
		return p, nil
	}
	if !isSlice {
		return "", fmt.Errorf("cgroup parent %q is no slice, as the cgroup driver systemd needs: %w",
			parent, errdefs.ErrInvalidArgument)
	}
	full, err := systemd.ExpandSlice(path.Base(p))
	if err != nil {
		return "", fmt.Errorf("cgroup parent %q: %w: %w", parent, err, errdefs.ErrInvalidArgument)
	}
	if path.Dir(p) != "/" && p != full {
		return "", fmt.Errorf("cgroup parent %q: systemd has this slice at %q: %w", parent, full, errdefs.ErrInvalidArgument)
	}
	return full, nil
}

// rooted returns p as a clean path from the root, and refuses to guess what .. should mean.
func rooted(what, p string) (string, error) {
	for part := range strings.SplitSeq(p, "/") {
		if part == ".." {
			return "", fmt.Errorf("%s %q contains ..: %w", what, p, errdefs.ErrInvalidArgument)
		}
	}
	if strings.ContainsAny(p, "\x00\n:") {
		return "", fmt.Errorf("%s %q contains a colon or control character: %w", what, p, errdefs.ErrInvalidArgument)
	}
	return path.Clean("/" + p), nil
}

// under returns the directory of a cgroup in each hierarchy.
func (h *Host) under(p string) map[string]string {
	paths := make(map[string]string, len(h.mounts))
	for name, mount := range h.mounts {
		paths[name] = filepath.Join(mount, p)
	}
	return paths
}
