//go:build integration

package integration

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-node/berth/integration/harness"
	"github.com/berth-node/berth/integration/images"
)

// A hungMount is a FUSE file system with one folder in it, "data", and files that a test puts there. While it hangs it takes requests
// and answers none: who has asked stands in the kernel, and no signal ends that.
type hungMount struct {
	dir string
	dev *os.File

	mu      sync.Mutex
	hung    bool
	pending [][]byte
	files   []hungFile // by their nodes, from firstFile on
}

// A hungFile is a file in a hungMount.
type hungFile struct{ name, text string }

// mountHung mounts one that answers, until hang.
func mountHung(t *testing.T) *hungMount {
	t.Helper()
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Skipf("no FUSE: %v", err)
	}
	m := &hungMount{dir: t.TempDir()}
	if err := unix.Mount("berth-test", m.dir, "fuse", unix.MS_NOSUID|unix.MS_NODEV, fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0,allow_other", fd)); err != nil {
		unix.Close(fd)
		t.Skipf("mount a FUSE file system: %v", err)
	}
	m.dev = os.NewFile(uintptr(fd), "/dev/fuse") // not before: without a mount the kernel tells no poller of anything
	served := make(chan struct{})
	go func() { defer close(served); m.serve() }()
	t.Cleanup(func() {
		err := unix.Unmount(m.dir, unix.MNT_DETACH)
		m.dev.Close() // ends every request that waits
		<-served
		if err != nil {
			t.Error(err)
		}
	})
	return m
}

// put adds a file, of which the kernel tells nobody.
func (m *hungMount) put(name, text string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.files = append(m.files, hungFile{name, text})
}

func (m *hungMount) hang() { m.mu.Lock(); m.hung = true; m.mu.Unlock() }

// revive answers all that was asked meanwhile.
func (m *hungMount) revive() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.hung = false
	for _, req := range m.pending {
		m.answer(req)
	}
	m.pending = nil
}

// waiting is how many requests have no answer.
func (m *hungMount) waiting() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.pending)
}

func (m *hungMount) serve() {
	buf := make([]byte, 1<<17)
	for {
		n, err := m.dev.Read(buf)
		if errors.Is(err, unix.EINTR) || errors.Is(err, unix.ENOENT) { // the request was called off
			continue
		}
		if err != nil {
			return
		}
		m.mu.Lock()
		if req := append([]byte(nil), buf[:n]...); m.hung {
			m.pending = append(m.pending, req)
		} else {
			m.answer(req)
		}
		m.mu.Unlock()
	}
}

// Operations of FUSE (linux/fuse.h) that the test file system knows.
const (
	fuseLookup, fuseForget, fuseGetattr, fuseStatfs           = 1, 2, 3, 17
	fuseSetattr, fuseWrite, fuseRelease, fuseCreate           = 4, 16, 18, 35
	fuseFlush                                                 = 25 // asked by every close of a file, whoever has others of it open
	fuseOpen, fuseRead, fuseReaddir                           = 14, 15, 28
	fuseInit, fuseOpendir, fuseReleasedir, fuseAccess         = 26, 27, 29, 34
	fuseInterrupt, fuseBatchForget, fuseInHeader, fuseOutSize = 36, 42, 40, 16
)

// answer does what a request asks for; m.mu is held.
func (m *hungMount) answer(req []byte) {
	le := binary.NativeEndian
	op, node := le.Uint32(req[4:]), le.Uint64(req[16:])
	var body []byte
	errno := int32(0)
	switch op {
	case fuseForget, fuseBatchForget, fuseInterrupt:
		return
	case fuseInit:
		body = make([]byte, 64)
		le.PutUint32(body, 7)
		le.PutUint32(body[4:], 31)
		le.PutUint32(body[8:], le.Uint32(req[fuseInHeader+8:]))
		le.PutUint32(body[20:], 1<<16) // the largest write
	case fuseGetattr, fuseSetattr:
		body = append(make([]byte, 16), m.attributes(node)...)
	case fuseCreate:
		body = make([]byte, 40)
		le.PutUint64(body, fileNode)
		body = append(body, m.attributes(fileNode)...)
		opened := make([]byte, 16)
		le.PutUint32(opened[8:], 1) // FOPEN_DIRECT_IO: each write asks
		body = append(body, opened...)
	case fuseWrite:
		body = make([]byte, 8)
		le.PutUint32(body, le.Uint32(req[fuseInHeader+16:]))
	case fuseLookup:
		node := m.node(strings.TrimRight(string(req[fuseInHeader:]), "\x00"))
		if node == 0 {
			errno = -int32(unix.ENOENT)
			break
		}
		body = make([]byte, 40) // valid for no time: each look asks again
		le.PutUint64(body, node)
		body = append(body, m.attributes(node)...)
	case fuseOpendir:
		body = make([]byte, 16)
	case fuseReaddir:
		body = m.entries(le.Uint64(req[fuseInHeader+8:]))
	case fuseOpen:
		body = make([]byte, 16)
		le.PutUint32(body[8:], 1) // FOPEN_DIRECT_IO: each read asks
	case fuseRead:
		text := m.files[node-firstFile].text
		from := min(le.Uint64(req[fuseInHeader+8:]), uint64(len(text)))
		body = []byte(text[from:min(from+uint64(le.Uint32(req[fuseInHeader+16:])), uint64(len(text)))])
	case fuseStatfs:
		body = make([]byte, 80)
	case fuseReleasedir, fuseAccess, fuseRelease, fuseFlush:
	default:
		errno = -int32(unix.ENOSYS)
	}
	out := make([]byte, fuseOutSize, fuseOutSize+len(body))
	le.PutUint32(out, uint32(fuseOutSize+len(body)))
	le.PutUint32(out[4:], uint32(errno))
	copy(out[8:], req[8:16])                 // the number of the request
	_, _ = m.dev.Write(append(out, body...)) // ENOENT: who asked has gone
}

