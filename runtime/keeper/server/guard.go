package server

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/berth-node/berth/internal/dirwatch"
	"github.com/berth-node/berth/runtime/keeper"
)

// guard puts back what somebody takes out of the run dir while the keeper lives, until ctx ends: the lock, without which a
// daemon would start a second keeper, the socket, and the records of containers.
func (k *Keeper) guard(ctx context.Context) {
	err := dirwatch.Watch(ctx, k.runDir, func() {
		k.work.enter()
		defer k.work.leave()
		if err := k.mend(ctx); err != nil {
			k.log.Error("the run dir was emptied and cannot be put right", "runDir", k.runDir, "error", err)
		}
	})
	if err != nil && ctx.Err() == nil {
		k.log.Error("the run dir is not watched: if somebody empties it, no daemon finds this keeper", "runDir", k.runDir, "error", err)
	}
}

// mend makes anew what is missing of the keeper's files. Called at any time, it changes nothing that is there. A keeper that ends, which
// ctx says, puts nothing back: who told it to end may be removing the folder.
func (k *Keeper) mend(ctx context.Context) error {
	if ctx.Err() != nil {
		return nil
	}
	for _, dir := range []string{keeper.ContainersDir, keeper.LibcontainerDir} {
		if err := os.MkdirAll(filepath.Join(k.runDir, dir), 0o711); err != nil {
			return err
		}
	}
	if err := k.mendDoor(ctx); err != nil {
		return err
	}
	var failed []error
	for _, c := range k.all() {
		if err := c.mendRecord(); err != nil {
			failed = append(failed, fmt.Errorf("record of container %s: %w", c.id, err))
		}
	}
	return errors.Join(failed...)
}

// mendDoor sees to lock and socket. The lock comes first: who has it is the one who may listen.
func (k *Keeper) mendDoor(ctx context.Context) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if ctx.Err() != nil {
		return nil // Run closes both
	}
	path := filepath.Join(k.runDir, keeper.LockName)
	if !isFileAt(k.lock, path) {
		lock, err := takeLock(path)
		if err != nil {
			return err
		}
		k.lock.Close()
		k.lock = lock
		k.log.Warn("the lock of the run dir was taken away, made anew", "runDir", k.runDir)
	}
	if _, err := os.Lstat(k.socketPath()); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	l, err := listen(k.socketPath())
	if err != nil {
		return err
	}
	k.listener.file.Close() // who waits there connects again; accept goes on with the next
	k.listener = l
	k.log.Warn("the socket was taken away, made anew", "runDir", k.runDir)
	return nil
}

// isFileAt says whether path names the open file f.
func isFileAt(f *os.File, path string) bool {
	named, err := os.Lstat(path)
	if err != nil {
		return false
	}
	open, err := f.Stat()
	return err == nil && os.SameFile(open, named)
}

// mendRecord writes the record of a container again that has one and is not being deleted.
func (c *container) mendRecord() error {
	if !c.deleting.TryLock() {
		return nil
	}
	defer c.deleting.Unlock()
	if there, err := c.k.container(c.id); err != nil || there != c {
		return nil // deleted
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.made() {
		return nil // its creation fails by itself
	}
	if _, err := os.Lstat(filepath.Join(c.dir, recordName)); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.MkdirAll(c.dir, 0o700); err != nil {
		return err
	}
	return c.saveRecord()
}
