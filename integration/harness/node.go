// Package harness starts berth as a black box and talks to it as its users do: through the CRI socket, crictl, signals
// and the operator's commands. It knows no package of the daemon.
//
// What it runs is taken from one folder (see Root), so that a prepared folder can be carried to another machine.
package harness

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-node/berth/integration/leaks"
)

// Options say how a node differs from the usual one of the tests: built-in network, all registries served from loopback.
type Options struct {
	// CNI runs the reference plugins with this configuration list instead of the built-in network.
	CNI *CNI
	// HostsDir is the certs.d folder; empty for the default of a shared Images registry.
	HostsDir string
	// Config is the text of a configuration file; empty for none.
	Config string
	// Env is added to the daemon's environment.
	Env []string
	// Flags are added to the command line of serve.
	Flags []string
	// Tmpfs are small file systems of their own below Dir: folders, with options of the mount such as size=1m,nr_inodes=100.
	// "root" is RootDir, "root/images" holds the images, and "logs" the logs of containers.
	Tmpfs []Tmpfs
	// Programs is the folder with berth, berth-keeper and berth-launch; empty for the usual one.
	Programs string
}

// A Tmpfs is a file system of its own.
type Tmpfs struct{ Path, Options string }

// A Node is one running berth with folders of its own. Its methods fail the test they are given.
type Node struct {
	// RootDir and RunDir are berth's folders, Dir the one above RootDir, free for files of a test.
	Dir, RootDir, RunDir string
	// Socket is the path of the CRI socket.
	Socket string

	Runtime cri.RuntimeServiceClient
	Images  cri.ImageServiceClient

	options Options
	conn    *grpc.ClientConn
	daemon  *exec.Cmd
	exited  chan struct{} // closed when the daemon that was started last has ended
	log     *os.File
	drained bool
}

// StartNode starts a node that the test drains at its end, after which nothing of it may be left.
func StartNode(t testing.TB, options Options) *Node {
	t.Helper()
	n, err := newNode(options)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			n.DumpLog(t)
		}
		if err := n.Close(); err != nil {
			t.Errorf("end of the node: %v", err)
		}
	})
	if err := n.Start(); err != nil {
		t.Fatal(err)
	}
	return n
}

// Launch starts a node for more than one test. Close ends it.
func Launch(options Options) (*Node, error) {
	n, err := newNode(options)
	if err != nil {
		return nil, err
	}
	if err := n.Start(); err != nil {
		return nil, errors.Join(err, n.Close())
	}
	return n, nil
}

func newNode(options Options) (*Node, error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("the integration tests need root")
	}
	dir, err := os.MkdirTemp("", "berth-test-")
	if err != nil {
		return nil, err
	}
	run, err := os.MkdirTemp("/run", "berth-test-") // tmpfs, and short enough for a socket's path
	if err != nil {
		return nil, err
	}
	n := &Node{Dir: dir, RootDir: filepath.Join(dir, "root"), RunDir: run, Socket: filepath.Join(run, "cri.sock"), options: options}
	if n.log, err = os.Create(filepath.Join(dir, "berth.log")); err != nil {
		return nil, err
	}
	for _, m := range options.Tmpfs {
		at := filepath.Join(dir, m.Path)
		if err := os.MkdirAll(at, 0o755); err != nil {
			return nil, err
		}
		if err := syscall.Mount("tmpfs", at, "tmpfs", 0, m.Options); err != nil {
			return nil, fmt.Errorf("mount %s: %w", at, err)
		}
	}
	n.conn, err = grpc.NewClient("unix://"+n.Socket, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(64<<20)))
	if err != nil {
		return nil, err
	}
	n.Runtime, n.Images = cri.NewRuntimeServiceClient(n.conn), cri.NewImageServiceClient(n.conn)
	return n, nil
}

