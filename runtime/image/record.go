package image

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/berth-node/berth/internal/atomicfile"
	"github.com/berth-node/berth/internal/errdefs"
)

// record is what the store keeps of an image on disk. It is replaced whole.
type record struct {
	ID digest.Digest `json:"id"`
	// Tags and Digests are the references, sorted.
	Tags    []string `json:"tags,omitempty"`
	Digests []string `json:"digests,omitempty"`
	// Config and Manifest are the bytes that came. An image of docker save has no manifest.
	Config      []byte            `json:"config"`
	Manifest    []byte            `json:"manifest,omitempty"`
	Annotations map[string]string `json:"annotations,omitempty"`
	ChainIDs    []digest.Digest   `json:"chainIDs"`
	Pulled      time.Time         `json:"pulled"`
	// Updated is when the record was written. Of two records with the same reference the later one has it.
	Updated time.Time `json:"updated"`
	// Unsynced says that the layers may not have reached the disk. After a restart of the machine such an image is gone.
	Unsynced bool `json:"unsynced,omitempty"`
	// Removed says that the image is gone for all but the containers that run from it.
	Removed bool `json:"removed,omitempty"`
}

func (r record) names() []string { return slices.Concat(r.Tags, r.Digests) }

// with returns the record with further references.
func (r record) with(names ...name) record {
	r.Tags, r.Digests = slices.Clone(r.Tags), slices.Clone(r.Digests)
	for _, n := range names {
		list := &r.Tags
		if n.digest != "" {
			list = &r.Digests
		}
		if i, found := slices.BinarySearch(*list, n.String()); !found {
			*list = slices.Insert(*list, i, n.String())
		}
	}
	return r
}

// without returns the record without some of its references.
func (r record) without(names map[string]bool) record {
	keep := func(list []string) (kept []string) {
		for _, n := range list {
			if !names[n] {
				kept = append(kept, n)
			}
		}
		return kept
	}
	r.Tags, r.Digests = keep(r.Tags), keep(r.Digests)
	return r
}

const (
	recordSuffix  = ".json"
	damagedSuffix = ".damaged"
)

func (s *Store) recordPath(id digest.Digest) string {
	return filepath.Join(s.cfg.Dir, "images", id.Encoded()+recordSuffix)
}

// write puts a record on disk and returns its entry.
func (s *Store) write(r record) (*entry, error) {
	r.Updated = time.Now().UTC()
	b, err := json.Marshal(r)
	if err != nil {
		return nil, err
	}
	e, err := s.newEntry(r, len(b))
	if err != nil {
		return nil, err
	}
	return e, atomicfile.Write(s.recordPath(r.ID), b, 0o600)
}

// load reads all records. One that is damaged, or whose layers are not all there, is set aside: the image can be
// pulled again, and what is left of its layers is used then.
func (s *Store) load() error {
	dir := filepath.Join(s.cfg.Dir, "images")
	files, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	var entries []*entry
	for _, f := range files {
		p := filepath.Join(dir, f.Name())
		if strings.HasPrefix(f.Name(), ".") { // half written
			if err := os.Remove(p); err != nil {
				s.log.Error("half a record cannot be deleted, ignoring", "path", p, "error", err)
			}
			continue
		}
		if !strings.HasSuffix(f.Name(), recordSuffix) {
			continue
		}
		e, err := s.read(p)
		if errors.Is(err, errHalfRemoved) {
			s.halfRemoved = append(s.halfRemoved, e.record)
			continue
		}
		if err != nil {
			s.log.Error("image record is damaged, setting it aside", "path", p+damagedSuffix, "error", err)
			if err := errors.Join(os.RemoveAll(p+damagedSuffix), os.Rename(p, p+damagedSuffix)); err != nil {
				s.log.Error("a damaged image record cannot be set aside, ignoring", "path", p, "error", err)
			}
			continue
		}
		if e.record.Unsynced && s.layers.Rebooted() {
			s.log.Warn("image was pulled just before the machine went down and may be incomplete, deleting it", "image", e.record.ID)
			if err := os.Remove(p); err != nil {
				return err
			}
			continue
		}
		entries = append(entries, e)
	}
	slices.SortFunc(entries, func(a, b *entry) int { return a.record.Updated.Compare(b.record.Updated) })
	for _, e := range entries {
		if err := s.claim(e); err != nil {
			return err
		}
	}
	return nil
}

// claim enters what was read. A daemon that was killed while it moved a tag left it in two records.
func (s *Store) claim(e *entry) error {
	s.images[e.record.ID] = e
	for old, lost := range s.losers(e.record) {
		o, err := s.newEntry(s.images[old].record.without(lost), int(s.images[old].size))
		if err != nil {
			return err
		}
		s.images[old] = o
	}
	for _, n := range e.record.names() {
		s.names[n] = e.record.ID
	}
	return nil
}

// losers returns the references of r that other images have.
func (s *Store) losers(r record) map[digest.Digest]map[string]bool {
	losers := map[digest.Digest]map[string]bool{}
	for _, n := range r.names() {
		old, ok := s.names[n]
		if !ok || old == r.ID {
			continue
		}
		if losers[old] == nil {
			losers[old] = map[string]bool{}
		}
		losers[old][n] = true
	}
	return losers
}

func (s *Store) read(path string) (*entry, error) {
	b, err := atomicfile.Read(path)
	if err != nil {
		return nil, err
	}
	var r record
	if err := json.Unmarshal(b, &r); err != nil {
		return nil, err
	}
	if err := r.ID.Validate(); err != nil {
		return nil, err
	}
	if path != s.recordPath(r.ID) {
		return nil, fmt.Errorf("it is the record of %s", r.ID)
	}
	if got := r.ID.Algorithm().FromBytes(r.Config); got != r.ID {
		return nil, fmt.Errorf("its configuration is %s", got)
	}
	e, err := s.newEntry(r, len(b))
	if errors.Is(err, errdefs.ErrNotFound) && r.Removed {
		return &entry{record: r}, errHalfRemoved
	}
	return e, err
}

// errHalfRemoved says that the removal of an image had got to its layers, which it had only when nobody used them. Some of them
// may be there yet.
var errHalfRemoved = errors.New("the image is removed but for its record")
