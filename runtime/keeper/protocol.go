// Package keeper speaks with the node's keeper: the small process that is parent of every container, holds its stdio,
// writes its log and keeps its exit code while the daemon comes and goes.
//
// The daemon uses Start and Dial, and the methods of Client. The keeper itself is package server; job.go has the
// protocol between the keeper and its launchers.
//
// # Protocol
//
// Frames of internal/wire on a unix stream socket. Each frame is a Message. The daemon's first is hello; each request
// has a number, the answer bears it, and answers come in any order. A message without a number is an event. A request's
// timeout rides with it; one whose connection is lost is cancelled, and a cancelled create or exec is undone.
//
//	request       body              files           answer              files
//	hello         Hello             -               Hello               -
//	create        CreateRequest     -               Process             spares, by name
//	start         Ref               -               -                   -
//	exec          ExecRequest       by name         Process             pidfd (a spare) [console]
//	signal        SignalRequest     -               -                   -
//	attach        Ref               -               -                   output [stdin] [console]
//	close-stdin   Ref               -               -                   -
//	resize        ResizeRequest     -               -                   -
//	reopen-log    Ref               -               -                   -
//	delete        Ref               -               -                   -
//	checkpoint    CheckpointRequest -               -                   -
//	adopt         AdoptRequest      -               State               -
//	list          -                 -               []State             -
//	filter        FilterRequest     -               Filter              -
//	replace       ReplaceRequest    -               Hello               -
//	shutdown      -                 -               -                   -
//	cancel        - (its number is that of the request it ends; no answer of its own)
//	ack           Ack               (no number, no answer)
//	restore       Spare             by name         (no number, no answer)
//	restored      -                 (no number, no answer)
//
//	event         body              files
//	exit          Exit              -
//	spare         Spare             by name
//	restored      -                 -
//	relieved      -                 -
//
// With restored a daemon takes charge. It gets the exits, in the order of their numbers, first all that were not
// acknowledged. Spares are duplicates of the keeper's descriptors, which it holds in case the keeper dies and hands to the
// successor with restore: upon restored the keeper sends a spare for each living process, and says restored in turn.
//
// One daemon is in charge, the last that said restored. The one before is relieved: its requests are still done, but it
// gets no more than the exits of the execs that it asked for itself, until it goes; then these too are for the one in charge.
//
// A keeper that is replaced in place keeps its connections: what is sent meanwhile waits in the socket, and the answer to
// replace comes from the new one.
//
// # Versions
//
// Each side says in its hello which versions it speaks, and the highest that both do is used for the connection. A side
// that knows only version 1 sends and reads the version alone, and takes one answer for all. Without a common version the
// connection ends before anything else was read. Who speaks version 2 speaks version 1.
//
//	1	all but what follows
//	2	replace; one daemon in charge (relieved; exits to one daemon only); hello with a range; filter, and exec by plan; adopt
//
// An error does not say what was asked for, and of which container: the daemon knows.
package keeper

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"syscall"
	"time"

	"github.com/berth-node/berth/internal/errdefs"
)

// The versions of the protocol that this package speaks; the package comment has what they differ in.
const (
	OldestProtocol = 1
	NewestProtocol = 2
)

// A Kind says what a Message is.
type Kind string

// The kinds; the table in the package comment says what goes with each.
const (
	KindHello      Kind = "hello"
	KindCreate     Kind = "create"
	KindStart      Kind = "start"
	KindExec       Kind = "exec"
	KindSignal     Kind = "signal"
	KindAttach     Kind = "attach"
	KindCloseStdin Kind = "close-stdin"
	KindResize     Kind = "resize"
	KindReopenLog  Kind = "reopen-log"
	KindDelete     Kind = "delete"
	KindCheckpoint Kind = "checkpoint"
	KindAdopt      Kind = "adopt"
	KindList       Kind = "list"
	KindFilter     Kind = "filter"
	KindReplace    Kind = "replace"
	KindShutdown   Kind = "shutdown"
	KindCancel     Kind = "cancel"
	KindAck        Kind = "ack"
	KindRestore    Kind = "restore"
	KindRestored   Kind = "restored"
	KindAnswer     Kind = "answer"
	KindExit       Kind = "exit"
	KindSpare      Kind = "spare"
	KindRelieved   Kind = "relieved"
)

// The names of descriptors in Message.Files.
const (
	FileStdin   = "stdin"
	FileStdout  = "stdout"
	FileStderr  = "stderr"
	FileConsole = "console"
	FilePlan    = "plan"
	FileCgroup  = "cgroup"
	FilePidfd   = "pidfd"
	FileOutput  = "output"
)

// A Message is one frame between daemon and keeper.
type Message struct {
	Kind Kind `json:"kind"`
	// Number pairs a request with its answer; 0 for what has no answer.
	Number uint64 `json:"number,omitempty"`
	// Timeout of a request, in nanoseconds.
	Timeout time.Duration   `json:"timeout,omitempty"`
	Body    json.RawMessage `json:"body,omitempty"`
	// Error of an answer; nil is success.
	Error *WireError `json:"error,omitempty"`
	// Files names the descriptors of the frame, in their order.
	Files []string `json:"files,omitempty"`
}

