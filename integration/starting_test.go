//go:build integration

package integration

import (
	"fmt"
	"math/rand/v2"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-node/berth/integration/harness"
)

// A keeper that dies in the moment in which it lets init go takes the container with it no more than at any other time: init
// has opened its side of the FIFO then and not yet written to it, and must not find that nobody reads.
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
