package kubelet

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/berth-node/berth/internal/atomicfile"
	"github.com/berth-node/berth/kubelet/plan"
	"github.com/berth-node/berth/kubelet/podspec"
)

// A store is the folder with what is kept of each pod: what it is (pod.json, written when it begins or is edited), and what
// became of it (state.json). Their folders hold more, which is not ours: volumes, files of containers.
type store struct {
	dir string // pods/
	log *slog.Logger
}

const (
	podFile   = "pod.json"
	stateFile = "state.json"
)

// podRecord is the form of pod.json.
type podRecord struct {
	Version int     `json:"version"`
	Pod     *v1.Pod `json:"pod"`
	// Wanted is the pod with the resources that it has not been given.
	Wanted *v1.Pod `json:"wanted,omitempty"`
	// Hash is that of the declaration.
	Hash string `json:"hash"`
}

// stateRecord is the form of state.json.
type stateRecord struct {
	Version int          `json:"version"`
	Memory  plan.Memory  `json:"memory"`
	Status  v1.PodStatus `json:"status"`
}

const recordVersion = 1

func openStore(dir string, log *slog.Logger) (store, error) {
	s := store{filepath.Join(dir, "pods"), log}
	return s, os.MkdirAll(s.dir, 0o711)
}

// podDir is the folder of a pod.
func (s store) podDir(uid types.UID) string { return filepath.Join(s.dir, string(uid)) }

// all reads what there is. What cannot be read is set aside: the pod begins anew, or is found by what runs of it.
func (s store) all() ([]*incarnation, error) {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return nil, err
	}
	var all []*incarnation
	for _, e := range entries {
		// What an earlier daemon was writing when it was killed would keep the folder for ever: see erase.
		if err := atomicfile.Sweep(filepath.Join(s.dir, e.Name())); err != nil {
			s.log.Warn("what was half written of a pod's record cannot be removed, ignoring", "uid", e.Name(), "err", err)
		}
		p, err := s.read(types.UID(e.Name()))
		if err != nil {
			s.log.Error("the record of a pod cannot be read and is set aside", "uid", e.Name(), "err", err)
		}
		if p != nil {
			all = append(all, p)
		} else {
			_ = os.Remove(s.podDir(types.UID(e.Name()))) // only if it is empty: a pod that was being erased, or had just begun
		}
	}
	return all, nil
}

// read returns nil for a folder without a record. A damaged state is as good as none: what is, is asked of the runtime.
func (s store) read(uid types.UID) (*incarnation, error) {
	var record podRecord
	err := s.load(uid, podFile, &record)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err == nil && (record.Version != recordVersion || record.Pod == nil || record.Pod.UID != uid) {
		err = errors.Join(fmt.Errorf("%s is not of this pod, or of another version", podFile), s.setAside(uid, podFile))
	}
	if err != nil {
		return nil, err
	}
	p := &incarnation{pod: record.Pod, wanted: record.Wanted, hash: record.Hash, saved: map[string][]byte{}}
	var state stateRecord
	if err := s.load(uid, stateFile, &state); err != nil && !errors.Is(err, fs.ErrNotExist) {
		s.log.Error("the state of a pod cannot be read and is set aside", "uid", uid, "err", err)
	} else if err == nil && state.Version == recordVersion {
		p.memory, p.status = state.Memory, state.Status
	}
	if p.status.StartTime == nil {
		p.status.Phase, p.status.StartTime = v1.PodPending, &record.Pod.CreationTimestamp
	}
	return p, nil
}

func (s store) load(uid types.UID, file string, v any) error {
	data, err := atomicfile.Read(filepath.Join(s.podDir(uid), file))
	if err != nil {
		return err
	}
	if err := json.Unmarshal(data, v); err != nil {
		return errors.Join(err, s.setAside(uid, file))
	}
	return nil
}

func (s store) setAside(uid types.UID, file string) error {
	path := filepath.Join(s.podDir(uid), file)
	return os.Rename(path, path+".damaged")
}

// save writes what has changed. The folder is made once: it is not to come back while the pod is erased.
func (s store) save(p *incarnation) error {
	if len(p.saved) == 0 {
		if err := os.MkdirAll(s.podDir(p.pod.UID), 0o711); err != nil {
			return err
		}
	}
	state := func() error { return s.write(p, stateFile, stateRecord{recordVersion, p.memory, p.status}) }
	if p.memory.Resizing != nil {
		// Resources that the pod has and nobody knows of that they are to be set would never be; the other way round they are
		// asked for again.
		if err := state(); err != nil {
			return err
		}
	}
	return errors.Join(s.write(p, podFile, podRecord{recordVersion, p.pod, p.wanted, p.hash}), state())
}

func (s store) write(p *incarnation, file string, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if bytes.Equal(p.saved[file], data) {
		return nil
	}
	if err := atomicfile.Write(filepath.Join(s.podDir(p.pod.UID), file), data, 0o600); err != nil {
		return err
	}
	p.saved[file] = data
	return nil
}

// erase removes the folder of a pod. What others had in it is gone by then: a folder that is not empty has a volume mounted,
// and is left alone.
func (s store) erase(uid types.UID) error {
	dir := s.podDir(uid)
	if err := os.RemoveAll(podspec.TerminationDir(dir, "")); err != nil {
		return err
	}
	// Without pod.json nobody would come back for the rest.
	for _, file := range []string{podspec.HostsFile, stateFile, stateFile + ".damaged", podFile + ".damaged", podFile, ""} {
		if err := os.Remove(filepath.Join(dir, file)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}
