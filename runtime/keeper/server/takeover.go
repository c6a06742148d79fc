package server

import (
	"context"
	"fmt"
	"math"
	"os"

	"github.com/berth-node/berth/internal/failpoint"
	"github.com/berth-node/berth/runtime/crilog"
	"github.com/berth-node/berth/runtime/keeper"
	"golang.org/x/sys/unix"
)

// takeOver makes k what the keeper before was, in the same process. begin sets it going, and answers who has asked for it.
func (k *Keeper) takeOver(cfg Config) (begin func(context.Context), err error) {
	// First of all: no launcher may inherit any of it.
	if err := unix.CloseRange(3, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return nil, os.NewSyscallError("close_range", err)
	}
	// Executed by the number of a descriptor, it would have that for a name in ps and top.
	if err := os.WriteFile("/proc/self/comm", []byte("berth-keeper"), 0); err != nil {
		k.log.Warn("set the process' name, ignoring", "error", err)
	}
	h, err := readHandover(cfg.TakeOver)
	if err != nil {
		return nil, fmt.Errorf("take over the state of the keeper before: %w", err)
	}
	if h.Keeper != k.self {
		return nil, fmt.Errorf("the state to take over is of process %+v and not of %+v", h.Keeper, k.self)
	}
	failpoint.Here(failpoint.KeeperReplaced)
	k.lock = handed(h.Lock, "lock")
	k.listener = &listener{file: handed(h.Listener, "socket"), path: k.socketPath()}
	launcher, err := k.freshLauncher(cfg.Launch, handed(h.Launcher, "berth-launch"))
	if err != nil {
		return nil, fmt.Errorf("launcher: %w", err)
	}
	k.pool = newPool(launcher, k.runDir, k.launchers, k.reaper, k.log)
	if h.Restored {
		k.restoredOnce.Do(func() { close(k.restored) })
	}
	for _, s := range h.Reaped {
		k.reaper.put(s.Pid, s.Status)
	}
	conns := []*conn{nil} // 0 is none
	for _, hc := range h.Conns {
		conns = append(conns, k.takeConn(hc))
	}
	k.exits.takeOver(h, conns)

	var going []func(context.Context)
	viewers := make(map[string]*viewers)
	for _, hc := range h.Containers {
		c, begin := k.takeContainer(hc, conns)
		viewers[c.id] = &c.viewers
		going = append(going, begin)
	}
	return func(ctx context.Context) {
		k.takeViewers(h.Viewers, viewers) // before the pumps, which have something for them
		for _, begin := range going {
			begin(ctx)
		}
		failpoint.Here(failpoint.KeeperTakenOver)
		k.log.Info("keeper replaced in place", "build", k.build, "containers", len(h.Containers), "connections", len(h.Conns))
		k.work.enter()
		k.doWork(func() { k.answerReplace(conns[h.Asked.Conn], h.Asked.Number) })
		k.work.leave()
		for _, c := range conns {
			if c != nil {
				go c.serve(ctx)
			}
		}
	}, nil
}

// handed is the descriptor of that number; nil for 0.
func handed(fd int, name string) *os.File {
	if fd == 0 {
		return nil
	}
	return os.NewFile(uintptr(fd), name)
}

// freshLauncher is the launcher at path, or that of the keeper before if there is none: containers can be made as before.
func (k *Keeper) freshLauncher(path string, before *os.File) (*os.File, error) {
	binary, err := seal(path)
	if err != nil {
		k.log.Error("the new launcher cannot be used, going on with the one before", "path", path, "error", err)
		return raise(before)
	}
	before.Close()
	return binary, nil
}

// takeConn goes on with a daemon's connection; nil if it is of no use.
func (k *Keeper) takeConn(h handedConn) *conn {
	uc, err := unixConn(handed(h.FD, "connection"))
	if err != nil {
		k.log.Error("a connection is lost with the replacement", "error", err)
		return nil
	}
	c := k.connect(uc)
	c.version, c.settled = h.Version, h.Settled
	return c
}

