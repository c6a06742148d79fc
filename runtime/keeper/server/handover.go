package server

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/berth-node/berth/internal/memfile"
	"github.com/berth-node/berth/runtime/crilog"
	"github.com/berth-node/berth/runtime/keeper"
)

// handoverVersion is the form of handover. It rises when a keeper that reads it as it was would lose something.
const handoverVersion = 1

// handover is the state of a keeper, for the one that takes its place by execve. Descriptors are numbers, valid in the new
// program; 0 is none. Connections are named by their place in Conns, counted from 1; 0 is none.
type handover struct {
	Version int            `json:"version"`
	Keeper  keeper.Process `json:"keeper"`
	// Lock is that of the run dir, Listener the socket, Launcher the sealed berth-launch of the keeper before.
	Lock     int `json:"lock"`
	Listener int `json:"listener"`
	Launcher int `json:"launcher"`
	// Restored says that no daemon has anything more to hand over for a keeper that crashed.
	Restored bool `json:"restored"`

	Conns  []handedConn  `json:"conns"`
	Charge int           `json:"charge"`
	Asked  handedRequest `json:"asked"`

	LastExit uint64         `json:"lastExit"`
	Exits    []handedExit   `json:"exits"`
	Reaped   []handedStatus `json:"reaped"`

	Containers []handedContainer `json:"containers"`
	Viewers    []handedViewer    `json:"viewers"`
}

type handedConn struct {
	FD int `json:"fd"`
	// Version of the protocol; 0 before the hello.
	Version int  `json:"version"`
	Settled bool `json:"settled"`
}

// handedRequest is the request to replace the keeper; the next one answers it.
type handedRequest struct {
	from *conn

	Conn   int    `json:"conn"`
	Number uint64 `json:"number"`
}

type handedExit struct {
	Exit  keeper.Exit `json:"exit"`
	Owner int         `json:"owner"`
	Sent  int         `json:"sent"`
}

// handedStatus is of a child that was reaped and not asked for yet.
type handedStatus struct {
	Pid    int             `json:"pid"`
	Status unix.WaitStatus `json:"status"`
}

type handedContainer struct {
	Record  record `json:"record"`
	Started bool   `json:"started"`
	Adopted bool   `json:"adopted"`
	// Pidfd is 0 for one that has ended, or that was gone when a keeper came and may be a daemon's to tell.
	Pidfd int  `json:"pidfd"`
	Child bool `json:"child"`
	// Stdio are by name.
	Stdio   map[string]int  `json:"stdio"`
	LogFile int             `json:"logFile"`
	Log     crilog.Handover `json:"log"`
	Execs   []handedExec    `json:"execs"`
}

type handedExec struct {
	ExecID  string         `json:"execID"`
	Owner   int            `json:"owner"`
	Process keeper.Process `json:"process"`
	Exit    *keeper.Exit   `json:"exit"`
	Pidfd   int            `json:"pidfd"`
	Child   bool           `json:"child"`
}

// handedViewer is an attached client with what it has yet to get.
type handedViewer struct {
	ID    string `json:"id"`
	FD    int    `json:"fd"`
	Queue []byte `json:"queue"`
	Ended bool   `json:"ended"`
}

// fdList collects the descriptors that are handed over: duplicates, which nobody else closes, and files as they are, which
// nobody closes until then.
type fdList struct {
	files []*os.File
	lent  []int
}

// add returns the number of a duplicate of from.
func (l *fdList) add(from syscall.Conn) (int, error) {
	raw, err := from.SyscallConn()
	if err != nil {
		return 0, err
	}
	fd := -1
	var failed error
	if err := raw.Control(func(old uintptr) { fd, failed = unix.FcntlInt(old, unix.F_DUPFD_CLOEXEC, 3) }); err != nil {
		return 0, errors.Join(os.ErrClosed, err)
	}
	if failed != nil {
		return 0, os.NewSyscallError("fcntl", failed)
	}
	l.files = append(l.files, os.NewFile(uintptr(fd), "handed over"))
	return fd, nil
}

// lend returns the number of f itself, which execve would close, were there a duplicate; 0 for nil. It is for a file that may
// be on a mount that hangs.
func (l *fdList) lend(f *os.File) (int, error) {
	if f == nil {
		return 0, nil
	}
	fd := 0
	err := control(f, func(number int) error { fd = number; return nil })
	if err == nil {
		l.lent = append(l.lent, fd)
	}
	return fd, err
}

// numbers are all that the next program is to find open.
func (l *fdList) numbers() []int {
	all := slices.Clone(l.lent)
	for _, f := range l.files {
		all = append(all, int(f.Fd()))
	}
	return all
}

func (l *fdList) close() {
	for _, f := range l.files {
		f.Close()
	}
}

