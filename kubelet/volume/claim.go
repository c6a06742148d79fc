package volume

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	v1 "k8s.io/api/core/v1"

	"github.com/berth-node/berth/kubelet/podspec"
)

// ClaimDir is the folder with the data of a claim.
func (m *Manager) ClaimDir(namespace, name string) string {
	return filepath.Join(m.ClaimsDir, namespace, name)
}

// setUpClaim makes the folder of a claim, if there is none yet: pods come and go, it stays.
func (m *Manager) setUpClaim(pod *v1.Pod, v *v1.Volume, in Inputs) (podspec.Volume, error) {
	source := v.PersistentVolumeClaim
	var claim *v1.PersistentVolumeClaim
	if in.Claim != nil {
		claim = in.Claim(source.ClaimName)
	}
	if claim == nil {
		return podspec.Volume{}, fmt.Errorf("persistentvolumeclaim %q not found", source.ClaimName)
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
