// Package image keeps the images of a node: it pulls them from registries, lists and removes them, and reads and writes
// archives of them.
//
// An image is named by its ID, the digest of its configuration, which is the same wherever the image comes from. What
// users call it (tags and digests in repositories) are references to it; one image may have many.
//
//	<Dir>/images/<hex of the ID>.json   one record per image: references, manifest, configuration, layers
//	<Dir>/layers/                       package layer
//	<Dir>/spool/                        archives that are being loaded; emptied by Open
package image

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/semaphore"

	"github.com/berth-node/berth/internal/errdefs"
	"github.com/berth-node/berth/internal/failpoint"
	"github.com/berth-node/berth/runtime/image/layer"
)

// Config says how a Store works. Only Dir and Log must be set.
type Config struct {
	Dir string
	Log *slog.Logger
	// HostsDirs are folders in the form of certs.d (<host>/hosts.toml, and _default); the first that knows a host is
	// taken.
	HostsDirs []string
	// MaxParallelLayers and MaxParallelBytes bound what all pulls together fetch and unpack at a time: a number of
	// layers (0 is 6), and the sum of their compressed sizes in bytes (0 is 1 GiB; one layer alone may be larger).
	MaxParallelLayers int
	MaxParallelBytes  int64
	// MaxLayerBytes bounds the size of one uncompressed layer. 0 is 64 GiB.
	MaxLayerBytes int64
	// ProgressTimeout ends a pull whose registry sent no byte for so long. 0 is 5 minutes.
	ProgressTimeout time.Duration
	// ReadTimeout ends a connection over which, in the middle of a blob, nothing has come for so long. The blob goes on
	// over another one. 0 is a tenth of ProgressTimeout.
	ReadTimeout time.Duration
	// RetryDelay is the first pause before a registry that is busy or broken is asked again; those after it are longer.
	// 0 is half a second.
	RetryDelay time.Duration
	// YieldAfter is how long a layer that waits for its registry keeps others from their turn. 0 is 2 seconds.
	YieldAfter time.Duration
	// LeftoverGrace is how long a finished layer of an interrupted pull waits for the next try. 0 is one hour.
	LeftoverGrace time.Duration
	// Pinned are references of images that nobody may collect, as the user writes them.
	Pinned []string
}

func (c Config) withDefaults() Config {
	if c.MaxParallelLayers == 0 {
		c.MaxParallelLayers = 6
	}
	if c.MaxParallelBytes == 0 {
		c.MaxParallelBytes = 1 << 30
	}
	if c.MaxLayerBytes == 0 {
		c.MaxLayerBytes = 64 << 30
	}
	if c.ProgressTimeout == 0 {
		c.ProgressTimeout = 5 * time.Minute
	}
	if c.ReadTimeout == 0 {
		c.ReadTimeout = c.ProgressTimeout / 10
	}
	if c.RetryDelay == 0 {
		c.RetryDelay = 500 * time.Millisecond
	}
	if c.YieldAfter == 0 {
		c.YieldAfter = 2 * time.Second
	}
	if c.LeftoverGrace == 0 {
		c.LeftoverGrace = time.Hour
	}
	return c
}

// A Store keeps the images of one node in one directory, which no other Store may use. Its methods may be called at
// the same time.
type Store struct {
	cfg    Config
	log    *slog.Logger
	layers *layer.Store
	pinned map[string]bool

	// changing is held while records change on disk. Readers, and the start of a container, wait for mu only, which is
	// never held during a write.
	changing sync.Mutex
	syncing  sync.Mutex

	mu     sync.RWMutex
	images map[digest.Digest]*entry // removed ones too, as long as they are in use
	names  map[string]digest.Digest // every reference, as written in the records
	users  map[string]map[digest.Digest]bool
	uses   map[digest.Digest]int
	holds  map[digest.Digest]int // layers that running pulls count on
	// layerUsers let go of the layers that users have of images that are not known.
	layerUsers map[string]func()
	keepAll    atomic.Bool
	// halfRemoved are records that Open has found, of images whose removal was cut off. Collect goes on with it.
	halfRemoved []record

	ctx     context.Context // ends with Close
	close   context.CancelFunc
	running sync.WaitGroup

	flights  flights
	layering keyedLocks[digest.Digest]
	slots    *semaphore.Weighted
	budget   *semaphore.Weighted
	waiting  atomic.Int32 // layers that wait for slot or budget
	spooled  atomic.Int64 // bytes of archives that are being loaded
}

