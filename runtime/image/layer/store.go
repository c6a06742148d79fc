// Package layer keeps image layers on disk and makes root filesystems from them with overlayfs.
//
// A layer is the difference that one archive of an image makes, as a directory tree in overlayfs form (a whiteout is a
// character device 0/0, an opaque directory carries trusted.overlay.opaque). It is named by its chain ID, which stands
// for this layer and all that lie below it; it is there whole or not at all, and never changes once it is there.
//
//	<dir>/layers/<chain ID>/fs           the tree
//	<dir>/layers/<chain ID>/layer.json   what it is and what it weighs
//	<dir>/layers/<chain ID>/tar-split.gz the recipe that makes the archive again, byte for byte
//	<dir>/ingest/…                       layers being unpacked, and removed ones being deleted; emptied by Open
//	<dir>/empty                          the root of an image without layers
//	<dir>/boot                           the boot in which the newest layers were written
//
// A chain, wherever one is asked for, is the list of chain IDs of an image, the lowest layer first.
package layer

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/berth-node/berth/internal/atomicfile"
	"github.com/berth-node/berth/internal/errdefs"
	"github.com/berth-node/berth/internal/failpoint"
)

const (
	treeName   = "fs"
	infoName   = "layer.json"
	recipeName = "tar-split.gz"
)

// Info is what is known of a layer on disk.
type Info struct {
	ChainID digest.Digest `json:"chainID"`
	DiffID  digest.Digest `json:"diffID"`  // digest of the uncompressed archive
	TarSize int64         `json:"tarSize"` // size of the uncompressed archive
	// Bytes and Inodes are what the layer takes on disk: whole blocks, counted while it was unpacked.
	Bytes  uint64 `json:"bytes"`
	Inodes uint64 `json:"inodes"`
	// Below are the layers below, lowest first, if this one could not be unpacked without them.
	Below []digest.Digest `json:"below,omitempty"`
	// Committed is when the layer came to be.
	Committed time.Time `json:"committed"`
}

// A Store keeps the layers of one node in one directory, which no other Store may use. Its methods may be called at
// the same time.
//
// Whether a layer is in use is not the store's to know: Remove must not be called for a layer of a mounted root.
type Store struct {
	dir string
	log *slog.Logger

	mu     sync.RWMutex
	layers map[digest.Digest]Info

	// What is being unpacked, and so not yet in layers.
	ingestBytes, ingestInodes atomic.Int64

	removed  atomic.Int64 // counts removals, for names
	rebooted bool
	kernel   features
}

// Open opens the store in dir, which it creates if need be, and deletes what unpackings that did not end have left
// behind. A layer that cannot be read is set aside under another name and logged.
func Open(dir string, log *slog.Logger) (*Store, error) {
	s := &Store{dir: dir, log: log, layers: map[digest.Digest]Info{}}
	for _, d := range []string{s.path("layers"), s.path("empty")} {
		if err := os.MkdirAll(d, 0o711); err != nil {
			return nil, err
		}
	}
	// Images have setuid programs, and chain IDs are no secret: no other user of the machine may walk in here. Containers
	// need not: overlayfs looks into its layers as whoever has mounted it.
	if fi, err := os.Stat(s.path("layers")); err != nil || fi.Mode().Perm() != 0o700 { // or it would fail on a read-only disk
		if err := os.Chmod(s.path("layers"), 0o700); err != nil {
			return nil, err
		}
	}
	if err := s.emptyIngest(); err != nil {
		log.Error("half-unpacked layers cannot be deleted, ignoring", "error", err)
	}
	if err := os.MkdirAll(s.path("ingest"), 0o700); err != nil {
		return nil, err
	}
	if err := s.load(); err != nil {
		return nil, err
	}
	return s, s.findBoot()
}

func (s *Store) path(elem ...string) string {
	return filepath.Join(append([]string{s.dir}, elem...)...)
}

// layerDir returns the directory of a committed layer, treeDir the tree in it.
func (s *Store) layerDir(chain digest.Digest) string { return s.path("layers", chain.Encoded()) }
func (s *Store) treeDir(chain digest.Digest) string {
	return s.path("layers", chain.Encoded(), treeName)
}

// emptyIngest deletes half-unpacked layers. A daemon that was killed while it unpacked on top of other layers leaves a
// mount there, and one that was killed while it made an idmapped root leaves a clone of the layers.
func (s *Store) emptyIngest() error {
	ingest := s.path("ingest")
	entries, err := os.ReadDir(ingest)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	var errs error
	for _, e := range entries {
		errs = errors.Join(errs, discardIngest(filepath.Join(ingest, e.Name())))
	}
	return errs
}

func discardIngest(p string) error {
	for _, m := range []string{filepath.Join(p, "merged"), p} {
		mounted, err := isMount(m)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if !mounted {
			continue
		}
		if err := Unmount(m); err != nil {
			return err
		}
	}
	return os.RemoveAll(p)
}

func (s *Store) load() error {
	entries, err := os.ReadDir(s.path("layers"))
	if err != nil {
		return err
	}
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), damagedSuffix) {
			continue
		}
		info, err := readInfo(s.path("layers", e.Name()))
		if err == nil && info.ChainID.Encoded() != e.Name() {
			err = fmt.Errorf("it says that it is %s", info.ChainID)
		}
		if err != nil {
			s.setAside(e.Name(), err)
			continue
		}
		s.layers[info.ChainID] = info
	}
	return nil
}