// Start starts the daemon and waits until it serves.
func (n *Node) Start() error {
	bin := n.programs()
	args := []string{
		"serve", "--root-dir", n.RootDir, "--run-dir", n.RunDir, "--cri-socket", n.Socket,
		"--keeper", filepath.Join(bin, "berth-keeper"), "--launch", filepath.Join(bin, "berth-launch"),
		"--registry-hosts-dir", n.options.HostsDir,
	}
	if n.options.CNI == nil {
		args = append(args, "--network", "builtin")
	} else {
		args = append(args, "--network", "cni", "--cni-conf-dir", n.options.CNI.ConfDir, "--cni-bin-dir", n.options.CNI.BinDir)
	}
	config := filepath.Join(n.Dir, "config.yaml") // given even if it is empty: the machine may have one
	if err := os.WriteFile(config, []byte(n.options.Config+driverConfig()), 0o600); err != nil {
		return err
	}
	args = append(args, "--config", config)
	n.drained = false
	n.daemon = exec.Command(filepath.Join(bin, "berth"), append(args, n.options.Flags...)...)
	n.daemon.Stdout, n.daemon.Stderr = n.log, n.log
	n.daemon.Env = append(os.Environ(), n.options.Env...)
	// A process group of its own: what a terminal sends to the tests does not reach the daemon first.
	n.daemon.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := n.daemon.Start(); err != nil {
		return err
	}
	daemon, exited := n.daemon, make(chan struct{})
	n.exited = exited
	go func() {
		_ = daemon.Wait() // how it ended is in daemon.ProcessState
		close(exited)
	}()
	return n.AwaitReady()
}

// AwaitReady waits until the daemon serves and says that it is ready.
func (n *Node) AwaitReady() error {
	ctx, cancel := context.WithTimeout(context.Background(), Patience(60*time.Second))
	defer cancel()
	for {
		call, cancelCall := context.WithTimeout(ctx, Patience(5*time.Second))
		status, err := n.Runtime.Status(call, &cri.StatusRequest{})
		cancelCall()
		if err == nil {
			err = notReady(status.GetStatus().GetConditions())
		}
		if err == nil {
			return nil
		}
		select {
		case <-n.exited:
			return fmt.Errorf("the daemon ended at its start: %s\n%s", n.daemon.ProcessState, n.logTail())
		case <-ctx.Done():
			return fmt.Errorf("the daemon is not ready: %w\n%s", err, n.logTail())
		case <-time.After(20 * time.Millisecond):
		}
		n.conn.ResetConnectBackoff() // the socket may be there only now
	}
}

func notReady(conditions []*cri.RuntimeCondition) error {
	seen := map[string]bool{}
	for _, c := range conditions {
		seen[c.Type] = c.Status
		if !c.Status && (c.Type == "RuntimeReady" || c.Type == "NetworkReady") {
			return fmt.Errorf("%s is false: %s %s", c.Type, c.Reason, c.Message)
		}
	}
	if !seen["RuntimeReady"] || !seen["NetworkReady"] {
		return fmt.Errorf("conditions are missing: %v", conditions)
	}
	return nil
}

// Running reports whether the daemon's process lives.
func (n *Node) Running() bool {
	if n.exited == nil {
		return false
	}
	select {
	case <-n.exited:
		return false
	default:
		return true
	}
}

// Pid returns the process that was started as the daemon. After an upgrade it is the one that stays and passes signals on.
func (n *Node) Pid() int { return n.daemon.Process.Pid }

// Hire ends the daemon and returns the command line that started it, for somebody else to run.
func (n *Node) Hire(t testing.TB) []string {
	t.Helper()
	if err := n.end(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	return n.daemon.Args
}

// DaemonPid returns the process that has the node: it signs the lock of the run dir.
func (n *Node) DaemonPid(t testing.TB) int {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(n.RunDir, "berth.lock"))
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(data)))
	if err != nil {
		t.Fatal(err)
	}
	return pid
}

