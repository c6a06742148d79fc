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

// processes names all processes of the container that were made and whose exit was not acknowledged.
func (c *container) processes() []keeper.Spare {
	c.mu.Lock()
	defer c.mu.Unlock()
	all := []keeper.Spare{{Ref: keeper.Ref{ID: c.id}, Process: c.rec.Process}}
	for _, e := range c.execs {
		all = append(all, keeper.Spare{Ref: keeper.Ref{ID: c.id, ExecID: e.id}, Process: e.process})
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

// shareExec gives the spare of a new exec to the daemon in charge. If that is from, it is returned, for the answer.
func (k *Keeper) shareExec(from *conn, e *execution) map[string]*os.File {
	e.c.mu.Lock()
	s := e.spare()
	e.c.mu.Unlock()
	to := k.exits.inCharge()
	switch {
	case to == from:
		return s.files
	case to == nil:
		closeNamed(s.files)
	default:
		to.sharing.Lock()
		defer to.sharing.Unlock()
		if to.settled {
			to.sendSpare(s)
		} else {
			closeNamed(s.files) // it gets everything when it has handed over
		}
	}
	return make(map[string]*os.File)
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

// share replaces what the daemon in charge holds for c.
func (k *Keeper) share(c *container) {
	if to := k.exits.inCharge(); to != nil {
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

// relieve takes back what a daemon holds that is no longer in charge: it must not keep a workload's input open.
func (c *conn) relieve() {
	c.sharing.Lock()
	defer c.sharing.Unlock()
	c.settled = false
	if c.version > 1 {
		if err := c.send(keeper.Message{Kind: keeper.KindRelieved}, nil, nil); err != nil {
			c.uc.Close()
		}
		return
	}
	for _, cont := range c.k.all() {
		for _, about := range cont.processes() {
			c.sendSpare(spare{about: about})
		}
	}
}

// settle gives a daemon that has handed over what it had all that it is to hold now, and says that this is all. What is
// made later comes with the answers.
func (c *conn) settle() {
	c.sharing.Lock()
	defer c.sharing.Unlock()
	c.settled = true
	for _, cont := range c.k.all() {
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