func (l *exitLog) takeOver(h handover, conns []*conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.last, l.charge = max(l.last, h.LastExit), conns[h.Charge]
	for _, he := range h.Exits {
		l.pending = append(l.pending, pendingExit{he.Exit, conns[he.Owner], conns[he.Sent]})
	}
}

// takeContainer goes on with a container when begin is called.
func (k *Keeper) takeContainer(h handedContainer, conns []*conn) (c *container, begin func(context.Context)) {
	c = k.newContainer(h.Record.Request)
	k.containers[c.id] = c
	c.rec, c.started, c.adopted = h.Record, h.Started, h.Adopted
	c.log = crilog.Resume(c.rec.Request.LogPath, c.rec.Request.MaxLogLine, handed(h.LogFile, "log"), h.Log)
	c.log.Lost = c.sayLost
	c.io = stdio{
		stdin:   handed(h.Stdio[keeper.FileStdin], keeper.FileStdin),
		stdout:  handed(h.Stdio[keeper.FileStdout], keeper.FileStdout),
		stderr:  handed(h.Stdio[keeper.FileStderr], keeper.FileStderr),
		console: handed(h.Stdio[keeper.FileConsole], keeper.FileConsole),
	}
	c.proc = takeHanded(c.rec.Process, h.Pidfd, h.Child)
	for _, he := range h.Execs {
		e := &execution{c: c, id: he.ExecID, owner: conns[he.Owner], process: he.Process, exit: he.Exit}
		e.proc = takeHanded(e.process, he.Pidfd, he.Child)
		c.execs[e.id] = e
	}
	return c, c.goOn
}

// takeHanded is nil without a pidfd.
func takeHanded(p keeper.Process, pidfd int, child bool) *process {
	if pidfd == 0 {
		return nil
	}
	return &process{Process: p, pidfd: handed(pidfd, "pidfd"), child: child} // non-blocking, as it was
}

// goOn watches what was taken over. An end that came in between is seen at once.
func (c *container) goOn(ctx context.Context) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.rec.Exit != nil:
		c.ending = true
		close(c.dead)
	case !c.made():
		go c.awaitLauncher()
	default:
		c.pump()
		if c.proc != nil {
			c.holdAgain()
			go c.watch(c.proc, closed)
		} else {
			go c.awaitSpare(ctx)
		}
	}
	for _, e := range c.execs {
		switch {
		case e.exit != nil:
		case e.proc != nil:
			go e.watch(e.proc, closed)
		default:
			go e.awaitSpare(ctx)
		}
	}
}

// awaitLauncher undoes a container whose launcher was killed and has not died: it is stuck in the kernel.
func (c *container) awaitLauncher() {
	if proc, err := openProcess(c.rec.Launcher); err == nil {
		proc.signal(int(unix.SIGKILL))
		if err := proc.wait(); err != nil {
			c.k.log.Error("wait for a launcher, taken for dead", "container", c.id, "pid", proc.Pid, "error", err)
		}
		proc.pidfd.Close()
	}
	c.k.work.enter()
	defer c.k.work.leave()
	c.clean()
}

// takeViewers goes on with attached clients, also those of containers that are forgotten.
func (k *Keeper) takeViewers(all []handedViewer, of map[string]*viewers) {
	for _, h := range all {
		w := newViewer(h.ID, handed(h.FD, "attachment"))
		if len(h.Queue) > 0 {
			w.queue, w.queued = [][]byte{h.Queue}, len(h.Queue)
		}
		w.ended = h.Ended
		v := of[h.ID]
		if v == nil || h.Ended {
			v = &viewers{} // a container of the same name may be there by now
		}
		v.put(w)
		k.show(w, v)
		w.wake()
	}
}

// answerReplace tells who has asked for the replacement that it is done.
func (k *Keeper) answerReplace(to *conn, number uint64) {
	if to == nil {
		return
	}
	if err := to.answer(number, reply{body: k.hello(to.version)}, nil); err != nil {
		k.log.Warn("answer not sent", "kind", keeper.KindReplace, "error", err)
	}
}