// A Range is a set of versions that somebody speaks.
type Range struct {
	Oldest int `json:"oldest"`
	Newest int `json:"newest"`
}

// Has reports whether v is in r.
func (r Range) Has(v int) bool { return r.Oldest <= v && v <= r.Newest }

func (r Range) String() string {
	if r.Oldest == r.Newest {
		return fmt.Sprintf("version %d", r.Newest)
	}
	return fmt.Sprintf("versions %d to %d", r.Oldest, r.Newest)
}

// Protocols are the versions that this package speaks.
func Protocols() Range { return Range{OldestProtocol, NewestProtocol} }

// Hello opens a connection, from both sides.
type Hello struct {
	// Version is the oldest one that a daemon speaks, since those of version 1 ask for exactly that; in the answer, the one
	// that is used.
	Version int `json:"version"`
	// Speaks is what the sender speaks; one of version 1 says nothing.
	Speaks *Range `json:"speaks,omitempty"`
	// Keeper is the keeper's own process: another one than before means that a new keeper had to be started.
	Keeper Process `json:"keeper,omitzero"`
	// Build is the keeper's program version; empty with version 1.
	Build string `json:"build,omitempty"`
}

// Range is what the sender of h speaks.
func (h Hello) Range() Range {
	if h.Speaks == nil {
		return Range{h.Version, h.Version}
	}
	return *h.Speaks
}

// FilterRequest has a seccomp profile compiled.
type FilterRequest struct {
	// Seccomp is linux.seccomp of the runtime spec.
	Seccomp json.RawMessage `json:"seccomp"`
}

// ReplaceRequest has the keeper become another program, in place.
type ReplaceRequest struct {
	// Binary is the absolute path of the new berth-keeper, Launch that of the berth-launch which the new one uses.
	Binary string `json:"binary"`
	Launch string `json:"launch"`
}

// A Ref names a container, or a process of it.
type Ref struct {
	ID     string `json:"id"`
	ExecID string `json:"execID,omitempty"`
}

// SignalRequest sends a signal by pidfd.
type SignalRequest struct {
	Ref
	Signal int `json:"signal"`
}

// ResizeRequest sets the size of a terminal, in characters.
type ResizeRequest struct {
	Ref
	Width  uint16 `json:"width"`
	Height uint16 `json:"height"`
}

// CheckpointRequest dumps a container.
type CheckpointRequest struct {
	Ref
	Options CheckpointOptions `json:"options"`
}

// AdoptRequest names a container that lives and that the keeper does not know, by the request that once made it.
type AdoptRequest struct {
	Request CreateRequest `json:"request"`
	Process Process       `json:"process"`
}

// Ack says that the exit of this number needs not be sent again.
type Ack struct {
	Seq uint64 `json:"seq"`
}

// A Spare names the process whose descriptors ride with it. It replaces what came before for that process; with no
// descriptors it ends the holding.
type Spare struct {
	Ref
	Process Process `json:"process"`
}

// WireError is an error on its way through the socket.
type WireError struct {
	// Class is the name of a class of errdefs, "" for none.
	Class   string  `json:"class,omitempty"`
	Failure Failure `json:"failure,omitempty"`
	Message string  `json:"message"`
}

// classes has a name for each class of error that the keeper returns.
var classes = []struct {
	name  string
	class error
}{
	{"not-found", errdefs.ErrNotFound},
	{"invalid-argument", errdefs.ErrInvalidArgument},
	{"already-exists", errdefs.ErrAlreadyExists},
	{"failed-precondition", errdefs.ErrFailedPrecondition},
	{"unavailable", errdefs.ErrUnavailable},
	{"unimplemented", errdefs.ErrUnimplemented},
	{"resource-exhausted", errdefs.ErrResourceExhausted},
	{"deadline-exceeded", context.DeadlineExceeded}, // the keeper's clock may be the first to notice
}

// EncodeError makes err ready to be sent; nil stays nil.
func EncodeError(err error) *WireError {
	if err == nil {
		return nil
	}
	var launch *LaunchError
	if errors.As(err, &launch) {
		return &WireError{Failure: launch.Failure, Message: launch.Message}
	}
	for _, c := range classes {
		if errors.Is(err, c.class) {
			return &WireError{Class: c.name, Message: err.Error()}
		}
	}
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) { // the number itself does not travel
		return &WireError{Class: "resource-exhausted", Message: err.Error()}
	}
	return &WireError{Message: err.Error()}
}

// Decode gives back the error, with its class; nil stays nil.
func (e *WireError) Decode() error {
	if e == nil {
		return nil
	}
	if e.Failure != "" {
		return &LaunchError{Failure: e.Failure, Message: e.Message}
	}
	for _, c := range classes {
		if e.Class == c.name {
			return &classError{message: e.Message, class: c.class}
		}
	}
	return errors.New(e.Message)
}

// classError keeps the words of the other side, which hold the class's own already.
type classError struct {
	message string
	class   error
}

func (e *classError) Error() string { return e.message }
func (e *classError) Unwrap() error { return e.class }
