package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-node/berth/integration/harness"
)

// A target is a runtime that is measured.
type target struct {
	name    string
	version string
	Runtime cri.RuntimeServiceClient
	Images  cri.ImageServiceClient

	// own is the cgroup of the runtime's processes, relative to the root of a hierarchy; empty if it shares one with
	// others, so that nobody can tell what it uses.
	own string
	// pods is the cgroup of this target's pods, relative likewise.
	pods string
	pid  int    // of the daemon
	app  string // the image of the pods, as this runtime calls it

	close func() error
}

// isBerth tells the runtime under test from those it is compared with.
func (t *target) isBerth() bool { return strings.HasPrefix(t.name, "berth") }

// launchBerth starts a node in a cgroup of its own.
func launchBerth(name string, cni *harness.CNI, hostsDir string) (*target, error) {
	return launch(name, harness.Options{HostsDir: hostsDir, CNI: cni}, func(*harness.Node) {})
}

// launch is launchBerth with the node shown to its caller.
func launch(name string, options harness.Options, show func(*harness.Node)) (*target, error) {
	home, err := ownCgroup()
	if err != nil {
		return nil, err
	}
	own := filepath.Join(home, "bench-"+name)
	if err := enterCgroup(own); err != nil {
		return nil, err
	}
	node, err := harness.Launch(options)
	if back := enterCgroup(home); err == nil {
		err = back
	}
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	show(node)
	t := &target{
		name: name, Runtime: node.Runtime, Images: node.Images, own: own, pods: podsCgroup(name), pid: node.Pid(),
		close: func() error { return errors.Join(node.Close(), removeCgroup(own)) },
	}
	return t, t.learnVersion()
}

// dialPeer connects to a runtime that runs already.
func dialPeer(name, socket string) (*target, error) {
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(64<<20)))
	if err != nil {
		return nil, err
	}
	t := &target{
		name: name, Runtime: cri.NewRuntimeServiceClient(conn), Images: cri.NewImageServiceClient(conn),
		pods: podsCgroup(name), close: conn.Close,
	}
	if err := t.learnVersion(); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	if t.pid, err = listener(socket); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	t.own, err = cgroupOf(t.pid)
	if home, herr := ownCgroup(); err == nil && (herr != nil || t.own == home) {
		t.own = "" // it shares ours
	}
	return t, err
}

func (t *target) learnVersion() error {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	v, err := t.Runtime.Version(ctx, &cri.VersionRequest{})
	if err != nil {
		return fmt.Errorf("version of %s: %w", t.name, err)
	}
	t.version = strings.TrimSpace(v.RuntimeName + " " + v.RuntimeVersion)
	return nil
}

// listener returns the process that listens on a socket.
func listener(socket string) (int, error) {
	conn, err := net.Dial("unix", socket)
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	raw, err := conn.(*net.UnixConn).SyscallConn()
	if err != nil {
		return 0, err
	}
	var cred *unix.Ucred
	cerr := raw.Control(func(fd uintptr) { cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	if err = errors.Join(cerr, err); err != nil {
		return 0, err
	}
	return int(cred.Pid), nil
}

// pull fetches an image where it is not there, and returns what the runtime calls it.
func (t *target) pull(ctx context.Context, ref string) (string, error) {
	resp, err := t.Images.PullImage(ctx, &cri.PullImageRequest{Image: &cri.ImageSpec{Image: ref}})
	if err != nil {
		return "", fmt.Errorf("%s: PullImage %s: %w", t.name, ref, err)
	}
	return resp.ImageRef, nil
}

func (t *target) removeImage(ctx context.Context, ref string) error {
	_, err := t.Images.RemoveImage(ctx, &cri.RemoveImageRequest{Image: &cri.ImageSpec{Image: ref}})
	if err != nil {
		return fmt.Errorf("%s: RemoveImage %s: %w", t.name, ref, err)
	}
	return nil
}

// syncDisk lets one runtime's unwritten pages not be another's burden.
func syncDisk() { syscall.Sync() }

func logDir(t *target, pod string) string {
	return filepath.Join(os.TempDir(), "berth-bench-logs", t.name, pod)
}