// Restart ends the daemon as a service manager does and starts it again.
func (n *Node) Restart(t testing.TB) {
	t.Helper()
	if err := n.end(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := n.Start(); err != nil {
		t.Fatal(err)
	}
}

// Reconfigure starts the daemon anew with another configuration.
func (n *Node) Reconfigure(t testing.TB, config string) {
	t.Helper()
	n.options.Config = config
	n.Restart(t)
}

// Kill9 ends the daemon without warning, after an upgrade the one that has the node.
func (n *Node) Kill9(t testing.TB) {
	t.Helper()
	if n.Running() {
		if err := syscall.Kill(n.DaemonPid(t), syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
			t.Fatal(err)
		}
		if err := n.waitEnd("after SIGKILL"); err != nil {
			t.Fatal(err)
		}
	}
}

func (n *Node) end(sig syscall.Signal) error {
	if !n.Running() {
		return nil
	}
	if err := n.daemon.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	return n.waitEnd("after " + sig.String())
}

func (n *Node) waitEnd(when string) error {
	select {
	case <-n.exited:
		return nil
	case <-time.After(Patience(60 * time.Second)):
		return fmt.Errorf("the daemon lives on %s", when)
	}
}

// Drain runs the operator's command that removes all pods and ends the daemon and the keeper.
func (n *Node) Drain() error {
	ctx, cancel := context.WithTimeout(context.Background(), Patience(2*time.Minute))
	defer cancel()
	out, err := n.command(ctx, "drain", "--run-dir", n.RunDir, "--grace", "0s").CombinedOutput()
	if err != nil {
		return fmt.Errorf("berth drain: %w\n%s", err, out)
	}
	n.drained = true
	return n.waitEnd("after berth drain")
}

// Berth runs one of the operator's commands against this node and returns what it printed.
func (n *Node) Berth(t testing.TB, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), Patience(time.Minute))
	defer cancel()
	out, err := n.command(ctx, append(args, "--run-dir", n.RunDir)...).CombinedOutput()
	if err != nil {
		t.Fatalf("berth %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

func (n *Node) command(ctx context.Context, args ...string) *exec.Cmd {
	return exec.CommandContext(ctx, filepath.Join(n.programs(), "berth"), args...)
}

func (n *Node) programs() string {
	if n.options.Programs != "" {
		return n.options.Programs
	}
	return filepath.Join(Root(), "bin")
}

// Close drains the node, ends the daemon and removes the folders. What should not be there any more is an error, and is
// cleared away as far as possible.
func (n *Node) Close() error {
	var errs []error
	if !n.Running() && n.daemon != nil && !n.drained {
		errs = append(errs, n.Start()) // a test left it dead: its pods still have to go
	}
	if n.Running() {
		errs = append(errs, n.Drain())
	}
	if n.Running() {
		errs = append(errs, n.end(syscall.SIGKILL))
	}
	errs = append(errs, n.conn.Close(), n.log.Close())
	for i := len(n.options.Tmpfs) - 1; i >= 0; i-- {
		errs = append(errs, syscall.Unmount(filepath.Join(n.Dir, n.options.Tmpfs[i].Path), 0))
	}
	for _, dir := range []string{n.RunDir, n.Dir} {
		below, err := leaks.MountsBelow(dir)
		errs = append(errs, err)
		for _, point := range below {
			// The root folder of a store may be a mount of its own for as long as the daemon runs; not longer.
			errs = append(errs, fmt.Errorf("left mounted: %s", point), syscall.Unmount(point, syscall.MNT_DETACH))
		}
		errs = append(errs, os.RemoveAll(dir))
	}
	return errors.Join(errs...)
}

// DumpLog shows the end of the daemon's log.
func (n *Node) DumpLog(t testing.TB) {
	t.Helper()
	t.Logf("log of %s:\n%s", n.Dir, n.logTail())
}

func (n *Node) logTail() string {
	const keep = 64 << 10
	data, err := os.ReadFile(n.log.Name())
	if err != nil {
		return err.Error()
	}
	return string(data[max(0, len(data)-keep):])
}