// handOver describes the whole keeper. The gates are shut, and reaper.mu is held.
func (k *Keeper) handOver(asked handedRequest) (handover, *fdList, error) {
	fds := &fdList{}
	k.mu.Lock()
	defer k.mu.Unlock()
	h := handover{Version: handoverVersion, Keeper: k.self, Asked: asked}
	select {
	case <-k.restored:
		h.Restored = true
	default:
	}
	var err error
	for to, f := range map[*int]*os.File{&h.Lock: k.lock, &h.Listener: k.listener.file, &h.Launcher: k.pool.binary} {
		if *to, err = fds.add(f); err != nil {
			return h, fds, err
		}
	}
	place, err := k.handConns(&h, fds)
	if err != nil {
		return h, fds, err
	}
	h.Asked.Conn = place[asked.from]
	k.exits.handOver(&h, place)
	for pid, status := range k.reaper.ended {
		h.Reaped = append(h.Reaped, handedStatus{pid, status})
	}
	for _, c := range k.containers {
		hc, err := c.handOver(fds, place)
		if err != nil {
			return h, fds, fmt.Errorf("container %s: %w", c.id, err)
		}
		h.Containers = append(h.Containers, hc)
	}
	h.Viewers, err = k.roster.handOver(fds)
	return h, fds, err
}

// handConns returns the place of each connection.
func (k *Keeper) handConns(h *handover, fds *fdList) (map[*conn]int, error) {
	place := make(map[*conn]int)
	for c := range k.conns {
		fd, err := fds.add(c.uc)
		if errors.Is(err, os.ErrClosed) {
			continue // it is about to leave
		}
		if err != nil {
			return nil, err
		}
		h.Conns = append(h.Conns, handedConn{FD: fd, Version: c.version, Settled: c.settled})
		place[c] = len(h.Conns)
	}
	return place, nil
}

func (l *exitLog) handOver(h *handover, place map[*conn]int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	h.LastExit, h.Charge = l.last, place[l.charge]
	for _, p := range l.pending {
		h.Exits = append(h.Exits, handedExit{p.Exit, place[p.owner], place[p.sent]})
	}
}

func (c *container) handOver(fds *fdList, place map[*conn]int) (h handedContainer, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	h = handedContainer{Record: c.rec, Started: c.started, Adopted: c.adopted, Stdio: make(map[string]int)}
	for name, f := range c.io.files() {
		if h.Stdio[name], err = fds.add(f); err != nil {
			return h, err
		}
	}
	if h.Pidfd, h.Child, err = fds.addProcess(c.proc, c.rec.Exit); err != nil {
		return h, err
	}
	if c.log != nil {
		var file *os.File
		h.Log, file = c.log.HandOver()
		if h.LogFile, err = fds.lend(file); err != nil {
			return h, err
		}
	}
	for _, e := range c.execs {
		he := handedExec{ExecID: e.id, Owner: place[e.owner], Process: e.process, Exit: e.exit}
		if he.Pidfd, he.Child, err = fds.addProcess(e.proc, e.exit); err != nil {
			return h, err
		}
		h.Execs = append(h.Execs, he)
	}
	return h, nil
}

// addProcess is nothing for a process that has exited, or of which there is no pidfd.
func (l *fdList) addProcess(p *process, exit *keeper.Exit) (pidfd int, child bool, err error) {
	if p == nil || exit != nil {
		return 0, false, nil
	}
	pidfd, err = l.add(p.pidfd)
	return pidfd, p.child, err
}

func (r *roster) handOver(fds *fdList) (all []handedViewer, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for w := range r.all {
		fd, err := fds.add(w.file)
		if errors.Is(err, os.ErrClosed) {
			continue // it has all, or has gone
		}
		if err != nil {
			return nil, err
		}
		w.mu.Lock()
		all = append(all, handedViewer{ID: w.id, FD: fd, Queue: slices.Concat(w.queue...), Ended: w.ended})
		w.mu.Unlock()
	}
	return all, nil
}

// writeHandover puts h into a memfd that cannot be changed any more, close-on-exec.
func writeHandover(h handover) (*os.File, error) {
	text, err := json.Marshal(h)
	if err != nil {
		return nil, err
	}
	return memfile.Sealed("berth-keeper-state", memfile.Data, bytes.NewReader(text))
}

// readHandover reads what the keeper before has left in fd, which it closes.
func readHandover(fd int) (handover, error) {
	var h handover
	f := os.NewFile(uintptr(fd), "state")
	if f == nil {
		return h, fmt.Errorf("%d is no descriptor", fd)
	}
	defer f.Close()
	text, err := io.ReadAll(io.NewSectionReader(f, 0, 1<<40))
	if err == nil {
		err = json.Unmarshal(text, &h)
	}
	if err == nil && h.Version != handoverVersion {
		err = fmt.Errorf("it has version %d and not %d", h.Version, handoverVersion)
	}
	return h, err
}