// Open opens the store in cfg.Dir, which it creates if need be.
//
// After it the caller calls Acquire for every container on record, and then Collect.
func Open(cfg Config) (*Store, error) {
	cfg = cfg.withDefaults()
	spool := filepath.Join(cfg.Dir, "spool")
	if err := os.MkdirAll(cfg.Dir, 0o711); err != nil {
		return nil, err
	}
	for _, d := range []string{spool, filepath.Join(cfg.Dir, "images")} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return nil, err
		}
	}
	// The folder itself stays: on a full disk it could not be made again.
	if err := empty(spool); err != nil {
		cfg.Log.Error("archives that were being loaded cannot be deleted, ignoring", "error", err)
	}
	layers, err := layer.Open(filepath.Join(cfg.Dir, "layers"), cfg.Log)
	if err != nil {
		return nil, err
	}
	s := &Store{
		cfg: cfg, log: cfg.Log, layers: layers, pinned: map[string]bool{},
		images: map[digest.Digest]*entry{}, names: map[string]digest.Digest{},
		users: map[string]map[digest.Digest]bool{}, uses: map[digest.Digest]int{}, holds: map[digest.Digest]int{},
		layerUsers: map[string]func(){},
		slots:      semaphore.NewWeighted(int64(cfg.MaxParallelLayers)),
		budget:     semaphore.NewWeighted(cfg.MaxParallelBytes),
	}
	for _, ref := range cfg.Pinned {
		if err := s.pin(ref); err != nil {
			return nil, err
		}
	}
	if err := s.load(); err != nil {
		return nil, err
	}
	if layers.Rebooted() {
		// Only the layers of an image on record are known to have been synced.
		if err := s.collectLayers(0); err != nil {
			return nil, fmt.Errorf("delete layers that were not synced: %w", err)
		}
	}
	if err := layers.NoteBoot(); err != nil {
		cfg.Log.Error("the boot cannot be noted: the next start will take itself for the first one after it", "error", err)
	}
	s.ctx, s.close = context.WithCancel(context.Background())
	s.running.Go(s.sync)
	return s, nil
}

// empty deletes what is in a folder.
func empty(dir string) error {
	entries, err := os.ReadDir(dir)
	for _, e := range entries {
		err = errors.Join(err, os.RemoveAll(filepath.Join(dir, e.Name())))
	}
	return err
}

func (s *Store) pin(ref string) error {
	if digits, only := parseID(ref); only {
		s.pinned["sha256:"+digits] = true
		return nil
	}
	n, err := parseName(ref)
	if err != nil {
		return fmt.Errorf("pinned image: %w", err)
	}
	s.pinned[n.String()] = true
	return nil
}

// Close ends all pulls and waits for their end, and for the layers that are still to be synced. No method may be called
// after it.
func (s *Store) Close() {
	s.close()
	s.running.Wait()
}

// Layers returns the store of the layers, which mounts root filesystems.
func (s *Store) Layers() *layer.Store { return s.layers }

// Get returns the image that ref names: an ID with or without "sha256:", the beginning of an ID (six digits and more)
// that no other image has, or a name with a tag, a digest, both or neither. ErrNotFound if there is none, and
// ErrInvalidArgument if there are several, or ref cannot be a reference.
func (s *Store) Get(ref string) (Image, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	e, err := s.find(ref)
	if err != nil {
		return Image{}, err
	}
	return e.image, nil
}

