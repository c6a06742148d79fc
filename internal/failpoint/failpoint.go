// Package failpoint names the steps between which a program may die, so that tests can have it die there.
//
// A point is a call of Here between two steps. In programs built with the tag failpoints (make failpoints) it connects to
// the unix socket that the environment names, writes one line (program, pid, point) and waits for a byte, or for the end of
// the connection: whoever listens lets it go on, or kills what it wants to kill. Only the goroutine at the point waits.
// Without the tag nothing is left of the call, nor of the names.
//
// A name begins with the package whose steps it is between, before the first dot; then comes what has just happened. A
// new point needs a line in Points and, in integration/chaos, a way to get there; tests say so.
package failpoint

// SocketVariable is the environment variable that names the socket.
const SocketVariable = "BERTH_FAILPOINTS"

// A Point is a place between two steps.
type Point string

// Points, in the order in which a life comes by. The comment says what is done and what is not.
const (
	// SandboxRecorded: the record of a sandbox is there, and nothing else of it.
	SandboxRecorded Point = "runtime.sandbox-recorded"
	// SandboxFiles: its files and its /dev/shm are there; it has no namespaces.
	SandboxFiles Point = "runtime.sandbox-files"
	// SandboxNamespaces: its namespaces are pinned; they are not on record, and the network knows nothing of it.
	SandboxNamespaces Point = "runtime.sandbox-namespaces"
	// SandboxAttached: it has its addresses; they are not on record.
	SandboxAttached Point = "runtime.sandbox-attached"
	// SandboxComplete: everything is made, and it is not ready on record.
	SandboxComplete Point = "runtime.sandbox-complete"
	// SandboxReady: it is ready on record; nobody has been told.
	SandboxReady Point = "runtime.sandbox-ready"

	// LaunchJobTaken: a launcher has a job and has not begun.
	LaunchJobTaken Point = "launch.job-taken"
	// LaunchJobDone: the job is done, an init waits for its start or a process runs; nobody has been told.
	LaunchJobDone Point = "launch.job-done"
)

// Points are all of them.
var Points = []Point{
	SandboxRecorded, SandboxFiles, SandboxNamespaces, SandboxAttached, SandboxComplete, SandboxReady,
	LaunchJobTaken, LaunchJobDone,
}
