package volume

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path"
	"path/filepath"

	v1 "k8s.io/api/core/v1"
)

// content is what a volume has: files by their paths in it.
type content map[string]file

type file struct {
	data []byte
	mode os.FileMode
}

// hasContent says that the volume is made of objects and of the pod, and follows their changes.
func hasContent(v *v1.Volume) bool {
	return v.ConfigMap != nil || v.Secret != nil || v.DownwardAPI != nil || v.Projected != nil
}

// setUpContent makes a volume of this sort, or changes it at one stroke.
func (m *Manager) setUpContent(pod *v1.Pod, v *v1.Volume, in Inputs) (string, error) {
	files, err := m.contentOf(pod, v, in)
	if err != nil {
		return "", err
	}
	dir := m.path(pod.UID, configMapKind, v.Name)
	if v.ConfigMap == nil {
		if dir, err = m.inMemory(pod.UID, v.Name); err != nil {
			return "", err
		}
	}
	if err := makeDir(dir, nil); err != nil {
		return "", err
	}
	if err := publish(dir, files, func() error { return giveToGroup(dir, pod, true) }); err != nil {
		return "", err
	}
	return dir, makeNested(pod, v.Name, dir)
}

func (m *Manager) contentOf(pod *v1.Pod, v *v1.Volume, in Inputs) (content, error) {
	switch {
	case v.ConfigMap != nil:
		s := v.ConfigMap
		return in.configMap(s.Name, s.Items, modeOf(s.DefaultMode), isTrue(s.Optional))
	case v.Secret != nil:
		s := v.Secret
		return in.secret(s.SecretName, s.Items, modeOf(s.DefaultMode), isTrue(s.Optional))
	case v.DownwardAPI != nil:
		return m.downward(pod, v.DownwardAPI.Items, modeOf(v.DownwardAPI.DefaultMode), in)
	}
	return m.projected(pod, v.Projected, in)
}

// projected joins sources; of two files with one path that of the later source holds.
func (m *Manager) projected(pod *v1.Pod, p *v1.ProjectedVolumeSource, in Inputs) (content, error) {
	all := content{}
	var failed []error
	mode := modeOf(p.DefaultMode)
	for i := range p.Sources {
		var files content
		var err error
		switch s := &p.Sources[i]; {
		case s.Secret != nil:
			files, err = in.secret(s.Secret.Name, s.Secret.Items, mode, isTrue(s.Secret.Optional))
		case s.ConfigMap != nil:
			files, err = in.configMap(s.ConfigMap.Name, s.ConfigMap.Items, mode, isTrue(s.ConfigMap.Optional))
		case s.DownwardAPI != nil:
			files, err = m.downward(pod, s.DownwardAPI.Items, mode, in)
		default:
			err = fmt.Errorf("source %d of the projection is of a kind that is not known here", i)
		}
		failed = append(failed, err)
		maps.Copy(all, files)
	}
	return all, errors.Join(failed...)
}

func (in *Inputs) configMap(name string, items []v1.KeyToPath, mode os.FileMode, optional bool) (content, error) {
	var cm *v1.ConfigMap
	if in.ConfigMap != nil {
		cm = in.ConfigMap(name)
	}
	if cm == nil {
		if !optional {
			return nil, fmt.Errorf("configmap %q not found", name)
		}
		return content{}, nil
	}
	data := map[string][]byte{}
	maps.Copy(data, cm.BinaryData)
	for k, v := range cm.Data {
		data[k] = []byte(v)
	}
	return choose(data, items, mode, optional, "configmap references non-existent config key: %s")
}

func (in *Inputs) secret(name string, items []v1.KeyToPath, mode os.FileMode, optional bool) (content, error) {
	var secret *v1.Secret
	if in.Secret != nil {
		secret = in.Secret(name)
	}
	if secret == nil {
		if !optional {
			return nil, fmt.Errorf("secret %q not found", name)
		}
		return content{}, nil
	}
	return choose(secret.Data, items, mode, optional, "references non-existent secret key: %s")
}

// choose takes all keys, or those of items at their paths.
func choose(data map[string][]byte, items []v1.KeyToPath, mode os.FileMode, optional bool, missing string) (content, error) {
	files := content{}
	if len(items) == 0 {
		for k, v := range data {
			files[k] = file{v, mode}
		}
		return files, nil
	}
	for _, item := range items {
		v, ok := data[item.Key]
		if !ok {
			if optional {
				continue
			}
			return nil, fmt.Errorf(missing, item.Key)
		}
		files[path.Clean(item.Path)] = file{v, itemMode(item.Mode, mode)}
	}
	return files, nil
}

// downward are fields of the pod and resources of its containers.
func (m *Manager) downward(pod *v1.Pod, items []v1.DownwardAPIVolumeFile, mode os.FileMode, in Inputs) (content, error) {
	files := content{}
	var failed []error
	for i := range items {
		var text string
		var err error
		switch item := &items[i]; {
		case item.FieldRef != nil:
			text, err = m.Node.Field(pod, item.FieldRef, in.IPs)
		case item.ResourceFieldRef != nil:
			text, err = m.Node.ResourceField(pod, nil, item.ResourceFieldRef)
		}
		failed = append(failed, err)
		files[path.Clean(items[i].Path)] = file{[]byte(text), itemMode(items[i].Mode, mode)}
	}
	return files, errors.Join(failed...)
}

// defaultMode is that of the API, for a volume that nobody has set the defaults of.
const defaultMode = 0o644

func modeOf(mode *int32) os.FileMode { return itemMode(mode, defaultMode) }

func itemMode(mode *int32, otherwise os.FileMode) os.FileMode {
	if mode == nil {
		return otherwise
	}
	return os.FileMode(*mode) & os.ModePerm
}

func isTrue(b *bool) bool { return b != nil && *b }

// makeDir makes a folder that everybody may write, in one step with what own does to it: one that is there was made by us,
// and is as it should be or as its user wants it. The folders above are nobody's but ours.
func makeDir(dir string, own func(path string) error) error {
	if _, err := os.Lstat(dir); err == nil {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(dir), 0o750); err != nil {
		return err
	}
	made, err := os.MkdirTemp(filepath.Dir(dir), newPrefix)
	if err != nil {
		return err
	}
	err = os.Chmod(made, 0o777) // whatever the umask is
	if err == nil && own != nil {
		err = own(made)
	}
	if err == nil {
		err = os.Rename(made, dir)
	}
	if err != nil {
		_ = os.Remove(made)
	}
	return err
}

// newPrefix begins the names of folders that are in the making: no volume has such a name.
const newPrefix = "..new."
