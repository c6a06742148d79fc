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
	// SandboxNamespaces: its namespaces are pinned; the network knows nothing of it.
	SandboxNamespaces Point = "runtime.sandbox-namespaces"
	// SandboxAttached: it has its addresses; they are not on record.
	SandboxAttached Point = "runtime.sandbox-attached"
	// SandboxPause: its pause process waits for its start; it is not on record.
	SandboxPause Point = "runtime.sandbox-pause"
	// SandboxComplete: everything is made; that it is ready is not on record.
	SandboxComplete Point = "runtime.sandbox-complete"
	// SandboxReady: it is ready on record; nobody can see it.
	SandboxReady Point = "runtime.sandbox-ready"

	// NamespaceBound: one more of a sandbox's namespaces is pinned.
	NamespaceBound Point = "sandboxns.bound"

	// CNIRecorded: that plugins will be run is on record; none was.
	CNIRecorded Point = "network.cni-recorded"
	// CNIAdded: the plugins have run; nobody knows what came of it.
	CNIAdded Point = "network.cni-added"
	// CNIDeleted: the plugins have taken back what they gave; the record is there.
	CNIDeleted Point = "network.cni-deleted"
	// NetworkLeased: addresses are leased to a sandbox; it has no link.
	NetworkLeased Point = "network.leased"
	// NetworkConnected: its link is up, with addresses and routes; its ports are not mapped.
	NetworkConnected Point = "network.connected"
	// NetworkPortsMapped: its ports are mapped.
	NetworkPortsMapped Point = "network.ports-mapped"
	// NetworkPortsUnmapped: its ports are not mapped any more; it has its lease.
	NetworkPortsUnmapped Point = "network.ports-unmapped"

	// ContainerRecorded: the record of a container is there, and nothing else of it.
	ContainerRecorded Point = "runtime.container-recorded"
	// ContainerMounted: its root filesystem is mounted.
	ContainerMounted Point = "runtime.container-mounted"
	// ContainerVolume: an image is mounted for it as a volume.
	ContainerVolume Point = "runtime.container-volume"
	// ContainerBundled: its bundle is written; the keeper knows nothing of it.
	ContainerBundled Point = "runtime.container-bundled"
	// ContainerLaunched: its init waits for the start; it is not on record.
	ContainerLaunched Point = "runtime.container-launched"
	// ContainerLimited: its init is on record and all its limits are set; that it is made is not on record.
	ContainerLimited Point = "runtime.container-limited"
	// ContainerMade: that it is made is on record; nobody can see it.
	ContainerMade Point = "runtime.container-made"
	// StartAsked: its start was asked for; the keeper knows nothing of it.
	StartAsked Point = "runtime.start-asked"
	// StartDone: its workload runs; that is not on record.
	StartDone Point = "runtime.start-done"
	// StartRecorded: its start is on record; nobody has been told.
	StartRecorded Point = "runtime.start-recorded"
	// ExecGrouped: the cgroup of an exec is there, and no process in it.
	ExecGrouped Point = "runtime.exec-grouped"
	// ExecRunning: the process of an exec runs.
	ExecRunning Point = "runtime.exec-running"
	// ExecEnded: the process of an exec has ended; its output is not passed on and its cgroup is there.
	ExecEnded Point = "runtime.exec-ended"
	// LogReopening: a log is to be opened anew; the keeper knows nothing of it.
	LogReopening Point = "runtime.log-reopening"
	// UpdateWritten: new limits hold; they are not on record.
	UpdateWritten Point = "runtime.update-written"
	// UpdateRecorded: new limits are on record; nobody has been told.
	UpdateRecorded Point = "runtime.update-recorded"
	// StopRecorded: a stop and its deadline are on record; no signal was sent.
	StopRecorded Point = "runtime.stop-recorded"
	// StopSignaled: the stop signal was sent.
	StopSignaled Point = "runtime.stop-signaled"
	// StopDeadline: the deadline of a stop has come; nothing was killed.
	StopDeadline Point = "runtime.stop-deadline"
	// StopKilled: everything in the container's cgroup is dead.
	StopKilled Point = "runtime.stop-killed"
	// ExitHeard: the keeper has reported an exit; it is not on record.
	ExitHeard Point = "runtime.exit-heard"
	// ExitRecorded: the exit is on record; nobody has been told.
	ExitRecorded Point = "runtime.exit-recorded"
	// ExitPublished: everybody has been told; the keeper does not know that it may forget the exit.
	ExitPublished Point = "runtime.exit-published"
	// DismantleUngrouped: the cgroup of what has ended is gone; the keeper knows of it.
	DismantleUngrouped Point = "runtime.dismantle-ungrouped"
	// DismantleForgotten: the keeper has forgotten it; its mounts are there.
	DismantleForgotten Point = "runtime.dismantle-forgotten"
	// DismantleUnmounted: its mounts are gone; the folder of its bundle is there.
	DismantleUnmounted Point = "runtime.dismantle-unmounted"
	// Released: nothing is left of it but records and writable layer; that is not on record.
	Released Point = "runtime.released"
	// ContainerRemoving: its removal is on record, and has not begun.
	ContainerRemoving Point = "runtime.container-removing"
	// ContainerErased: its records are gone; everybody can see it.
	ContainerErased Point = "runtime.container-erased"
	// SandboxStopping: the stop of a sandbox is on record, and has not begun.
	SandboxStopping Point = "runtime.sandbox-stopping"
	// SandboxKilled: its containers are dead and cleared away.
	SandboxKilled Point = "runtime.sandbox-killed"
	// SandboxDetached: it has no addresses any more; its namespaces are there.
	SandboxDetached Point = "runtime.sandbox-detached"
	// SandboxUnpinned: its namespaces are gone; its /dev/shm and its files are there.
	SandboxUnpinned Point = "runtime.sandbox-unpinned"
	// SandboxDismantled: nothing is left of it but its records and those of its containers; that is not on record.
	SandboxDismantled Point = "runtime.sandbox-dismantled"
	// SandboxRemoving: its removal is on record, and has not begun.
	SandboxRemoving Point = "runtime.sandbox-removing"
	// SandboxEmptied: its containers are removed; its own records are there.
	SandboxEmptied Point = "runtime.sandbox-emptied"
	// SandboxErased: its records are gone; everybody can see it.
	SandboxErased Point = "runtime.sandbox-erased"

	// CgroupKilled: nothing runs in a cgroup; it is there.
	CgroupKilled Point = "cgroups.killed"

	// ImageResolved: the manifest of an image is here, and none of its layers.
	ImageResolved Point = "image.resolved"
	// ImageFetched: its layers are all here; it is not on record.
	ImageFetched Point = "image.fetched"
	// ImageRecorded: it is on record; nobody can see it.
	ImageRecorded Point = "image.recorded"
	// ImageForgotten: nobody can see it any more; it is on record.
	ImageForgotten Point = "image.forgotten"
	// ImageReleased: that it is removed is on record, and that nobody uses it is known; its layers are there.
	ImageReleased Point = "image.released"
	// ImageUnlayered: its layers are out of their places; its record is there.
	ImageUnlayered Point = "image.unlayered"

	// LayerBegun: there is a folder for a layer that is on its way.
	LayerBegun Point = "layer.begun"
	// LayerHalf: one more piece of its archive has come.
	LayerHalf Point = "layer.half"
	// LayerUnpacked: it is unpacked and verified.
	LayerUnpacked Point = "layer.unpacked"
	// LayerDescribed: its description is written; it is in the folder of those on their way.
	LayerDescribed Point = "layer.described"
	// LayerCommitted: it is in its place; nobody knows.
	LayerCommitted Point = "layer.committed"
	// LayerForgotten: layers are moved out of their place; their files are there.
	LayerForgotten Point = "layer.forgotten"

	// KeeperJobRecorded: the launcher that will make a container is on record; it has no job.
	KeeperJobRecorded Point = "keeper.job-recorded"
	// KeeperJobDone: the launcher has answered and its init waits; that is not on record.
	KeeperJobDone Point = "keeper.job-done"
	// KeeperCreated: the init is on record; the daemon has no answer.
	KeeperCreated Point = "keeper.created"
	// KeeperLetGo: init may go on; it may not have said so.
	KeeperLetGo Point = "keeper.let-go"
	// KeeperOpened: the workload runs; the file that says that it does not is there.
	KeeperOpened Point = "keeper.opened"
	// KeeperStarted: the workload runs; the daemon has no answer.
	KeeperStarted Point = "keeper.started"
	// KeeperExecMade: the process of an exec runs; it is not on record.
	KeeperExecMade Point = "keeper.exec-made"
	// KeeperLogReopened: the log goes on in a new file; the daemon has no answer.
	KeeperLogReopened Point = "keeper.log-reopened"
	// KeeperExitSeen: a container has ended; some of its output is in pipes.
	KeeperExitSeen Point = "keeper.exit-seen"
	// KeeperLogWritten: its output is in the log; its exit is not on record.
	KeeperLogWritten Point = "keeper.log-written"
	// KeeperExitRecorded: its exit is on record; no daemon has been told.
	KeeperExitRecorded Point = "keeper.exit-recorded"
	// KeeperAcked: that the daemon knows of the exit is on record.
	KeeperAcked Point = "keeper.acked"
	// KeeperDeleted: the files of a container are gone; the daemon has no answer.
	KeeperDeleted Point = "keeper.deleted"
	// KeeperAdopted: a new keeper has taken over what was there; nobody can reach it.
	KeeperAdopted Point = "keeper.adopted"

	// KeeperReplacing: the keeper is at rest and has written down its state; it is the old program.
	KeeperReplacing Point = "keeper.replacing"
	// KeeperReplaced: it is the new program, which has read the state and taken up nothing.
	KeeperReplaced Point = "keeper.replaced"
	// KeeperTakenOver: everything is taken up; who has asked for the replacement has no answer.
	KeeperTakenOver Point = "keeper.taken-over"

	// LaunchJobTaken: a launcher has a job and has not begun.
	LaunchJobTaken Point = "launch.job-taken"
	// LaunchJobDone: the job is done, an init waits or a process runs; nobody has been told.
	LaunchJobDone Point = "launch.job-done"

	// RecoverLoaded: a daemon that starts has read the records; it knows nothing of the keeper's.
	RecoverLoaded Point = "runtime.recover-loaded"
	// RecoverResumed: it has compared them with what the keeper knows.
	RecoverResumed Point = "runtime.recover-resumed"
	// RecoverConnected: the network is what it was.
	RecoverConnected Point = "runtime.recover-connected"
	// RecoverFinished: what was cut off is undone or finished.
	RecoverFinished Point = "runtime.recover-finished"
	// RecoverSwept: what no record speaks of is gone.
	RecoverSwept Point = "runtime.recover-swept"

	// HandoverAble: the new daemon has said that it can serve the node, which the old one serves.
	HandoverAble Point = "handover.able"
	// HandoverParted: the old daemon has let go of everything but its sessions; the new one knows nothing of that.
	HandoverParted Point = "handover.parted"
	// HandoverTaken: the new one has sockets and locks, and has recovered nothing.
	HandoverTaken Point = "handover.taken"
	// HandoverRecovered: the new one could serve; nobody knows.
	HandoverRecovered Point = "handover.recovered"
	// HandoverServing: the old one knows; the node is not given away for good.
	HandoverServing Point = "handover.serving"
	// HandoverGiven: the old one has said that it takes nothing back.
	HandoverGiven Point = "handover.given"
	// HandoverOwn: the new one has heard that; it has let nobody in.
	HandoverOwn Point = "handover.own"
)

