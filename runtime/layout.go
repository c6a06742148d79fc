package runtime

import (
	"crypto/rand"
	"encoding/hex"
	"path/filepath"
)

// layout knows every path of a node; each follows from an ID.
//
//	ROOT/sandboxes/ID/{record,facts}.json   what was asked; what happened
//	ROOT/containers/ID/{record,facts}.json
//	ROOT/containers/ID/{upper,work}         the writable layer
//	ROOT/containers/ID/volumes/N            the image's own volumes
//	ROOT/damaged/…                          files of records that could not be used, set aside
//	RUN/records/{sandboxes,containers}/ID.json  copies of record and facts, see twin
//	RUN/sandboxes/ID/{ipc,uts,user}         pinned namespaces
//	RUN/sandboxes/ID/{shm,resolv.conf,hostname}
//	RUN/containers/ID/                      the bundle: config.json, rootfs, and the keeper's FIFOs
//	RUN/pause                               the root filesystem of pause processes, a mount
type layout struct{ root, run string }

const (
	recordFile = "record.json"
	factsFile  = "facts.json"
)

func (l layout) sandboxes() string           { return filepath.Join(l.root, "sandboxes") }
func (l layout) sandbox(id string) string    { return filepath.Join(l.root, "sandboxes", id) }
func (l layout) containers() string          { return filepath.Join(l.root, "containers") }
func (l layout) container(id string) string  { return filepath.Join(l.root, "containers", id) }
func (l layout) damaged() string             { return filepath.Join(l.root, "damaged") }
func (l layout) sandboxCopies() string       { return filepath.Join(l.run, "records", "sandboxes") }
func (l layout) containerCopies() string     { return filepath.Join(l.run, "records", "containers") }
func (l layout) runSandboxes() string        { return filepath.Join(l.run, "sandboxes") }
func (l layout) runSandbox(id string) string { return filepath.Join(l.run, "sandboxes", id) }
func (l layout) runContainers() string       { return filepath.Join(l.run, "containers") }
func (l layout) bundle(id string) string     { return filepath.Join(l.run, "containers", id) }
func (l layout) rootfs(id string) string     { return filepath.Join(l.run, "containers", id, "rootfs") }
func (l layout) imageMounts(id string) string {
	return filepath.Join(l.run, "containers", id, "images")
}

// leftBehind is the mark of an execution that has ended and left processes in the container.
func (l layout) leftBehind(container, exec string) string {
	return filepath.Join(l.bundle(container), "left-"+exec)
}

func (l layout) pauseRoot() string         { return filepath.Join(l.run, "pause") }
func (l layout) shm(sandbox string) string { return filepath.Join(l.runSandbox(sandbox), "shm") }
func (l layout) resolvConf(sandbox string) string {
	return filepath.Join(l.runSandbox(sandbox), "resolv.conf")
}
func (l layout) hostname(sandbox string) string {
	return filepath.Join(l.runSandbox(sandbox), "hostname")
}
func (l layout) hosts(sandbox string) string { return filepath.Join(l.runSandbox(sandbox), "hosts") }

// newID makes the ID of a sandbox or a container: 32 random bytes in hexadecimal, as all CRI runtimes have them.
func newID() string {
	b := make([]byte, 32)
	rand.Read(b) // never fails (crypto/rand)
	return hex.EncodeToString(b)
}
