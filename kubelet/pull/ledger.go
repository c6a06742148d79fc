package pull

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"k8s.io/kubernetes/pkg/credentialprovider"

	"github.com/berth-node/berth/internal/atomicfile"
)

// maxHolders bounds what is remembered of an image: the newest stay.
const maxHolders = 100

// A ledger knows with whose credentials images were pulled: a pod without such may not have an image only because another one did.
// Images of which it knows nothing were loaded by the operator, and are everybody's.
type ledger struct {
	dir string
	mu  *sync.Mutex
}

// An account is that of one image.
type account struct {
	// Everybody means that it was pulled without credentials, or with the node's.
	Everybody bool     `json:"everybody,omitempty"`
	Holders   []holder `json:"holders,omitempty"`
}

// A holder is a secret, by its place and by what it held.
type holder struct {
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	UID       string `json:"uid"`
	Hash      string `json:"hash"` // of the credentials
}

func openLedger(dir string) (ledger, error) {
	_ = atomicfile.Sweep(dir) // on a read-only root it stays
	return ledger{dir, &sync.Mutex{}}, os.MkdirAll(dir, 0o700)
}

func (l ledger) path(imageID string) string {
	return filepath.Join(l.dir, strings.ReplaceAll(imageID, ":", "-")+".json")
}

func (l ledger) read(imageID string) (a account, known bool, err error) {
	err = atomicfile.ReadJSON(l.path(imageID), &a)
	if errors.Is(err, fs.ErrNotExist) {
		return a, false, nil
	}
	return a, true, err
}

// allows reports whether who has these keys may have the image. What cannot be read allows nobody: the registry is asked again.
func (l ledger) allows(imageID string, keys []credentialprovider.TrackedAuthConfig) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	a, known, err := l.read(imageID)
	if err != nil {
		return false
	}
	if !known || a.Everybody {
		return true
	}
	for _, key := range keys {
		mine := holderOf(key)
		if slices.ContainsFunc(a.Holders, func(h holder) bool {
			return h.Hash == mine.Hash || mine.UID != "" && h.UID == mine.UID && h.Namespace == mine.Namespace && h.Name == mine.Name
		}) {
			return true
		}
	}
	return false
}

func holderOf(key credentialprovider.TrackedAuthConfig) holder {
	h := holder{Hash: key.AuthConfigHash}
	if key.Source != nil && key.Source.Secret != nil {
		h.Namespace, h.Name, h.UID = key.Source.Secret.Namespace, key.Source.Secret.Name, key.Source.Secret.UID
	}
	return h
}

// enter remembers a pull; key nil is the node's.
func (l ledger) enter(imageID string, key *credentialprovider.TrackedAuthConfig) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	a, _, err := l.read(imageID)
	if err != nil {
		a = account{}
	}
	if key == nil || key.Source == nil { // what a plugin knows is the node's
		if a.Everybody {
			return nil
		}
		a = account{Everybody: true}
	} else {
		h := holderOf(*key)
		if a.Everybody || slices.Contains(a.Holders, h) {
			return nil
		}
		a.Holders = append(a.Holders, h)
		a.Holders = a.Holders[max(0, len(a.Holders)-maxHolders):]
	}
	if err := atomicfile.WriteJSON(l.path(imageID), a, 0o600); err != nil {
		return fmt.Errorf("it could not be kept who pulled image %s: %w", imageID, err)
	}
	return nil
}

// Forget drops what is known of images that are not there any more.
func (p *Puller) Forget(there func(imageID string) bool) error {
	p.ledger.mu.Lock()
	defer p.ledger.mu.Unlock()
	entries, err := os.ReadDir(p.ledger.dir)
	if err != nil {
		return err
	}
	var faults []error
	for _, e := range entries {
		id, ok := strings.CutSuffix(strings.Replace(e.Name(), "-", ":", 1), ".json")
		if ok && !there(id) {
			faults = append(faults, os.Remove(filepath.Join(p.ledger.dir, e.Name())))
		}
	}
	return errors.Join(faults...)
}