// Points are all of them.
var Points = []Point{
	SandboxRecorded, SandboxFiles, SandboxNamespaces, SandboxAttached, SandboxPause, SandboxComplete, SandboxReady,
	NamespaceBound,
	CNIRecorded, CNIAdded, CNIDeleted, NetworkLeased, NetworkConnected, NetworkPortsMapped, NetworkPortsUnmapped,
	ContainerRecorded, ContainerMounted, ContainerVolume, ContainerBundled, ContainerLaunched, ContainerLimited,
	ContainerMade, StartAsked, StartDone, StartRecorded, ExecGrouped, ExecRunning, ExecEnded, LogReopening,
	UpdateWritten, UpdateRecorded, StopRecorded, StopSignaled, StopDeadline, StopKilled, ExitHeard, ExitRecorded,
	ExitPublished, DismantleUngrouped, DismantleForgotten, DismantleUnmounted, Released, ContainerRemoving,
	ContainerErased, SandboxStopping, SandboxKilled, SandboxDetached, SandboxUnpinned, SandboxDismantled,
	SandboxRemoving, SandboxEmptied, SandboxErased,
	CgroupKilled,
	ImageResolved, ImageFetched, ImageRecorded, ImageForgotten, ImageReleased, ImageUnlayered,
	LayerBegun, LayerHalf, LayerUnpacked, LayerDescribed, LayerCommitted, LayerForgotten,
	KeeperJobRecorded, KeeperJobDone, KeeperCreated, KeeperLetGo, KeeperOpened, KeeperStarted, KeeperExecMade, KeeperLogReopened,
	KeeperExitSeen, KeeperLogWritten, KeeperExitRecorded, KeeperAcked, KeeperDeleted, KeeperAdopted,
	KeeperReplacing, KeeperReplaced, KeeperTakenOver,
	LaunchJobTaken, LaunchJobDone,
	RecoverLoaded, RecoverResumed, RecoverConnected, RecoverFinished, RecoverSwept,
	HandoverAble, HandoverParted, HandoverTaken, HandoverRecovered, HandoverServing, HandoverGiven, HandoverOwn,
}
