package server

import (
	"os"

	"github.com/berth-node/berth/runtime/keeper"
)

// spare is what a daemon holds for one process in case this keeper dies.
type spare struct {
	about keeper.Spare
	files map[string]*os.File // duplicates, by name
}

// spare returns what a next keeper cannot get by itself; no files when the container has ended. The caller closes them.
func (c *container) spare() spare {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := spare{about: keeper.Spare{Ref: keeper.Ref{ID: c.id}, Process: c.rec.Process}}
	if c.rec.Exit == nil && c.proc != nil {
		files := c.io.files()
		files[keeper.FilePidfd] = c.proc.pidfd
		s.files = c.k.duplicates(files)
	}
	return s
}

// spares is spare for all living processes of the container.
func (c *container) spares() []spare {
	var all []spare
	if s := c.spare(); len(s.files) > 0 {
		all = append(all, s)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, e := range c.execs {
		if s := e.spare(); len(s.files) > 0 {
			all = append(all, s)
		}
	}
	return all
}

// spare is called with c.mu held.
func (e *execution) spare() spare {
	s := spare{about: keeper.Spare{Ref: keeper.Ref{ID: e.c.id, ExecID: e.id}, Process: e.process}}
	if e.exit == nil && e.proc != nil {
		s.files = e.c.k.duplicates(map[string]*os.File{keeper.FilePidfd: e.proc.pidfd})
	}
	return s
}

// duplicates makes second descriptors, or none at all if one of them fails: that costs something only if the keeper dies.
func (k *Keeper) duplicates(files map[string]*os.File) map[string]*os.File {
	dups := make(map[string]*os.File, len(files))
	for name, f := range files {
		dup, err := duplicate(f)
		if err != nil {
			k.log.Warn("duplicate descriptors for the daemon, ignoring", "error", err)
			closeNamed(dups)
			return make(map[string]*os.File)
		}
		dups[name] = dup
	}
	return dups
}

// share replaces what all connected daemons hold for c.
func (k *Keeper) share(c *container) {
	k.mu.Lock()
	conns := make([]*conn, 0, len(k.conns))
	for to := range k.conns {
		conns = append(conns, to)
	}
	k.mu.Unlock()
	for _, to := range conns {
		to.share(c)
	}
}

// share is nothing for a daemon that has yet to hand over: it gets everything afterwards.
func (c *conn) share(cont *container) {
	c.sharing.Lock()
	defer c.sharing.Unlock()
	if c.settled {
		c.sendSpare(cont.spare())
	}
}

// settle gives a daemon that has handed over what it had all that it is to hold now, and says that this is all. What is
// made later comes with the answers.
func (c *conn) settle() {
	c.sharing.Lock()
	defer c.sharing.Unlock()
	c.settled = true
	c.k.mu.Lock()
	all := make([]*container, 0, len(c.k.containers))
	for _, cont := range c.k.containers {
		all = append(all, cont)
	}
	c.k.mu.Unlock()
	for _, cont := range all {
		for _, s := range cont.spares() {
			c.sendSpare(s)
		}
	}
	if err := c.send(keeper.Message{Kind: keeper.KindRestored}, nil, nil); err != nil {
		c.uc.Close()
	}
}

// sendSpare closes the files of s. A connection that fails is closed: half a frame may have gone.
func (c *conn) sendSpare(s spare) {
	err := c.send(keeper.Message{Kind: keeper.KindSpare}, s.about, s.files)
	closeNamed(s.files)
	if err != nil {
		c.uc.Close()
	}
}
