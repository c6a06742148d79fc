package network

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/containernetworking/cni/libcni"
	"golang.org/x/sys/unix"

	"github.com/berth-node/berth/internal/atomicfile"
	"github.com/berth-node/berth/internal/errdefs"
)

// An attachment is the record of an ADD: what was asked, of which network as it was configured then.
type attachment struct {
	Request Request      `json:"request"`
	Network savedNetwork `json:"network"`
}

// attachments keeps one file for each, named by the sandbox. A file is there from before ADD until after DEL.
type attachments struct {
	dir string
	log *slog.Logger
}

const attachmentSuffix = ".json"

// open makes the folder, and removes the files that a daemon was writing when it died.
func (s attachments) open() error {
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return err
	}
	files, err := os.ReadDir(s.dir)
	if err != nil {
		return err
	}
	for _, f := range files {
		if !strings.HasPrefix(f.Name(), ".") {
			continue
		}
		if err := removeRecord(filepath.Join(s.dir, f.Name())); err != nil {
			return err
		}
	}
	return nil
}

func (s attachments) path(sandboxID string) (string, error) {
	if sandboxID == "" || strings.ContainsAny(sandboxID, "/\x00") || sandboxID[0] == '.' {
		return "", fmt.Errorf("sandbox ID %q: %w", sandboxID, errdefs.ErrInvalidArgument)
	}
	return filepath.Join(s.dir, sandboxID+attachmentSuffix), nil
}

// create records a. One that is recorded already is an error (ErrAlreadyExists).
func (s attachments) create(a attachment) error {
	path, err := s.path(a.Request.SandboxID)
	if err != nil {
		return err
	}
	if _, err := os.Lstat(path); err == nil {
		return fmt.Errorf("sandbox %s is attached: %w", a.Request.SandboxID, errdefs.ErrAlreadyExists)
	}
	return atomicfile.WriteJSON(path, a, 0o600)
}

// begin locks the record of a sandbox for its ADD. The plugins inherit the file, and the lock with it: if this daemon dies
// while they run, they still have it. end ends it for all who have the file.
func (s attachments) begin(sandboxID string) (lock *os.File, end func(), err error) {
	path, err := s.path(sandboxID)
	if err != nil {
		return nil, nil, err
	}
	if lock, err = os.Open(path); err != nil {
		return nil, nil, err
	}
	if err = unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		lock.Close()
		return nil, nil, fmt.Errorf("lock %s: %w", path, err)
	}
	return lock, func() {
		_ = unix.Flock(int(lock.Fd()), unix.LOCK_UN) // a process that a plugin left behind may have it too
		lock.Close()
	}, nil
}

const (
	// orphanLimit is how long plugins may go on whose daemon was killed.
	orphanLimit = 30 * time.Second
	orphanLook  = 10 * time.Millisecond
)

// awaitOrphans waits for the plugins of an ADD whose daemon was killed: what they still do, a DEL beside them would not undo.
func (s attachments) awaitOrphans(ctx context.Context, sandboxID string) error {
	path, err := s.path(sandboxID)
	if err != nil {
		return err
	}
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	for began := time.Now(); ; {
		err := unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB)
		if err == nil {
			return nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) || time.Since(began) > orphanLimit {
			return fmt.Errorf("plugins of an earlier ADD: %w", err)
		}
		select {
		case <-time.After(orphanLook):
		case <-ctx.Done():
			return fmt.Errorf("plugins of an earlier ADD: %w", ctx.Err())
		}
	}
}

// load reads the record of a sandbox; ErrNotFound where there is none.
func (s attachments) load(sandboxID string) (attachment, error) {
	path, err := s.path(sandboxID)
	if err != nil {
		return attachment{}, err
	}
	var a attachment
	err = atomicfile.ReadJSON(path, &a)
	if errors.Is(err, fs.ErrNotExist) {
		return attachment{}, fmt.Errorf("attachment of sandbox %s: %w", sandboxID, errdefs.ErrNotFound)
	}
	if err == nil && a.Request.SandboxID != sandboxID {
		err = fmt.Errorf("it is of sandbox %q", a.Request.SandboxID)
	}
	if err != nil {
		// Set aside, so that it stands in nobody's way; the caller's request and the present configuration are then the
		// best guess.
		setAside(s.log, path, err, "the sandbox is detached by the configuration that holds then")
		return attachment{}, fmt.Errorf("attachment of sandbox %s is damaged: %w: %w", sandboxID, err, errdefs.ErrNotFound)
	}
	return a, nil
}

// remove drops the record of a sandbox, if there is one.
func (s attachments) remove(sandboxID string) error {
	path, err := s.path(sandboxID)
	if err != nil {
		return err
	}
	return removeRecord(path)
}

// all returns the sandboxes that have records.
func (s attachments) all() ([]string, error) {
	files, err := os.ReadDir(s.dir)
	if err != nil {
		return nil, err
	}
	var ids []string
	for _, f := range files {
		if id, ok := strings.CutSuffix(f.Name(), attachmentSuffix); ok && id != "" {
			ids = append(ids, id)
		}
	}
	return ids, nil
}

// A savedNetwork is a configuration with all its plugins, also those that libcni read from other files.
type savedNetwork struct {
	Name         string            `json:"name"`
	CNIVersion   string            `json:"cniVersion"`
	DisableCheck bool              `json:"disableCheck,omitempty"`
	Plugins      []json.RawMessage `json:"plugins"`
}

func saveNetwork(conf *libcni.NetworkConfigList) savedNetwork {
	s := savedNetwork{Name: conf.Name, CNIVersion: conf.CNIVersion, DisableCheck: conf.DisableCheck}
	for _, p := range conf.Plugins {
		s.Plugins = append(s.Plugins, p.Bytes)
	}
	return s
}

func (s savedNetwork) load() (*libcni.NetworkConfigList, error) {
	conf := &libcni.NetworkConfigList{Name: s.Name, CNIVersion: s.CNIVersion, DisableCheck: s.DisableCheck}
	for _, data := range s.Plugins {
		p, err := libcni.NetworkPluginConfFromBytes(data)
		if err != nil {
			return nil, fmt.Errorf("recorded CNI network %s: %w", s.Name, err)
		}
		conf.Plugins = append(conf.Plugins, p)
	}
	return conf, nil
}
