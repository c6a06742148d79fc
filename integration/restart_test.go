//go:build integration

package integration

import (
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-node/berth/integration/harness"
	"github.com/berth-node/berth/integration/images"
)

// counter prints 1, 2, 3…, ten lines a second on a usual machine, so that a gap, a repetition or a torn line can be seen.
// It waits in the shell: where programs are slow to start, a hundred counters that start one for each line leave no time for anything else.
var counter = fmt.Sprintf("sleep 1000000 | { i=0; while :; do i=$((i+1)); echo $i; read -t %g; done; }", harness.Patience(100*time.Millisecond).Seconds())

// wantCounted fails unless the lines are 1, 2, 3… at least up to atLeast.
func wantCounted(t *testing.T, c *harness.Container, atLeast int) {
	t.Helper()
	wantCountedBut(t, c, atLeast, 0)
}

// wantCountedBut is wantCounted after so many keepers were killed: what one has read and not yet written goes with it. Nothing may be
// torn or doubled all the same.
func wantCountedBut(t *testing.T, c *harness.Container, atLeast, keepersKilled int) {
	t.Helper()
	var texts []string
	harness.Eventually(t, 20*time.Second, fmt.Sprintf("%d lines of %s", atLeast, c.Config.Metadata.Name), func() error {
		if texts = harness.Texts(c.Log(t), "stdout"); len(texts) < atLeast {
			return fmt.Errorf("there are %d", len(texts))
		}
		return nil
	})
	last, gaps := 0, 0
	for i, text := range texts {
		n, err := strconv.Atoi(text)
		if err != nil || n <= last {
			t.Fatalf("%s: line %d is %q, after %d", c.Config.Metadata.Name, i+1, text, last)
		}
		if n > last+1 {
			gaps++
		}
		if last = n; gaps > keepersKilled {
			t.Fatalf("%s: line %d is %q, the %d. gap", c.Config.Metadata.Name, i+1, text, gaps)
		}
	}
}

