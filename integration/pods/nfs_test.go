//go:build integration

package pods

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/berth-node/berth/integration/harness"
)

// An nfsServer is the kernel's own, on loopback, with one folder to export.
type nfsServer struct {
	t   *testing.T
	dir string
}

// serveNFS starts the NFS server of the machine, so only where BERTH_TEST_NFS says that nobody else has it, as in the virtual
// machine of test-v2.
func serveNFS(t *testing.T) *nfsServer {
	t.Helper()
	if os.Getenv("BERTH_TEST_NFS") == "" {
		t.Skip("BERTH_TEST_NFS is not set: this would start the machine's NFS server")
	}
	s := &nfsServer{t: t, dir: t.TempDir()}
	s.run("modprobe", "-a", "nfs", "nfsd")
	s.run("mount", "-t", "nfsd", "nfsd", "/proc/fs/nfsd")
	t.Cleanup(func() { s.run("umount", "/proc/fs/nfsd") })
	// It answers who asks for an export: the kernel asks it.
	mountd := exec.Command("rpc.mountd", "--foreground", "--no-nfs-version", "3")
	if err := mountd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = mountd.Process.Kill()
		_ = mountd.Wait()
	})
	for _, client := range []string{"127.0.0.1", "[::1]"} {
		s.run("exportfs", "-o", "rw,sync,no_root_squash,insecure,no_subtree_check,fsid=1", client+":"+s.dir)
	}
	t.Cleanup(func() { s.run("exportfs", "-ua") })
	s.start()
	t.Cleanup(s.stop)
	return s
}

func (s *nfsServer) start() {
	s.t.Helper()
	s.run("rpc.nfsd", "--no-nfs-version", "3", "2")
	// It gives clients that had files open a minute and a half to claim them. EBUSY: it knows that there are none.
	if err := os.WriteFile("/proc/fs/nfsd/v4_end_grace", []byte("Y"), 0); err != nil && !errors.Is(err, syscall.EBUSY) {
		s.t.Fatal(err)
	}
}

// stop ends the server; who has mounted from it waits until it is there again.
func (s *nfsServer) stop() {
	s.t.Helper()
	s.run("rpc.nfsd", "0")
}

func (s *nfsServer) run(name string, args ...string) {
	s.t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		s.t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
}

// volume is a volume of the server's folder, and where it is mounted.
func (s *nfsServer) volume(server, more string) (pod, container string) {
	return fmt.Sprintf("  volumes: [{name: share, nfs: {server: '%s', path: %s%s}}]\n", server, s.dir, more),
		"    volumeMounts: [{name: share, mountPath: /share}]\n"
}

func (n *node) nfsMount(uid string) string {
	return filepath.Join(n.RootDir, "kubelet/pods", uid, "volumes/kubernetes.io~nfs/share")
}

// What a server exports is the same for all pods that have it, on each family of addresses, and stays when they go.
func TestNFS(t *testing.T) {
	s, n := serveNFS(t), start(t)
	if err := os.WriteFile(s.dir+"/theirs", []byte("from the server"), 0o644); err != nil {
		t.Fatal(err)
	}
	pod, container := s.volume("127.0.0.1", "")
	n.write("p.yaml", spec("p", pod, container))
	pod, container = s.volume("::1", ", readOnly: true")
	n.write("q.yaml", spec("q", pod, container))
	p := n.awaitReady("p")
	n.awaitReady("q")
	if got := n.sh("p", "main", "cat /share/theirs; echo ours > /share/ours; grep -c ' /share nfs4 rw' /proc/mounts"); got != "from the server1" {
		t.Errorf("p: %q", got)
	}
	if got, err := os.ReadFile(s.dir + "/ours"); err != nil || string(got) != "ours\n" {
		t.Errorf("the server has %q, %v", got, err)
	}
	if got := n.sh("q", "main", "touch /share/f 2>/dev/null || echo no; cat /share/ours"); got != "no\nours" {
		t.Errorf("q: %q", got)
	}
	n.Restart(t)
	n.write("later.yaml", podText("later", sleeper)) // when that runs, the rest has been looked at
	n.awaitReady("later")
	n.same(p, "a restart of the daemon")
	n.remove("p.yaml")
	n.awaitGone("p")
	n.awaitUnmounted(string(p.UID))
	if got := n.sh("q", "main", "cat /share/ours"); got != "ours" {
		t.Errorf("after the end of p, q reads %q", got)
	}
}

// A server that goes away holds neither the node nor the end of the pods that have mounted from it. Who waits for it gets the
// volume when it is there again, once.
func TestNFSServerGoesAway(t *testing.T) {
	s, n := serveNFS(t), start(t)
	pod, container := s.volume("127.0.0.1", "")
	n.write("p.yaml", spec("p", pod, container))
	p := n.awaitReady("p")
	n.sh("p", "main", "echo here > /share/f; (while :; do ls /share/none; sleep 0.1; done) >/dev/null 2>&1 &")
	s.stop()
	defer s.start() // who still waits for it goes on
	n.write("late.yaml", spec("late", pod, container))
	n.write("other.yaml", podText("other", sleeper))
	n.awaitReady("other")
	n.Restart(t)
	n.same(p, "a restart of the daemon")
	n.remove("p.yaml")
	n.awaitGone("p")
	n.awaitUnmounted(string(p.UID))
	harness.Eventually(t, time.Minute, "an event says that the server is away", func() error {
		events := n.berth().ok(t, "events", "--for", "pod/late")
		if !strings.Contains(events, `MountVolume.SetUp failed for volume "share" : mount 127.0.0.1:`+s.dir+": no answer") {
			return errors.New(events)
		}
		return nil
	})
	s.start()
	late := n.awaitReady("late")
	if got := n.sh("late", "main", "ls /share"); got != "f" {
		t.Errorf("what the server has: %q", got)
	}
	if all := mountsBelow(t, filepath.Dir(n.nfsMount(string(late.UID)))); len(all) != 1 {
		t.Errorf("it is mounted at %v", all)
	}
}

func (n *node) awaitUnmounted(uid string) {
	n.t.Helper()
	harness.Eventually(n.t, 20*time.Second, "nothing of the server is mounted", func() error {
		if text, _ := os.ReadFile("/proc/self/mounts"); strings.Contains(string(text), uid) {
			return errors.New("it is")
		}
		if _, err := os.Lstat(n.nfsMount(uid)); !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("the folder is there: %v", err)
		}
		return nil
	})
}
