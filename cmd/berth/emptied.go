package main

import (
	"context"
	"errors"
	"path/filepath"
	"sync"

	"github.com/berth-node/berth/internal/dirwatch"
	"github.com/berth-node/berth/internal/filelock"
)

// guardFolders puts back what somebody takes out of the run dir, and out of the CRI socket's folder if that is another one,
// until the function that it returns is called, which waits.
func (b *berth) guardFolders(n *node) (stop func()) {
	ctx, cancel := context.WithCancel(n.over)
	var mending sync.Mutex
	var guards sync.WaitGroup
	for dir := range map[string]bool{b.cfg.RunDir: true, filepath.Dir(b.cfg.CRISocket): true} {
		guards.Go(func() {
			err := dirwatch.Watch(ctx, dir, func() {
				mending.Lock()
				defer mending.Unlock()
				if ctx.Err() == nil {
					b.mendFolders(n)
				}
			})
			if err != nil && ctx.Err() == nil {
				b.log.Error("a folder is not watched: if somebody empties it, start berth anew", "dir", dir, "err", err)
			}
		})
	}
	return func() {
		cancel()
		guards.Wait()
	}
}

// mendFolders makes anew what is missing of what this daemon has in its folders; it changes nothing if nothing is.
func (b *berth) mendFolders(n *node) {
	made, err := n.runtime.MendRunDir() // makes the folder too
	sockets, serr := b.sockets.Mend()
	err = errors.Join(err, b.mendRunLock(), serr)
	if err != nil {
		b.log.Error("files were taken away and cannot be made anew", "runDir", b.cfg.RunDir, "err", err)
	}
	if len(sockets) > 0 || made > 0 {
		b.log.Warn("files were taken away, made anew", "runDir", b.cfg.RunDir, "sockets", sockets, "files", made)
	}
}

// mendRunLock locks the run dir under the name that others look at. The old file stays locked until the new one is.
func (b *berth) mendRunLock() error {
	held, path := b.locks[runLock], b.lockPaths()[runLock]
	if held == nil || held.IsAt(path) {
		return nil
	}
	l, err := filelock.Acquire(path)
	if err != nil {
		return err
	}
	b.locks[runLock] = l
	return held.Release()
}