func TestRestartWithTwentyPods(t *testing.T) {
	n := ownNode(t)
	var pods []*harness.Pod
	var containers []*harness.Container
	for i := range 20 {
		pod := n.RunPod(t, fmt.Sprintf("pod-%d", i))
		pods = append(pods, pod)
		containers = append(containers, pod.Sh(t, fmt.Sprintf("c-%d", i), counter))
	}
	type seen struct {
		IPs                []string
		Created, Started   int64
		PodCreated         int64
		State              cri.ContainerState
		ImageID, ImageRef  string
		Labels, Annotation string
	}
	look := func(i int) seen {
		p, c := pods[i].Status(t), containers[i].Status(t)
		return seen{pods[i].IPs(t), c.CreatedAt, c.StartedAt, p.CreatedAt, c.State, c.ImageId, c.ImageRef, fmt.Sprint(c.Labels), fmt.Sprint(c.Annotations)}
	}
	var before []seen
	for i := range pods {
		before = append(before, look(i))
	}

	for range 3 {
		n.Restart(t)
	}

	list, err := n.Runtime.ListPodSandbox(harness.Ctx(t), &cri.ListPodSandboxRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if len(list.Items) != len(pods) {
		t.Errorf("%d pods after the restarts, want %d", len(list.Items), len(pods))
	}
	for i := range pods {
		if after := look(i); fmt.Sprint(after) != fmt.Sprint(before[i]) {
			t.Errorf("pod %d was\n%+v and is\n%+v", i, before[i], after)
		}
		if got := containers[i].Exec(t, "hostname"); got != fmt.Sprintf("pod-%d", i) {
			t.Errorf("exec in pod %d: %q", i, got)
		}
	}
	for _, c := range containers {
		count := len(harness.Texts(c.Log(t), "stdout"))
		harness.Eventually(t, 20*time.Second, "the log to go on", func() error {
			lines, err := harness.ReadLog(c.LogPath())
			if err == nil && len(lines) < count+3 {
				err = fmt.Errorf("%d lines", len(lines))
			}
			return err
		})
		wantCounted(t, c, count)
	}
	// A new pod gets an address that none of the old ones has.
	fresh := n.RunPod(t, "fresh").IPs(t)
	for i := range pods {
		if slices.Contains(before[i].IPs, fresh[0]) {
			t.Errorf("pod %d and a new one both have %s", i, fresh[0])
		}
	}
}

// With the daemon dead, logs are written on and exit codes are kept.
func TestKilledDaemonLosesNothing(t *testing.T) {
	n := ownNode(t)
	pod := n.RunPod(t, "survivor")
	counts := pod.Sh(t, "counts", counter)
	ends := pod.Sh(t, "ends", `echo first; sleep 2; head -c 300000 /dev/zero | tr "\0" x | fold -w 1000; echo; echo last; exit 42`)
	waitForText(t, ends, "stdout", "first")

	n.Kill9(t)
	away := time.Now()
	harness.Eventually(t, 30*time.Second, "the container to end while the daemon is away", func() error {
		lines, err := harness.ReadLog(ends.LogPath())
		if err != nil {
			return err
		}
		if texts := harness.Texts(lines, "stdout"); texts[len(texts)-1] != "last" {
			return fmt.Errorf("%d lines", len(texts))
		}
		return nil
	})
	// Stay away for some seconds in any case: more than what a pipe holds has been written by then.
	time.Sleep(time.Until(away.Add(5 * time.Second)))
	written := len(harness.Texts(counts.Log(t), "stdout"))
	if err := n.Start(); err != nil {
		t.Fatal(err)
	}

	s := ends.Status(t)
	if s.State != cri.ContainerState_CONTAINER_EXITED || s.ExitCode != 42 || s.Reason != "Error" {
		t.Errorf("the container that ended meanwhile: %v", s)
	}
	texts := harness.Texts(ends.Log(t), "stdout")
	if len(texts) != 302 || strings.Count(strings.Join(texts, ""), "x") != 300000 {
		t.Errorf("its log has %d lines and %d characters", len(texts), strings.Count(strings.Join(texts, ""), "x"))
	}
	if s := counts.Status(t); s.State != cri.ContainerState_CONTAINER_RUNNING {
		t.Errorf("the other container: %v", s)
	}
	wantCounted(t, counts, written)
	if got := counts.Exec(t, "echo", "alive"); got != "alive" {
		t.Errorf("exec: %q", got)
	}
}

// A stop that was under way when the daemon died goes on with what is left of its grace period.
func TestStopGoesOnAfterAKill(t *testing.T) {
	n := ownNode(t)
	c := n.RunPod(t, "stubborn").Sh(t, "app", `trap "" TERM; echo ready; while :; do sleep 1; done`)
	waitForText(t, c, "stdout", "ready")
	grace := harness.Patience(8 * time.Second)
	stopping := make(chan struct{})
	go func() {
		defer close(stopping)
		_, _ = n.Runtime.StopContainer(harness.Ctx(t), &cri.StopContainerRequest{ContainerId: c.ID, Timeout: int64(grace / time.Second)})
	}()
	begun := time.Now()
	time.Sleep(harness.Patience(time.Second)) // the call is on record by then
	n.Kill9(t)
	<-stopping
	if err := n.Start(); err != nil {
		t.Fatal(err)
	}
	if s := c.WaitExit(t); s.ExitCode != 137 {
		t.Errorf("exit code %d", s.ExitCode)
	}
	if took := time.Since(begun); took > 3*grace {
		t.Errorf("the stop took %s, with a grace period of %s", took, grace)
	}
}

// Killed in the middle of many starts, the daemon comes back, and what it was doing can be done again.
func TestKilledWhileStarting(t *testing.T) {
	n := ownNode(t)
	n.NeedImage(t, images.Tools)
	var configs []*cri.PodSandboxConfig
	for i := range 12 {
		configs = append(configs, n.PodConfig(fmt.Sprintf("cut-%d", i)))
	}
	namespaces := func() []string {
		paths, err := filepath.Glob("/run/netns/*")
		if err != nil {
			t.Fatal(err)
		}
		return paths
	}
	before := namespaces()
	for _, pause := range []time.Duration{3, 11, 25, 60} {
		var all sync.WaitGroup
		for _, config := range configs {
			all.Go(func() {
				// Whether a call is answered before the kill does not matter.
				_, _ = n.Runtime.RunPodSandbox(harness.Ctx(t), &cri.RunPodSandboxRequest{Config: config})
			})
		}
		time.Sleep(pause * time.Millisecond)
		n.Kill9(t)
		all.Wait()
		if err := n.Start(); err != nil {
			t.Fatal(err)
		}
	}
	var ids []string
	for _, config := range configs {
		resp, err := n.Runtime.RunPodSandbox(harness.Ctx(t), &cri.RunPodSandboxRequest{Config: config})
		if err != nil {
			t.Errorf("%s again: %v", config.Metadata.Name, err)
			continue
		}
		ids = append(ids, resp.PodSandboxId)
		pod := &harness.Pod{Node: n, ID: resp.PodSandboxId, Config: config}
		if got := pod.Idle(t, "app").Exec(t, "hostname"); got != config.Hostname {
			t.Errorf("%s: hostname %q", config.Metadata.Name, got)
		}
	}
	if after := namespaces(); len(after) != len(before)+len(ids) {
		t.Errorf("pods %v, and these network namespaces: %v", ids, after)
	}
}
