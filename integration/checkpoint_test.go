//go:build integration

package integration

import (
	"archive/tar"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-node/berth/integration/harness"
)

// A container goes on after its checkpoint, and the archive has all that a restore asks for. Where criu is missing, or does
// not work with the kernel, the answer says so.
func TestCheckpoint(t *testing.T) {
	n := sharedNode(t)
	app := n.RunPod(t, "checkpoint").Sh(t, "app", "echo written > /file; rm /etc/group; rm -r /var; mkdir /var; i=0; while :; do i=$((i+1)); echo $i > /count; sleep 0.1; done")
	app.Exec(t, "sh", "-c", "until [ -e /count ]; do sleep 0.1; done")
	pid := initPid(t, app)
	location := filepath.Join(n.Dir, "checkpoint.tar")
	_, err := n.Runtime.CheckpointContainer(harness.Ctx(t), &cri.CheckpointContainerRequest{ContainerId: app.ID, Location: location})
	if status.Code(err) == codes.Unimplemented {
		if !strings.Contains(err.Error(), "criu") {
			t.Errorf("the answer does not say what is missing: %v", err)
		}
		if _, err := os.Stat(location); !os.IsNotExist(err) {
			t.Errorf("a file is there nevertheless: %v", err)
		}
		wantCounting(t, app)
		t.Skipf("no checkpoints here: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	wantCounting(t, app)
	if now := initPid(t, app); now != pid {
		t.Errorf("it was process %d and is %d", pid, now)
	}

	entries, deleted := readArchive(t, location)
	for _, want := range []string{
		"config.dump", "spec.dump", "status", "dump.log", "container.log", "rootfs-diff.tar", "deleted.files",
		"checkpoint/inventory.img", "checkpoint/pstree.img", "checkpoint/descriptors.json",
	} {
		if !slices.Contains(entries, want) {
			t.Errorf("%s is not in the archive", want)
		}
	}
	// One file was deleted, and one folder replaced by an empty one.
	for _, want := range []string{`"/etc/group"`, `"/var/www"`} {
		if !strings.Contains(deleted, want) {
			t.Errorf("%s is not among what the container deleted: %s", want, deleted)
		}
	}
	if t.Failed() {
		t.Logf("the archive holds %v", entries)
	}
}

// wantCounting waits for signs of life that were not there before.
func wantCounting(t *testing.T, c *harness.Container) {
	t.Helper()
	c.Exec(t, "sh", "-c", `was=$(cat /count); until [ "$(cat /count)" != "$was" ]; do sleep 0.1; done`)
}

// readArchive returns the names in a checkpoint's archive, and the content of its deleted.files.
func readArchive(t *testing.T, path string) (names []string, deleted string) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for r := tar.NewReader(f); ; {
		header, err := r.Next()
		if errors.Is(err, io.EOF) {
			return names, deleted
		}
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, header.Name)
		if header.Name == "deleted.files" {
			content, err := io.ReadAll(r)
			if err != nil {
				t.Fatal(err)
			}
			deleted = string(content)
		}
	}
}
