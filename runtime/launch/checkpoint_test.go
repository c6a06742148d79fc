package launch_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/berth-node/berth/runtime/keeper"
)

// checkpoint dumps the container and leaves it running. It skips the test where this node cannot.
func (c *container) checkpoint() {
	c.t.Helper()
	job := c.job(keeper.JobCheckpoint)
	job.Checkpoint = &keeper.CheckpointOptions{ImagesDir: c.t.TempDir(), WorkDir: c.t.TempDir(), LeaveRunning: true}
	result, _ := c.run(job)
	if result.Failure == keeper.FailureUnsupported {
		c.t.Skip(result.Error)
	}
	if result.Error != "" {
		log, _ := os.ReadFile(filepath.Join(job.Checkpoint.WorkDir, "dump.log"))
		c.t.Fatalf("checkpoint: %s\n%s", result.Error, log)
	}
	for _, name := range []string{"inventory.img", "descriptors.json"} {
		if _, err := os.Stat(filepath.Join(job.Checkpoint.ImagesDir, name)); err != nil {
			c.t.Errorf("criu's images: %v", err)
		}
	}
	if n, err := unix.Poll([]unix.PollFd{{Fd: int32(c.pidfd.Fd()), Events: unix.POLLIN}}, 0); n != 0 || err != nil {
		c.t.Errorf("the container does not run any more: %d, %v", n, err)
	}
}

func TestCheckpoint(t *testing.T) {
	c := newNode(t).bundle([]string{"pause"}, nil).create()
	job := c.job(keeper.JobCheckpoint)
	job.Checkpoint = &keeper.CheckpointOptions{ImagesDir: t.TempDir()}
	if result, _ := c.run(job); result.Failure != keeper.FailureNotRunning {
		t.Errorf("checkpoint of a created container: %+v", result)
	}
	c.start()
	c.checkpoint()
}

// The keeper gives a container FIFOs of the node, which are on no mount of the container.
func TestCheckpointWithFIFOs(t *testing.T) {
	c := newNode(t).bundle([]string{"pause"}, nil)
	var files []*os.File
	for _, name := range []string{"stdin", "stdout", "stderr"} {
		path := filepath.Join(c.bundle, name)
		if err := unix.Mkfifo(path, 0o600); err != nil {
			t.Fatal(err)
		}
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, f)
	}
	c.createWith(files).start().checkpoint()
}

func TestCheckpointWithoutCriu(t *testing.T) {
	c := newNode(t).bundle([]string{"pause"}, nil).create().start()
	t.Setenv("PATH", t.TempDir())
	job := c.job(keeper.JobCheckpoint)
	job.Checkpoint = &keeper.CheckpointOptions{ImagesDir: t.TempDir()}
	result, _ := c.run(job)
	if result.Failure != keeper.FailureUnsupported || !strings.Contains(result.Error, "criu") {
		t.Errorf("checkpoint without criu: %+v", result)
	}
}