// find is Get, with mu held.
func (s *Store) find(ref string) (*entry, error) {
	digits, only := parseID(ref)
	if !only {
		n, err := parseName(ref)
		if err == nil {
			if id, ok := s.names[n.String()]; ok {
				return s.images[id], nil
			}
		}
		if err != nil && digits == "" {
			return nil, err
		}
	}
	if digits == "" {
		return nil, fmt.Errorf("image %q: %w", ref, errdefs.ErrNotFound)
	}
	var found *entry
	for id, e := range s.images {
		if e.record.Removed || id.Algorithm() != digest.SHA256 || !strings.HasPrefix(id.Encoded(), digits) {
			continue
		}
		if found != nil {
			return nil, fmt.Errorf("image %q: several images have IDs that begin so: %w", ref, errdefs.ErrInvalidArgument)
		}
		found = e
	}
	if found == nil {
		return nil, fmt.Errorf("image %q: %w", ref, errdefs.ErrNotFound)
	}
	return found, nil
}

// List returns all images, sorted by ID.
func (s *Store) List() []Image {
	s.mu.RLock()
	defer s.mu.RUnlock()
	all := make([]Image, 0, len(s.images))
	for _, e := range s.images {
		if !e.record.Removed {
			all = append(all, e.image)
		}
	}
	slices.SortFunc(all, func(a, b Image) int { return strings.Compare(a.ID, b.ID) })
	return all
}

// put writes a record and shows it. The references that it has are taken from the images that had them. The caller
// holds changing.
func (s *Store) put(r record) (Image, error) {
	e, err := s.write(r)
	if err != nil {
		return Image{}, fmt.Errorf("record image %s: %w", r.ID, err)
	}
	// Only after the new record: until the old ones are written, the later one has the reference.
	changed := []*entry{e}
	for _, rest := range s.withoutLosses(r) {
		o, err := s.write(rest)
		if err != nil {
			return Image{}, fmt.Errorf("record image %s: %w", rest.ID, err)
		}
		changed = append(changed, o)
	}
	failpoint.Here(failpoint.ImageRecorded)
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range changed {
		s.images[c.record.ID] = c
	}
	for _, n := range r.names() {
		s.names[n] = r.ID
	}
	return e.image, nil
}

// withoutLosses returns the records of the images that lose references to r, without these.
func (s *Store) withoutLosses(r record) []record {
	s.mu.RLock()
	defer s.mu.RUnlock()
	var rest []record
	for old, lost := range s.losers(r) {
		rest = append(rest, s.images[old].record.without(lost))
	}
	return rest
}

// Tag gives the image that ref names the further name tag.
func (s *Store) Tag(ref, tag string) (Image, error) {
	n, err := parseName(tag)
	if err != nil {
		return Image{}, err
	}
	if n.digest != "" {
		return Image{}, fmt.Errorf("tag %q: a digest is not for us to give: %w", tag, errdefs.ErrInvalidArgument)
	}
	s.changing.Lock()
	defer s.changing.Unlock()
	s.mu.RLock()
	e, err := s.find(ref)
	s.mu.RUnlock()
	if err != nil {
		return Image{}, err
	}
	return s.put(e.record.with(n))
}

// FsUsage is what the store takes on disk.
type FsUsage struct {
	Mountpoint    string // a directory on the filesystem
	Bytes, Inodes uint64
	At            time.Time
}

// Usage returns what the store takes on disk: layers, records, and what is being fetched.
func (s *Store) Usage() (FsUsage, error) {
	u := FsUsage{Mountpoint: s.cfg.Dir, At: time.Now()}
	u.Bytes, u.Inodes = s.layers.Usage()
	u.Bytes += uint64(s.spooled.Load())
	s.mu.RLock()
	defer s.mu.RUnlock()
	for _, e := range s.images {
		u.Bytes += e.size
		u.Inodes++
	}
	return u, nil
}

// Damaged names the records and layers that could not be read and were set aside, as long as they are there.
func (s *Store) Damaged() []string {
	var out []string
	for _, dir := range []string{filepath.Join(s.cfg.Dir, "images"), filepath.Join(s.cfg.Dir, "layers", "layers")} {
		files, err := filepath.Glob(filepath.Join(dir, "*"+damagedSuffix))
		if err != nil {
			continue // the pattern is good
		}
		for _, f := range files {
			out = append(out, f+": part of an image that could not be read; pull the image again")
		}
	}
	return out
}

// deleteRecord removes the record of an image from disk, if it is there.
func (s *Store) deleteRecord(id digest.Digest) error {
	if err := os.Remove(s.recordPath(id)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
