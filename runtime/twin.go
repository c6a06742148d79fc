package runtime

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"sync"

	"github.com/berth-node/berth/internal/atomicfile"
)

// A twin is where record and facts of one sandbox or container are on disk: in a folder of the root dir, and, from the
// moment on at which the thing is complete, both once more in a file of the run dir.
//
// What runs has been made since the last boot, and as long the run dir holds. So of all that runs there is a copy on
// another file system than the records themselves: a record that is damaged costs nothing, and on a root dir that is full
// or read-only pods are stopped and removed as ever. Of what does not run the root dir's files are enough.
type twin struct {
	// dir is the folder in the root dir, copy the file in the run dir; empty for none.
	dir, copy string
	health    *recordHealth
}

func (l layout) sandboxTwin(id string, h *recordHealth) twin {
	return twin{l.sandbox(id), filepath.Join(l.sandboxCopies(), id+copySuffix), h}
}

func (l layout) containerTwin(id string, h *recordHealth) twin {
	return twin{l.container(id), filepath.Join(l.containerCopies(), id+copySuffix), h}
}

const copySuffix = ".json"

// copied is what a copy holds.
type copied[R, F any] struct {
	Record R `json:"record"`
	Facts  F `json:"facts"`
}

// save replaces the facts, in both places if the thing is complete, and is content if one of them took it. again writes
// the facts as they are then; it is called when the root dir takes records again after it did not.
func (t twin) save(record, facts any, complete bool, again func() error) error {
	data, err := json.Marshal(facts)
	if err != nil {
		return fmt.Errorf("facts of %s: %w", t.dir, err)
	}
	err = t.saveFacts(data)
	if t.copy == "" || !complete {
		return err
	}
	cerr := atomicfile.WriteJSON(t.copy, copied[any, json.RawMessage]{record, data}, 0o600)
	t.health.wrote(t.dir, err, again)
	if err != nil && cerr != nil {
		return errors.Join(err, cerr)
	}
	return nil
}

func (t twin) saveFacts(data []byte) error {
	return atomicfile.Write(filepath.Join(t.dir, factsFile), data, 0o600)
}

// rewrite makes all files of a twin good again.
func (t twin) rewrite(record, facts any, complete bool) error {
	if err := os.MkdirAll(t.dir, 0o700); err != nil {
		return err
	}
	err := errors.Join(
		atomicfile.WriteJSON(filepath.Join(t.dir, recordFile), record, 0o600),
		atomicfile.WriteJSON(filepath.Join(t.dir, factsFile), facts, 0o600))
	if complete && t.copy != "" {
		err = errors.Join(err, atomicfile.WriteJSON(t.copy, copied[any, any]{record, facts}, 0o600))
	}
	return err
}

// erase deletes record, facts and copy. The copy goes first: alone, it would bring back what was removed.
func (t twin) erase() error {
	if t.copy != "" {
		if err := os.Remove(t.copy); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	t.health.forget(t.dir)
	return os.RemoveAll(t.dir)
}

// recordHealth knows whether the root dir takes records, and whose it did not take. Its methods do nothing on nil.
type recordHealth struct {
	// run does work that nobody waits for.
	run func(func())

	mu     sync.Mutex
	failed error // of the last write; nil if it succeeded
	behind map[string]func() error
}

// wrote is told of each write into the root dir.
func (h *recordHealth) wrote(dir string, err error, again func() error) {
	if h == nil {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.failed = err
	if err != nil {
		if h.behind == nil {
			h.behind = map[string]func() error{}
		}
		h.behind[dir] = again
		return
	}
	delete(h.behind, dir)
	if len(h.behind) == 0 {
		return
	}
	late := h.behind
	h.behind = nil
	h.run(func() { h.catchUp(late) })
}

// catchUp writes what could not be written before.
func (h *recordHealth) catchUp(late map[string]func() error) {
	for dir, again := range late {
		if err := again(); err != nil && !errors.Is(err, errErased) {
			h.wrote(dir, err, again)
		}
	}
}

func (h *recordHealth) forget(dir string) {
	if h == nil {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.behind, dir)
	if len(h.behind) == 0 {
		h.failed = nil // nothing is amiss that this knows of
	}
}

// problem says in words why records are not written; "" if they are.
func (h *recordHealth) problem() string {
	if h == nil {
		return ""
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.failed == nil {
		return ""
	}
	return fmt.Sprintf("records of %d pods and containers are in the run dir only, and would be lost with a reboot: %v", len(h.behind), h.failed)
}

// A fault is a file of a record that cannot be used.
type fault struct {
	path  string
	cause error
}

// readTwin reads record and facts of the thing with this ID. What one place cannot give the other does, and the files
// that were of no use come back as faults.
//
// An error says what could not be read in either place: the record (fs.ErrNotExist if there is nothing at all), or, as an
// errFacts, the facts alone; the record is then good. Facts that nobody has written yet are none.
func readTwin[R stored, F told](t twin, id string) (record R, facts F, faults []fault, err error) {
	var c copied[R, F]
	copyErr := readRecord(t.copy, &c)
	if copyErr == nil {
		copyErr = errors.Join(checkRecord(t.copy, c.Record, id), checkFacts(t.copy, c.Facts, id))
	}
	recordPath, factsPath := filepath.Join(t.dir, recordFile), filepath.Join(t.dir, factsFile)
	recordErr := readRecord(recordPath, &record)
	if recordErr == nil {
		recordErr = checkRecord(recordPath, record, id)
	}
	factsErr := readRecord(factsPath, &facts)
	if factsErr == nil {
		factsErr = checkFacts(factsPath, facts, id)
	}
	if copyErr == nil {
		if recordErr != nil {
			record = c.Record
			faults = append(faults, fault{recordPath, recordErr})
		}
		if factsErr != nil {
			faults = append(faults, fault{factsPath, factsErr})
		}
		if factsErr != nil || c.Facts.revision() > facts.revision() {
			facts = c.Facts // the later ones: the root dir may have been full
		}
		return record, facts, faults, nil
	}
	if errors.Is(copyErr, errDamaged) {
		faults = append(faults, fault{t.copy, copyErr})
	}
	none := errors.Is(factsErr, fs.ErrNotExist)
	switch {
	case errors.Is(recordErr, fs.ErrNotExist) && !none:
		err = fmt.Errorf("%s: %w: it is not there", recordPath, errDamaged)
	case recordErr != nil:
		err = recordErr
	case none:
		var zero F
		facts = zero
	case factsErr != nil:
		err = errFacts{factsErr}
	}
	return record, facts, faults, err
}

// errFacts says that a thing's record is good and its facts are not.
type errFacts struct{ error }

func (e errFacts) Unwrap() error { return e.error }

// stored is a record, told are facts, as far as readTwin looks into them.
type (
	stored interface {
		label() (version int, id string)
	}
	told interface {
		revision() uint64
		of() string
	}
)

func checkRecord(path string, record stored, id string) error {
	version, recorded := record.label()
	switch {
	case version > recordVersion:
		return fmt.Errorf("%s: %w: version %d is newer than %d", path, errDamaged, version, recordVersion)
	case recorded != id:
		return fmt.Errorf("%s: %w: it is of %q", path, errDamaged, recorded)
	}
	return nil
}

func checkFacts(path string, facts told, id string) error {
	switch {
	case reflect.ValueOf(facts).IsZero():
		return fmt.Errorf("%s: %w: it says nothing", path, errDamaged)
	case facts.of() != id && facts.of() != "": // before revisions, facts did not say whose they are
		return fmt.Errorf("%s: %w: it is of %q", path, errDamaged, facts.of())
	}
	return nil
}
