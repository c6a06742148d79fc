package source

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/apimachinery/pkg/types"

	"github.com/berth-node/berth/internal/atomicfile"
	"github.com/berth-node/berth/internal/errdefs"
	"github.com/berth-node/berth/kubelet/manifest"
)

// disk is where a Store keeps what it must not forget, for root alone, since there are Secrets in it:
//
//	applied/KIND/NAMESPACE/NAME/object.json   what was applied
//	files/HASH OF THE PATH.json               what a file declared when it was read last
//
// A name may be as long as a file's can be, hence the folder for it; and it says what is lost where the content is damaged.
type disk struct{ dir string }

const objectFile = "object.json"

// A record is a claim on disk.
type record struct {
	Kind    manifest.Kind   `json:"kind"`
	Source  json.RawMessage `json:"source"`
	Line    int             `json:"line,omitempty"`
	Turn    uint64          `json:"turn"`
	UID     types.UID       `json:"uid"`
	Created time.Time       `json:"created"`
}

func recordOf(c *claim) record {
	return record{c.Kind, c.Source, c.Line, c.turn, c.UID, c.Created.UTC()}
}

// claim makes the claim that a record is of.
func (r record) claim(by Origin) (*claim, error) {
	o, err := manifest.Restore(r.Kind, r.Source)
	if err != nil {
		return nil, err
	}
	o.File, o.Line = by.File, r.Line
	c := &claim{Entry: Entry{Object: o, Origin: by}, turn: r.Turn}
	c.identify(r.UID, r.Created.Local())
	return c, nil
}

// fileRecord is what one file declares.
type fileRecord struct {
	Path    string   `json:"path"`
	Objects []record `json:"objects"`
}

// noNamespace is the folder of what is in no namespace; no namespace can have this name.
const noNamespace = "_"

func (d disk) applied(key manifest.Key) string {
	return filepath.Join(d.dir, "applied", string(key.Kind), cmp.Or(key.Namespace, noNamespace), key.Name, objectFile)
}

func (d disk) files() string { return filepath.Join(d.dir, "files") }

func (d disk) fileRecord(path string) string {
	sum := sha256.Sum256([]byte(path))
	return filepath.Join(d.files(), hex.EncodeToString(sum[:16])+".json")
}

func (d disk) writeApplied(c *claim) error {
	path := d.applied(c.Key)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	return atomicfile.WriteJSON(path, recordOf(c), 0o600)
}

func (d disk) removeApplied(key manifest.Key) error {
	path := d.applied(key)
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	_ = os.RemoveAll(filepath.Dir(path))            // of a write that was broken off, there may be more in it
	_ = os.Remove(filepath.Dir(filepath.Dir(path))) // if it was the last one of its namespace
	return nil
}

// writeFile records the claims of a file, if they are not what was recorded before.
func (d disk) writeFile(path string, f *file, claims []*claim) error {
	r := fileRecord{Path: path}
	for _, c := range claims {
		r.Objects = append(r.Objects, recordOf(c))
	}
	text, err := json.Marshal(r)
	if err != nil || bytes.Equal(text, f.written) {
		return err
	}
	if err := atomicfile.Write(d.fileRecord(path), text, 0o600); err != nil {
		return err
	}
	f.written = text
	return nil
}

func (d disk) removeFile(path string) error {
	if err := os.Remove(d.fileRecord(path)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// load reads everything into an empty store.
func (s *Store) load() error {
	if err := os.MkdirAll(s.disk.files(), 0o700); err != nil {
		return err
	}
	_ = atomicfile.Sweep(s.disk.files()) // on a read-only root it stays
	info, err := os.Stat(s.disk.dir)
	if err == nil && info.Mode().Perm() != 0o700 { // on a read-only root the daemon starts all the same
		err = os.Chmod(s.disk.dir, 0o700)
	}
	if err != nil {
		return err
	}
	if err := s.loadApplied(); err != nil {
		return err
	}
	if err := s.loadFiles(); err != nil {
		return err
	}
	for _, line := range s.claims {
		slices.SortStableFunc(line, func(a, b *claim) int {
			// What was applied goes first even if its turn is lost: nothing can have had the name before it.
			if a.Origin.File == "" || b.Origin.File == "" {
				return strings.Compare(a.Origin.File, b.Origin.File)
			}
			return int(int64(a.turn - b.turn))
		})
		for _, c := range line {
			s.turn = max(s.turn, c.turn)
		}
		s.publish(line[0].Key, true)
	}
	return nil
}

func (s *Store) loadApplied() error {
	paths, err := filepath.Glob(filepath.Join(s.disk.dir, "applied", "*", "*", "*", objectFile))
	if err != nil {
		return err
	}
	for _, path := range paths {
		parts := strings.Split(path, string(filepath.Separator))
		n := len(parts)
		key := manifest.Key{Kind: manifest.Kind(parts[n-4]), Namespace: parts[n-3], Name: parts[n-2]}
		if key.Namespace == noNamespace {
			key.Namespace = ""
		}
		c, err := readApplied(path, key)
		if err != nil {
			s.log.Error("what was applied cannot be read any more: what runs by it goes on, until it is applied again or deleted", "object", key, "error", err)
			c = &claim{Entry: Entry{Object: manifest.Object{Key: key}, Lost: err}}
		}
		s.claims[key] = append(s.claims[key], c)
	}
	return nil
}

func readApplied(path string, key manifest.Key) (*claim, error) {
	var r record
	if err := atomicfile.ReadJSON(path, &r); err != nil {
		return nil, err
	}
	c, err := r.claim(Origin{})
	if err == nil && c.Key != key {
		err = fmt.Errorf("%s is of %s: %w", path, c.Key, errdefs.ErrInvalidArgument)
	}
	return c, err
}

func (s *Store) loadFiles() error {
	entries, err := os.ReadDir(s.disk.files())
	if err != nil {
		return err
	}
	for _, e := range entries {
		path := filepath.Join(s.disk.files(), e.Name())
		if strings.HasPrefix(e.Name(), ".") { // a write that was broken off
			_ = os.Remove(path)
			continue
		}
		if err := s.loadFile(path); err != nil {
			// The file itself is there, in all likelihood, and is read in a moment.
			s.log.Warn("the record of a manifest is damaged, and removed", "record", path, "error", err)
			_ = os.Remove(path)
		}
	}
	return nil
}

func (s *Store) loadFile(path string) error {
	text, err := atomicfile.Read(path)
	if err != nil {
		return err
	}
	var r fileRecord
	if err := json.Unmarshal(text, &r); err != nil {
		return err
	}
	if !s.folder.holds(r.Path) { // the configuration names another folder now
		return unix.Unlink(path)
	}
	var claims []*claim
	for _, object := range r.Objects {
		c, err := object.claim(Origin{r.Path})
		if err != nil {
			return err
		}
		claims = append(claims, c)
	}
	s.files[r.Path] = &file{written: text}
	for _, c := range claims {
		s.claims[c.Key] = append(s.claims[c.Key], c)
	}
	return nil
}
