package volume

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	v1 "k8s.io/api/core/v1"

	"github.com/berth-node/berth/internal/errdefs"
	"github.com/berth-node/berth/kubelet/podspec"
)

// ClaimDir is the folder with the data of a claim.
func (m *Manager) ClaimDir(namespace, name string) string {
	return filepath.Join(m.ClaimsDir, namespace, name)
}

// setUpClaim gives a pod the PersistentVolume that a claim is bound to, or makes the claim's folder, if there is none yet: pods come
// and go, it stays.
func (m *Manager) setUpClaim(ctx context.Context, pod *v1.Pod, v *v1.Volume, in Inputs) (podspec.Volume, error) {
	source := v.PersistentVolumeClaim
	var claim *v1.PersistentVolumeClaim
	if in.Claim != nil {
		claim = in.Claim(source.ClaimName)
	}
	if claim == nil {
		return podspec.Volume{}, fmt.Errorf("persistentvolumeclaim %q not found", source.ClaimName)
	}
	bound, err := m.Bound(pod.Namespace, source.ClaimName)
	if err != nil {
		return podspec.Volume{}, err
	}
	if bound != nil {
		return m.setUpBound(ctx, pod, v, bound)
	}
	dir := m.ClaimDir(pod.Namespace, source.ClaimName)
	own := func(path string) error { return giveToGroup(path, pod, false) }
	if err := makeDir(dir, own); err != nil {
		return podspec.Volume{}, err
	}
	wrong, err := mismatched(dir, pod)
	if err == nil && wrong && !source.ReadOnly {
		err = own(dir)
	}
	return podspec.Volume{Path: dir, ReadOnly: source.ReadOnly, Relabel: true}, err
}

// setUpBound gives a pod a PersistentVolume.
func (m *Manager) setUpBound(ctx context.Context, pod *v1.Pod, v *v1.Volume, bound *v1.PersistentVolume) (podspec.Volume, error) {
	spec, readOnly := &bound.Spec, v.PersistentVolumeClaim.ReadOnly
	switch {
	case spec.Local != nil:
		path, err := m.checkLocal(ctx, bound)
		if err == nil && !readOnly {
			err = m.giveLocal(pod, path)
		}
		return podspec.Volume{Path: path, ReadOnly: readOnly, Relabel: !readOnly}, err
	case spec.HostPath != nil:
		return podspec.Volume{Path: spec.HostPath.Path, ReadOnly: readOnly}, m.checkHostPath(ctx, spec.HostPath)
	case spec.NFS != nil:
		path, err := m.setUpNFS(ctx, pod, v.Name, spec.NFS, spec.MountOptions)
		return podspec.Volume{Path: path, ReadOnly: readOnly || spec.NFS.ReadOnly}, err
	}
	return podspec.Volume{}, fmt.Errorf("the kind of PersistentVolume %q is not known here: %w", bound.Name, errdefs.ErrInvalidArgument)
}

// checkLocal refuses what is not there, and what is no folder: nothing is made for a local volume, whose owner has prepared it. It
// returns where links lead.
func (m *Manager) checkLocal(ctx context.Context, bound *v1.PersistentVolume) (string, error) {
	path := bound.Spec.Local.Path
	mode, err := m.HostPaths.Mode(ctx, path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "", fmt.Errorf("path %q does not exist", path)
	case err != nil:
		return "", err
	case mode.Type() == fs.ModeDevice:
		return "", fmt.Errorf("spec.local.path of PersistentVolume %q: %s is a block device: mount it, and name the folder where it is mounted", bound.Name, path)
	case !mode.IsDir():
		return "", fmt.Errorf("spec.local.path of PersistentVolume %q: %s is not a directory", bound.Name, path)
	}
	return m.HostPaths.Resolve(ctx, path)
}

// giveLocal gives a local volume to the pod's fsGroup.
func (m *Manager) giveLocal(pod *v1.Pod, path string) error {
	wrong, err := mismatched(path, pod)
	if err != nil || !wrong {
		return err
	}
	return giveToGroup(path, pod, false)
}

// RemoveClaim removes the data of a claim. One that has none is no error.
func (m *Manager) RemoveClaim(namespace, name string) error {
	if err := removeTree(m.ClaimDir(namespace, name)); err != nil {
		return err
	}
	err := os.Remove(filepath.Join(m.ClaimsDir, namespace)) // that of the last claim
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrExist) {
		return nil
	}
	return err
}