// fileNode is every file that is made: it takes what is written and forgets it. firstFile is the first that a test has put there.
const (
	dataNode  = 2
	fileNode  = 3
	firstFile = 10
)

// node is what is there by a name; 0 is nothing.
func (m *hungMount) node(name string) uint64 {
	if name == "data" {
		return dataNode
	}
	if i := slices.IndexFunc(m.files, func(f hungFile) bool { return f.name == name }); i >= 0 {
		return firstFile + uint64(i)
	}
	return 0
}

// entries are the struct fuse_dirent of the files from a place on.
func (m *hungMount) entries(from uint64) (all []byte) {
	le := binary.NativeEndian
	for i := from; i < uint64(len(m.files)); i++ {
		name := m.files[i].name
		e := make([]byte, 24+(len(name)+7)/8*8)
		le.PutUint64(e, firstFile+i)
		le.PutUint64(e[8:], i+1) // where the next one is
		le.PutUint32(e[16:], uint32(len(name)))
		le.PutUint32(e[20:], unix.DT_REG)
		copy(e[24:], name)
		all = append(all, e...)
	}
	return all
}

// attributes is the struct fuse_attr of a folder, or of a file.
func (m *hungMount) attributes(node uint64) []byte {
	attr := make([]byte, 88)
	if node >= firstFile {
		binary.NativeEndian.PutUint64(attr[8:], uint64(len(m.files[node-firstFile].text)))
	}
	binary.NativeEndian.PutUint64(attr, node)
	mode := uint32(unix.S_IFDIR | 0o755)
	if node >= fileNode {
		mode = unix.S_IFREG | 0o640
	}
	binary.NativeEndian.PutUint32(attr[60:], mode)
	binary.NativeEndian.PutUint32(attr[64:], 1)
	return attr
}

// A log whose mount begins to hang under its container holds up that container's output and nothing else: others run, are
// stopped and listed, the daemon can be started anew, and the container itself ends and is removed.
func TestLogOnAHungMount(t *testing.T) {
	n := ownNode(t)
	m := mountHung(t)
	other := n.RunPod(t, "other").Sh(t, "app", counter)
	pod := n.RunPod(t, "logs", func(p *cri.PodSandboxConfig) { p.LogDirectory = filepath.Join(m.dir, "data") })
	app := pod.Sh(t, "app", "while :; do echo a line; sleep 0.05; done")
	m.hang()
	harness.Eventually(t, 20*time.Second, "a write to hang", func() error {
		if m.waiting() == 0 {
			return errors.New("none does")
		}
		return nil
	})
	wantNodeAnswers(t, n, other)
	n.Restart(t)
	wantNodeAnswers(t, n, other)
	app.Stop(t, 0)
	if s := app.Status(t); s.State != cri.ContainerState_CONTAINER_EXITED || s.ExitCode != 137 {
		t.Errorf("after the stop: %v", s)
	}
	pod.Remove(t)
	wantCounted(t, other, 5)
	m.revive()
}