const damagedSuffix = ".damaged"

// setAside renames what cannot be read, so that the layer can be fetched again.
func (s *Store) setAside(name string, why error) {
	p := s.path("layers", name)
	aside := p + damagedSuffix
	// One that was set aside before stays: containers that run may have its tree mounted.
	for i := 2; ; i++ {
		if _, err := os.Lstat(aside); err != nil {
			break
		}
		aside = fmt.Sprintf("%s.%d%s", p, i, damagedSuffix)
	}
	s.log.Error("layer is damaged, setting it aside", "layer", name, "path", aside, "error", why)
	if err := os.Rename(p, aside); err != nil {
		s.log.Warn("cannot set the damaged layer aside, ignoring", "layer", name, "error", err)
	}
}

func readInfo(dir string) (Info, error) {
	var info Info
	if err := atomicfile.ReadJSON(filepath.Join(dir, infoName), &info); err != nil {
		return info, err
	}
	if err := info.ChainID.Validate(); err != nil {
		return info, err
	}
	_, err := os.Lstat(filepath.Join(dir, treeName))
	return info, err
}

// findBoot finds out whether the machine was started again since NoteBoot.
func (s *Store) findBoot() error {
	now, err := os.ReadFile(bootID)
	if err != nil {
		return err
	}
	then, err := atomicfile.Read(s.path("boot"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		s.log.Error("it cannot be told in which boot the layers were written; those that may not have been synced are deleted", "error", err)
	}
	s.rebooted = string(then) != string(now)
	return nil
}

const bootID = "/proc/sys/kernel/random/boot_id"

// NoteBoot ends what Rebooted says for the next Open. It is for the caller to call when it has removed the layers that may
// not be whole: killed before, it must find them again.
func (s *Store) NoteBoot() error {
	if !s.rebooted {
		return nil
	}
	now, err := os.ReadFile(bootID)
	if err != nil {
		return err
	}
	if err := os.RemoveAll(s.path("boot") + damagedSuffix); err != nil {
		return err
	}
	if fi, err := os.Lstat(s.path("boot")); err == nil && !fi.Mode().IsRegular() {
		if err := os.Rename(s.path("boot"), s.path("boot")+damagedSuffix); err != nil {
			return err
		}
	}
	return atomicfile.Write(s.path("boot"), now, 0o600)
}

// Rebooted says whether the machine was started again since the store was last open. A layer that was committed and
// not synced may then have lost its content: whoever knows which layers were synced removes the others.
func (s *Store) Rebooted() bool { return s.rebooted }

// Sync writes all that was committed to stable storage. It may take long.
func (s *Store) Sync() error {
	d, err := os.Open(s.dir)
	if err != nil {
		return err
	}
	defer d.Close()
	if err := unix.Syncfs(int(d.Fd())); err != nil {
		return fmt.Errorf("syncfs %s: %w", s.dir, err)
	}
	return nil
}

// Has says whether the layer is there.
func (s *Store) Has(chain digest.Digest) bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	_, ok := s.layers[chain]
	return ok
}

// Dir returns the folder with the files of a layer, in overlayfs's form, for reading. The layer must be in use by the
// caller, or it may go away meanwhile.
func (s *Store) Dir(chain digest.Digest) string { return s.treeDir(chain) }

// Get returns what is known of a layer, or ErrNotFound.
func (s *Store) Get(chain digest.Digest) (Info, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	info, ok := s.layers[chain]
	if !ok {
		return Info{}, fmt.Errorf("layer %s: %w", chain, errdefs.ErrNotFound)
	}
	return info, nil
}

// List returns all layers, in no order.
func (s *Store) List() []Info {
	s.mu.RLock()
	defer s.mu.RUnlock()
	all := make([]Info, 0, len(s.layers))
	for _, info := range s.layers {
		all = append(all, info)
	}
	return all
}

// Usage returns the bytes and the inodes that all layers take on disk, those included that are being unpacked.
func (s *Store) Usage() (bytes, inodes uint64) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	for _, info := range s.layers {
		bytes += info.Bytes
		inodes += info.Inodes
	}
	return bytes + uint64(max(0, s.ingestBytes.Load())), inodes + uint64(max(0, s.ingestInodes.Load()))
}

// Forget takes layers out of the store: from now on they are not there. What they took on disk is freed by the
// function that is returned, which may take long. No layer of a mounted root may be among them.
func (s *Store) Forget(chains ...digest.Digest) (free func() error, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var trash []string
	var errs []error
	for _, chain := range chains {
		if _, ok := s.layers[chain]; !ok {
			continue
		}
		// Renamed first, so that a layer is never seen half deleted; and not into a new folder, for which a full disk has no
		// room.
		t := s.path("ingest", fmt.Sprintf("removed-%d-%s", s.removed.Add(1), chain.Encoded()))
		if err := os.Rename(s.layerDir(chain), t); err != nil {
			errs = append(errs, err)
			continue
		}
		delete(s.layers, chain)
		trash = append(trash, t)
	}
	return func() error {
		failpoint.Here(failpoint.LayerForgotten)
		var errs []error
		for _, t := range trash {
			errs = append(errs, os.RemoveAll(t))
		}
		return errors.Join(errs...)
	}, errors.Join(errs...)
}

// Remove deletes a layer. It does nothing where none is. See Forget for which layers must stay.
func (s *Store) Remove(chain digest.Digest) error {
	free, err := s.Forget(chain)
	return errors.Join(err, free())
}
