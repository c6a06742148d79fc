// Package handover gives a node from one daemon to the next without a moment in which nobody can connect to it: the old one
// starts the new one and passes on its listening sockets and its locks, which stay open all the while.
//
// # Protocol
//
// Frames of internal/wire on a socket pair, whose one end the new daemon inherits:
//
//	old                         new
//	offer (folders)        -->
//	                       <--  able | unable (why)     it has read configuration and records, and touched nothing
//	take (estate, files)   -->                          the old one does nothing any more but serve its sessions
//	                       <--  working ...             it gets on (if the offer and "able" agreed on such words)
//	                       <--  serving | failed (why)  all is recovered; nobody has been let in yet
//	yours                  -->                          the old one will not take anything back
//
// Until "yours" the new daemon lives for the old one: it ends when the connection does. So there is always one process whose
// end is the node's end, for those who watch over it. Until then, too, the old one can go on, whatever becomes of the new one.
//
// lingering.go has what a daemon leaves in the run dir that has given the node away and serves its sessions to their end.
package handover

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"time"

	"github.com/berth-node/berth/internal/errdefs"
	"github.com/berth-node/berth/internal/wire"
)

// protocol is the version of the words above. The older of two programs refuses what it does not know.
const protocol = 1

// variable is the environment variable that names the descriptor of the connection.
const variable = "BERTH_HANDOVER_FD"

// How long each side may take.
const (
	ableLimit    = 30 * time.Second
	servingLimit = 2 * time.Minute
	wordLimit    = 10 * time.Second
	// stallLimit is how long a new daemon may be silent that says when it gets on. Nobody serves the node in that time, so it is
	// short; but the slowest single step of a recovery is shorter.
	stallLimit = 15 * time.Second
	// workingPeriod is the least time between two such words.
	workingPeriod = time.Second
)

type kind string

const (
	offer   kind = "offer"
	able    kind = "able"
	unable  kind = "unable"
	take    kind = "take"
	working kind = "working"
	serving kind = "serving"
	failed  kind = "failed"
	yours   kind = "yours"
)

type message struct {
	Kind     kind     `json:"kind"`
	Protocol int      `json:"protocol,omitempty"`
	Version  string   `json:"version,omitempty"` // of the program
	Working  bool     `json:"working,omitempty"` // that word is understood (offer), and will be said (able)
	Folders  *Folders `json:"folders,omitempty"`
	Why      string   `json:"why,omitempty"`
	Estate   *Estate  `json:"estate,omitempty"`
	Files    []string `json:"files,omitempty"`
}

// Folders are what makes a node this one and not another.
type Folders struct {
	Root string `json:"root"`
	Run  string `json:"run"`
}

// An Estate is what a daemon leaves to the next one.
type Estate struct {
	// Program is what the node's service runs, and what the next upgrade is to if it does not say otherwise.
	Program string `json:"program"`
	// Watched says that an earlier process of the node is the one that somebody watches and that waits for the node's end.
	Watched bool `json:"watched,omitempty"`
	// Pending are the streaming URLs that nobody has used yet.
	Pending json.RawMessage `json:"pending,omitempty"`
	// Addresses are those of the sockets among Files, by the same name.
	Addresses map[string]string `json:"addresses,omitempty"`
	// Files are open sockets and locks, by name. They stay the sender's, and are the receiver's own copies.
	Files map[string]*os.File `json:"-"`
}

func send(conn *net.UnixConn, m message, files ...*os.File) error {
	_ = conn.SetWriteDeadline(time.Now().Add(wordLimit)) // a socket has deadlines
	return wire.Write(conn, m, files...)
}

// receive waits for one of the kinds; its files are the caller's.
func receive(conn *net.UnixConn, limit time.Duration, want ...kind) (message, []*os.File, error) {
	deadline := time.Time{}
	if limit > 0 {
		deadline = time.Now().Add(limit)
	}
	_ = conn.SetReadDeadline(deadline)
	var m message
	files, err := wire.Read(conn, &m)
	if err != nil {
		return message{}, nil, err
	}
	for _, k := range want {
		if m.Kind == k && len(files) == len(m.Files) {
			return m, files, nil
		}
	}
	wire.CloseAll(files)
	return message{}, nil, fmt.Errorf("unexpected word %q with %d files, want one of %q: %w", m.Kind, len(files), want, errdefs.ErrFailedPrecondition)
}