// A host path, or the folder of a log, on a mount that does not answer: the container that names it fails with the path in
// the error, and nothing else of the node waits. Nobody of the daemon's own threads stands there, so it can be ended. What
// is left is gone when the mount is well again.
func TestHungMount(t *testing.T) {
	n := ownNode(t)
	m := mountHung(t)
	other := n.RunPod(t, "other").Idle(t, "app")
	well := n.RunPod(t, "well").Idle(t, "app", func(c *cri.ContainerConfig) {
		c.Mounts = []*cri.Mount{{HostPath: filepath.Join(m.dir, "data"), ContainerPath: "/data"}}
	})
	if got := well.Exec(t, "stat", "-c", "%F", "/data"); got != "directory" {
		t.Fatalf("while the mount is well: %q", got)
	}
	m.hang()
	for name, change := range map[string]func(*cri.PodSandboxConfig, *cri.ContainerConfig){
		"host path": func(_ *cri.PodSandboxConfig, c *cri.ContainerConfig) {
			c.Mounts = []*cri.Mount{{HostPath: filepath.Join(m.dir, "data"), ContainerPath: "/data"}}
		},
		"folder of the log": func(p *cri.PodSandboxConfig, _ *cri.ContainerConfig) { p.LogDirectory = filepath.Join(m.dir, "data") },
	} {
		t.Run(name, func(t *testing.T) {
			config := harness.ContainerConfig("app", images.Tools, "true")
			pod := n.RunPod(t, "hung", func(p *cri.PodSandboxConfig) { change(p, config) })
			change(pod.Config, config)
			failed := make(chan error, 1)
			go func() {
				ctx, cancel := context.WithTimeout(t.Context(), harness.Patience(time.Minute))
				defer cancel()
				_, err := n.Runtime.CreateContainer(ctx, &cri.CreateContainerRequest{PodSandboxId: pod.ID, Config: config, SandboxConfig: pod.Config})
				failed <- err
			}()
			harness.Eventually(t, 20*time.Second, "a request to hang", func() error {
				select {
				case err := <-failed:
					failed <- err
				default:
					if m.waiting() == 0 {
						return errors.New("none does")
					}
				}
				return nil
			})
			wantNodeAnswers(t, n, other)
			err := <-failed
			if err == nil || !strings.Contains(err.Error(), m.dir) {
				t.Errorf("got %v, want an error with %s", err, m.dir)
			}
			if stuck := stuckThreads(t, n.Pid()); stuck != "" {
				t.Errorf("threads of the daemon stand in the kernel:\n%s", stuck)
			}
			pod.Remove(t)
		})
	}
	well.Stop(t, 0)
	n.Kill9(t) // it ends, although the mount hangs
	if err := n.Start(); err != nil {
		t.Fatal(err)
	}
	wantNodeAnswers(t, n, other)
	m.revive()
	harness.Eventually(t, 20*time.Second, "the helpers to end", func() error {
		if left := processesWith("berth-lookup"); len(left) > 0 {
			return fmt.Errorf("left: %v", left)
		}
		return nil
	})
	again := n.RunPod(t, "again").Idle(t, "app", func(c *cri.ContainerConfig) {
		c.Mounts = []*cri.Mount{{HostPath: filepath.Join(m.dir, "data"), ContainerPath: "/data"}}
	})
	again.Exec(t, "stat", "/data")
	again.Pod.Remove(t)
	well.Pod.Remove(t)
}

// wantNodeAnswers makes the calls that must not wait for what hangs.
func wantNodeAnswers(t *testing.T, n *harness.Node, other *harness.Container) {
	t.Helper()
	if got := other.Exec(t, "echo", "alive"); got != "alive" {
		t.Errorf("another container says %q", got)
	}
	ctx, cancel := context.WithTimeout(t.Context(), harness.Patience(20*time.Second))
	defer cancel()
	_, err1 := n.Runtime.ListContainers(ctx, &cri.ListContainersRequest{})
	_, err2 := n.Runtime.ListContainerStats(ctx, &cri.ListContainerStatsRequest{})
	_, err3 := n.Runtime.ListPodSandboxStats(ctx, &cri.ListPodSandboxStatsRequest{})
	_, err4 := n.Images.ImageFsInfo(ctx, &cri.ImageFsInfoRequest{})
	if err := errors.Join(err1, err2, err3, err4); err != nil {
		t.Errorf("while a mount hangs: %v", err)
	}
	n.RunPod(t, "beside").Idle(t, "app").Pod.Remove(t)
}

// stuckThreads lists the threads of a process that wait and take no signal.
func stuckThreads(t *testing.T, pid int) string {
	t.Helper()
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	var stuck []string
	for _, task := range tasks {
		data, err := os.ReadFile(task)
		if err != nil {
			continue // the thread has ended
		}
		stack, _ := os.ReadFile(filepath.Join(filepath.Dir(task), "stack")) // not on all kernels
		if strings.Contains(string(stack), "fuse") {
			stuck = append(stuck, string(data)+string(stack))
		}
	}
	return strings.Join(stuck, "\n")
}
