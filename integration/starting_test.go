//go:build integration

package integration

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-node/berth/integration/harness"
	"github.com/berth-node/berth/integration/images"
)

// A keeper that dies in the moment in which it lets init go takes the container with it no more than at any other time.
func TestKeeperKilledInTheMomentOfTheStart(t *testing.T) {
	n := ownNode(t)
	pod := n.RunPod(t, "moment")
	for i := range 40 {
		c := pod.Create(t, idleConfig(fmt.Sprintf("app-%d", i)))
		keeper := keeperPid(t, n)
		answer := make(chan error, 1)
		go func() {
			_, err := n.Runtime.StartContainer(harness.Ctx(t), &cri.StartContainerRequest{ContainerId: c.ID})
			answer <- err
		}()
		time.Sleep(time.Duration(rand.IntN(1500)) * time.Microsecond)
		if err := syscall.Kill(keeper, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		if err := <-answer; err != nil {
			t.Fatalf("start %d: %v", i, err)
		}
		harness.Eventually(t, 20*time.Second, "an exec", func() error {
			_, err := c.ExecSync(harness.Ctx(t), 0, "true")
			if err != nil && status.Code(err) != codes.Unavailable { // the death of the keeper is seen only now
				t.Fatalf("container %d: %v", i, err)
			}
			return err
		})
		c.Stop(t, 0)
	}
}

// The same with the daemon, too: the call, repeated, has the result that it would have had.
func TestKeeperAndDaemonKilledInTheMomentOfTheStart(t *testing.T) {
	n := ownNode(t)
	pod := n.RunPod(t, "moment")
	for i := range 30 {
		c := pod.Create(t, harness.ContainerConfig(fmt.Sprintf("app-%d", i), images.Tools, "sh", "-c", "echo once >>/ran; exec sleep 6543"))
		keeper, daemon := keeperPid(t, n), n.Pid()
		answer := make(chan error, 1)
		go func() {
			_, err := n.Runtime.StartContainer(harness.Ctx(t), &cri.StartContainerRequest{ContainerId: c.ID})
			answer <- err
		}()
		time.Sleep(time.Duration(500+rand.IntN(2000)) * time.Microsecond)
		if err := errors.Join(syscall.Kill(keeper, syscall.SIGKILL), syscall.Kill(daemon, syscall.SIGKILL)); err != nil {
			t.Fatal(err)
		}
		n.Kill9(t)
		first := <-answer
		if err := n.Start(); err != nil {
			t.Fatal(err)
		}
		if first != nil {
			c.Start(t)
		}
		// A file says that it ran: its output may have gone with the keeper.
		harness.Eventually(t, 20*time.Second, "the workload", func() error {
			resp, err := c.ExecSync(harness.Ctx(t), 0, "cat", "/ran")
			if err != nil {
				t.Fatalf("start %d: %v; it is %v", i, err, c.Status(t))
			}
			if string(resp.Stdout) != "once\n" {
				err = fmt.Errorf("start %d: it has written %q and said %q", i, resp.Stdout, resp.Stderr)
			}
			return err
		})
		c.Stop(t, 0)
	}
}
