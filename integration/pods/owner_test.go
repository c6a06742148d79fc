//go:build integration

package pods

import (
	"fmt"
	"os/exec"
	"regexp"
	"testing"

	"google.golang.org/grpc/codes"
	grpcstatus "google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-node/berth/integration/harness"
)

func TestAKubeletHasNoPlaceBesideTheNodesOwnPods(t *testing.T) {
	n := start(t)
	n.write("p.yaml", podText("p", sleeper))
	n.awaitReady("p")
	c := n.containers("p")[0]
	refused := func(what string, err error) {
		t.Helper()
		if grpcstatus.Code(err) != codes.FailedPrecondition {
			t.Errorf("%s: %v", what, err)
		}
	}
	ctx := harness.Ctx(t)
	_, err := n.Runtime.StopContainer(ctx, &cri.StopContainerRequest{ContainerId: c.Id})
	refused("stop of a container", err)
	_, err = n.Runtime.RemoveContainer(ctx, &cri.RemoveContainerRequest{ContainerId: c.Id})
	refused("removal of a container", err)
	_, err = n.Runtime.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: c.PodSandboxId})
	refused("stop of a sandbox", err)
	_, err = n.Runtime.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: c.PodSandboxId})
	refused("removal of a sandbox", err)
	if r, err := n.Runtime.ExecSync(ctx, &cri.ExecSyncRequest{ContainerId: c.Id, Cmd: []string{"true"}}); err != nil || r.ExitCode != 0 {
		t.Errorf("it cannot be entered: %v, %v", r, err)
	}
	config := n.PodConfig("theirs")
	config.Labels["io.kubernetes.pod.uid"] = config.Metadata.Uid
	_, err = n.Runtime.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: config})
	refused("a kubelet's pod", err)
	n.RunPod(t, "crictl") // which has no such label
}

func TestManifestsAreRefusedBesideAKubelet(t *testing.T) {
	n := harness.StartNode(t, harness.Options{HostsDir: hostsDir, Config: fmt.Sprintf("kubelet: {podLogsDir: %s}\n", t.TempDir())})
	theirs := n.RunPod(t, "theirs", func(c *cri.PodSandboxConfig) { c.Labels["io.kubernetes.pod.uid"] = c.Metadata.Uid })
	berth := (&node{Node: n, t: t}).berth()
	for _, args := range [][]string{{"apply", "-f", "-"}, {"apply", "-f", "-", "--dry-run=server"}} {
		_, errOut, code := berth.run(t, podText("own", sleeper), args...)
		if want := `pods of a kubelet run on this node \(.*/theirs.*\), which would end the node's own: take them off the node first`; code != 1 || !regexp.MustCompile(want).MatchString(errOut) {
			t.Errorf("%q: %d %s", args, code, errOut)
		}
	}
	if _, errOut, code := berth.run(t, configMap("c", "k", "v"), "apply", "-f", "-"); code != 0 { // which ends nothing
		t.Errorf("a ConfigMap: %d %s", code, errOut)
	}
	n.Kill9(t)
	cmd := exec.Command(harness.Root()+"/bin/berth", "serve", "--root-dir", n.RootDir, "--run-dir", n.RunDir, "--cri-socket", n.Socket, "--manifests", t.TempDir())
	if out, err := cmd.CombinedOutput(); err == nil {
		t.Errorf("it starts: %s", out)
	}
	if err := n.Start(); err != nil {
		t.Fatal(err)
	}
	// The node is whose pods it has.
	theirs.Remove(t)
	if out, errOut, code := berth.run(t, podText("own", sleeper), "apply", "-f", "-"); code != 0 || out != "pod/own created\n" {
		t.Errorf("%d %s%s", code, out, errOut)
	}
	berth.ok(t, "delete", "pod/own", "configmap/c")
}
