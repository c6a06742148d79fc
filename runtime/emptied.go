package runtime

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
)

// MendRunDir makes anew what is missing of the run dir's files, as far as that follows from what is known: folders, copies
// of records, files of pods, bundles. It returns how many files it made, and does nothing if none is missing. What is mounted
// there has been there all the time.
func (r *Runtime) MendRunDir() (made int, err error) {
	failed := []error{r.paths.makeFolders()}
	count := func(n int, err error) {
		made += n
		failed = append(failed, err)
	}
	for _, sb := range r.index.allSandboxes() {
		f := sb.factsNow()
		count(mendCopy(sb.twin, sb.writeAgain, sb.record.Boot == r.boot && !f.ReadyAt.IsZero()))
		if sb.ready() {
			count(r.mendPodFiles(sb))
		}
	}
	for _, c := range r.index.allContainers() {
		f := c.factsNow()
		count(mendCopy(c.twin, c.writeAgain, c.record.Boot == r.boot && !f.MadeAt.IsZero()))
		if _, mayLive := f.process(); mayLive && !f.MadeAt.IsZero() {
			count(r.mendBundle(c))
		}
	}
	return made, errors.Join(failed...)
}

func missing(path string) bool {
	_, err := os.Lstat(path)
	return errors.Is(err, fs.ErrNotExist)
}

func mendCopy(t twin, write func() error, complete bool) (int, error) {
	if !complete || t.copy == "" || !missing(t.copy) {
		return 0, nil
	}
	if err := write(); err != nil && !errors.Is(err, errErased) {
		return 0, err
	}
	return 1, nil
}

// mendPodFiles is for the containers that the pod is still to get: those that are there hold the files that were removed.
func (r *Runtime) mendPodFiles(sb *sandbox) (made int, err error) {
	id := sb.record.ID
	if !missing(r.paths.resolvConf(id)) && !missing(r.paths.hostname(id)) && !missing(r.paths.hosts(id)) {
		return 0, nil
	}
	files, err := r.podFiles(sb)
	if err != nil {
		return 0, err
	}
	if err := makePodDir(r.paths.runSandbox(id), sb); err != nil && !errors.Is(err, fs.ErrExist) {
		return 0, err
	}
	for path, data := range files {
		if !missing(path) {
			continue
		}
		if err := os.WriteFile(path, data, 0o644); err != nil {
			return made, err
		}
		made++
	}
	return made, nil
}

// mendBundle writes the spec again if this daemon has it in memory; only an exec needs it. The folder is there as long as
// the root filesystem is mounted in it.
func (r *Runtime) mendBundle(c *container) (int, error) {
	if !missing(r.specPath(c.id())) {
		return 0, nil
	}
	c.mu.Lock()
	s := c.specMemo
	c.mu.Unlock()
	if s == nil {
		return 0, nil // Status says what is lost
	}
	err := writeBundle(filepath.Dir(r.specPath(c.id())), s)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil // it has ended just now
	}
	return 1, err
}

// withoutBundle are the running containers whose specs are lost.
func (r *Runtime) withoutBundle() (ids []string) {
	for _, c := range r.index.allContainers() {
		f := c.factsNow()
		if _, mayLive := f.process(); !mayLive || f.MadeAt.IsZero() || !missing(r.specPath(c.id())) {
			continue
		}
		c.mu.Lock()
		known := c.specMemo != nil
		c.mu.Unlock()
		if !known {
			ids = append(ids, c.id())
		}
	}
	return ids
}
