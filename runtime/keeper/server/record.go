package server

import (
	"os"
	"path/filepath"
	"strings"

	"github.com/berth-node/berth/internal/atomicfile"
	"github.com/berth-node/berth/runtime/keeper"
)

const (
	// recordName is the file in a container's folder with what a next keeper must know of it.
	recordName = "keeper.json"
	// execPrefix and execSuffix enclose the ID of an exec in the name of its record.
	execPrefix, execSuffix = "exec-", ".keeper.json"
)

// record is what a next keeper must know of a container. It is written before the launcher gets the job, when the
// container is made, and when it has exited; whether it was started, libcontainer's exec FIFO tells.
type record struct {
	Request keeper.CreateRequest `json:"request"`
	// Launcher is at work while Process is zero.
	Launcher keeper.Process `json:"launcher,omitzero"`
	Process  keeper.Process `json:"process,omitzero"`
	// Holder has the terminal, or an input that is to end, open beside the keeper.
	Holder keeper.Process `json:"holder,omitzero"`
	// StdinClosed keeps a next keeper from opening the input again.
	StdinClosed bool         `json:"stdinClosed,omitempty"`
	Exit        *keeper.Exit `json:"exit,omitempty"`
	// Acked says that the daemon knows of the exit.
	Acked bool `json:"acked,omitempty"`
}

// execRecord is the same for a process that Exec started. It goes when its exit is acknowledged.
type execRecord struct {
	ExecID  string         `json:"execID"`
	Process keeper.Process `json:"process"`
	Exit    *keeper.Exit   `json:"exit,omitempty"`
}

func execRecordPath(dir, execID string) string {
	return filepath.Join(dir, execPrefix+execID+execSuffix)
}

// writeRecord puts rec in place of what is at path, whole or not at all. The run dir does not outlive the kernel, so
// nothing is synced.
func writeRecord(path string, rec any) error { return atomicfile.WriteJSON(path, rec, 0o600) }

func readRecord(path string, rec any) error { return atomicfile.ReadJSON(path, rec) }

// setAside keeps a damaged record for whoever wants to know, out of the way of the next start.
func setAside(path string) error { return os.Rename(path, path+".damaged") }

// validID says whether id may be the name of a container or an exec: it becomes a file name here and in libcontainer,
// whose rules these are.
func validID(id string) bool {
	const extra = "_.-+"
	if id == "" || len(id) > 200 || strings.ContainsRune(extra, rune(id[0])) {
		return false
	}
	for _, r := range id {
		switch {
		case 'a' <= r && r <= 'z', 'A' <= r && r <= 'Z', '0' <= r && r <= '9':
		case strings.ContainsRune(extra, r):
		default:
			return false
		}
	}
	return true
}
