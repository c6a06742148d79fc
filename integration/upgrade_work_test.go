//go:build integration

package integration

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-node/berth/integration/harness"
	"github.com/berth-node/berth/integration/images"
	"github.com/berth-node/berth/integration/registry"
)

// A pull that an upgrade cuts off goes on when it is repeated: layers that were there are not fetched again.
func TestUpgradeCutsPull(t *testing.T) {
	b := newBadRegistry(t, "  maxParallelLayers: 1\n")
	n := b.node
	layers := layersOf(t, images.Layered)
	last := "/blobs/" + layers[len(layers)-1].Digest.String()
	stuck := make(chan struct{}, 1)
	b.spoil(last, 0, func(w http.ResponseWriter, r *http.Request, serve http.Handler) {
		select {
		case stuck <- struct{}{}:
		default:
		}
		registry.Stall(100)(w, r, serve)
	})
	var repeated atomic.Int64
	pulled := make(chan error, 1)
	go func() {
		pulled <- again(&repeated, func(ctx context.Context) error {
			_, err := n.Images.PullImage(ctx, &cri.PullImageRequest{Image: &cri.ImageSpec{Image: images.Layered}})
			return err
		})
	}()
	<-stuck
	n.Berth(t, "upgrade")
	b.faulty.Set(nil)
	if err := <-pulled; err != nil {
		t.Errorf("PullImage: %v", err)
	}
	if repeated.Load() == 0 {
		t.Error("the pull was not cut off")
	}
	for _, layer := range layers[:len(layers)-1] {
		if got := b.requests("/blobs/" + layer.Digest.String()); len(got) != 1 {
			t.Errorf("layer %s was fetched %d times", layer.Digest, len(got))
		}
	}
	if got := b.requests(last); len(got) < 2 {
		t.Errorf("the last layer was fetched %d times", len(got))
	}
	b.wantNoHalves(t)
	wantNoneLingering(t, n)
	resp, err := n.Images.ImageStatus(harness.Ctx(t), &cri.ImageStatusRequest{Image: &cri.ImageSpec{Image: images.Layered}})
	if err != nil || resp.Image == nil {
		t.Errorf("the image is %v, %v", resp.GetImage(), err)
	}
}

// Daemon and keeper are replaced ten times under containers that write and end, and no byte of a log and no exit is lost.
func TestUpgradesOfKeeperUnderFlood(t *testing.T) {
	n, installed, keeper := installedNode(t, "keeper")
	pod := n.RunPod(t, "flood")
	c := pod.Sh(t, "app", flood)
	const upgrades, ends = 10, 20
	var ending []*harness.Container // one every 200 ms, so that most of them end in the middle of something
	for i := range ends {
		ending = append(ending, pod.Sh(t, fmt.Sprintf("ends-%d", i), fmt.Sprintf("sleep %d.%d; exit %d", 1+i/5, i%5*2, 10+i)))
	}
	for i := range upgrades {
		install(t, installed, append(keeper, fmt.Sprintf("version %d", i)...)) // what follows the sections of a program is not read
		said := n.Berth(t, "upgrade")
		for _, want := range []string{"the keeper is berth-keeper", fmt.Sprintf("process %d, has taken over", n.DaemonPid(t))} {
			if err := wantIn(said, want); err != nil {
				t.Error(err)
			}
		}
		awaitMore(t, c)
	}
	for i, e := range ending {
		if s := e.WaitExit(t); int(s.ExitCode) != 10+i {
			t.Errorf("container %d ended with exit code %d (%s)", i, s.ExitCode, s.Reason)
		}
	}
	c.Stop(t, 0)
	if gaps, last := flooded(t, c); len(gaps) > 0 || last < 1000 {
		t.Errorf("of %d lines, gaps of %v bytes", last, gaps)
	} else {
		t.Logf("%d lines", last)
	}
	wantNoneLingering(t, n)
}

// A daemon that lingers has let go of the network: it does not bring back what the next one has taken away.
func TestLingeringDaemonLeavesTheNetwork(t *testing.T) {
	n := ownNode(t)
	const port = 18099
	leaving := n.RunPod(t, "leaving", hostPort(port, 8080))
	staying := n.RunPod(t, "staying", hostPort(port+1, 8080))
	s := converse(t, n, "exec", "-i", staying.Idle(t, "app").ID, "sh", "-c", parrot)
	s.say(t, "before")
	old := n.DaemonPid(t)
	if sockets := netfilterSockets(t, old); len(sockets) == 0 {
		t.Fatal("the daemon does not watch its rules")
	}
	n.Berth(t, "upgrade")
	if sockets := netfilterSockets(t, old); len(sockets) > 0 {
		t.Errorf("the old daemon has sockets of netfilter: %q", sockets)
	}
	if sockets := netfilterSockets(t, n.DaemonPid(t)); len(sockets) == 0 {
		t.Error("the new daemon does not watch its rules")
	}
	leaving.Remove(t)
	table := tableWith(t, port+1)
	must(t, "nft", "flush", "table", "inet", table)
	harness.Eventually(t, 20*time.Second, "the rules", func() error {
		if !strings.Contains(rulesOf(table), fmt.Sprint(port+1)) {
			return errors.New("they are not back")
		}
		return nil
	})
	s.say(t, "after")
	// Those who would mend the rules wait a second between two times.
	for range 4 {
		time.Sleep(500 * time.Millisecond)
		if text := rulesOf(table); strings.Contains(text, fmt.Sprint(port)+" ") || !strings.Contains(text, fmt.Sprint(port+1)) {
			t.Fatalf("the rules are not those of the new daemon:\n%s", text)
		}
	}
	s.say(t, "bye")
	_ = s.cmd.Wait()
	wantNoneLingering(t, n)
}

func hostPort(host, container int32) func(*cri.PodSandboxConfig) {
	return func(c *cri.PodSandboxConfig) {
		c.PortMappings = []*cri.PortMapping{{Protocol: cri.Protocol_TCP, HostPort: host, ContainerPort: container}}
	}
}

// netfilterSockets are the open sockets of a process on which the kernel tells of nftables.
func netfilterSockets(t *testing.T, pid int) []string {
	t.Helper()
	const protocol = "12" // NETLINK_NETFILTER
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/netlink", pid))
	if err != nil {
		t.Fatal(err)
	}
	netfilter := map[string]bool{}
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); len(f) > 9 && f[1] == protocol {
			netfilter["socket:["+f[9]+"]"] = true
		}
	}
	fds, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for _, fd := range fds {
		if target, err := os.Readlink(fd); err == nil && netfilter[target] {
			found = append(found, fd)
		}
	}
	return found
}
