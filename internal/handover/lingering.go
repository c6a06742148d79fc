package handover

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/berth-node/berth/internal/atomicfile"
	"github.com/berth-node/berth/internal/filelock"
)

// lingeringDir is the folder, in the run dir, with two files for each daemon that has given the node away: what it serves
// still, and a lock that it holds while it lives.
const lingeringDir = "lingering"

// A Lingerer is a daemon that has given the node away and still serves sessions.
type Lingerer struct {
	Pid     int    `json:"pid"`
	Version string `json:"version"`
	// Sessions of clients, and Execs, the executions among them by their IDs.
	Sessions int      `json:"sessions"`
	Execs    []string `json:"execs,omitempty"`

	// Dead says that it has died, and not ended its sessions. Await then returns at once.
	Dead bool `json:"-"`

	base string // the files' path without their endings
}

// Lingering is this process's own entry. Its methods may be called concurrently.
type Lingering struct {
	mu   sync.Mutex
	told Lingerer
	lock *filelock.Lock
}

// Linger makes an entry, which Close removes.
func Linger(runDir, version string) (*Lingering, error) {
	dir := filepath.Join(runDir, lingeringDir)
	base := filepath.Join(dir, fmt.Sprintf("%d-%d", os.Getpid(), time.Now().UnixNano()))
	for {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, err
		}
		lock, err := filelock.Acquire(base + ".lock")
		if errors.Is(err, os.ErrNotExist) {
			continue // somebody has removed the folder, which was empty
		}
		if err != nil {
			return nil, err
		}
		return &Lingering{told: Lingerer{Pid: os.Getpid(), Version: version, base: base}, lock: lock}, nil
	}
}

// Tidy removes the folder of a daemon that was killed between its last file and it.
func Tidy(runDir string) {
	_ = os.Remove(filepath.Join(runDir, lingeringDir)) // mostly it is not there; one that is not empty stays
}

// TellExecs replaces the executions of the entry.
func (l *Lingering) TellExecs(ids []string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.told.Execs = ids
	return l.write()
}

// TellSessions replaces the number of sessions.
func (l *Lingering) TellSessions(n int) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if n == l.told.Sessions {
		return nil
	}
	l.told.Sessions = n
	return l.write()
}

func (l *Lingering) write() error {
	return atomicfile.WriteJSON(l.told.base+".json", l.told, 0o600)
}

// Close removes the entry.
func (l *Lingering) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return errors.Join(l.told.remove(), l.lock.Release())
}

// remove removes the files, and the folder with the last of them.
func (l *Lingerer) remove() error {
	var failed error
	for _, ending := range []string{".json", ".lock"} {
		if err := os.Remove(l.base + ending); err != nil && !errors.Is(err, os.ErrNotExist) {
			failed = errors.Join(failed, err)
		}
	}
	_ = os.Remove(filepath.Dir(l.base)) // it is not empty if there are others
	return failed
}

// Lingerers returns the daemons that serve sessions of this node, and those that did and have died.
func Lingerers(runDir string) []Lingerer {
	paths, err := filepath.Glob(filepath.Join(runDir, lingeringDir, "*.lock"))
	if err != nil {
		return nil // a bad pattern
	}
	var found []Lingerer
	for _, path := range paths {
		l := Lingerer{base: strings.TrimSuffix(path, ".lock")}
		if data, err := os.ReadFile(l.base + ".json"); err == nil {
			_ = json.Unmarshal(data, &l) // it is replaced whole
		}
		pid, err := filelock.Holder(path)
		l.Dead = err != nil || pid == 0
		if !l.Dead && l.Pid == 0 {
			continue // it has not let go of the node yet
		}
		found = append(found, l)
	}
	return found
}

// Await waits for the end of a daemon, and returns the executions that it served if it died, none if it ended them all. Who has
// then ended them calls Forget.
func (l Lingerer) Await() (execs []string, err error) {
	if err := filelock.Wait(l.base + ".lock"); err != nil {
		return nil, err
	}
	data, err := os.ReadFile(l.base + ".json")
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	err = json.Unmarshal(data, &l)
	return l.Execs, err
}

// Forget removes the entry of a daemon that has died.
func (l Lingerer) Forget() error { return l.remove() }
