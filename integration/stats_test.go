//go:build integration

package integration

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-node/berth/integration/harness"
	"github.com/berth-node/berth/integration/images"
)

func TestStats(t *testing.T) {
	n := sharedNode(t)
	pod := n.RunPod(t, "stats")
	app := pod.Sh(t, "app", "dd if=/dev/zero of=/file bs=1M count=3 2>/dev/null; i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done; echo ready; sleep 1000")
	waitForText(t, app, "stdout", "ready")
	resp, err := n.Runtime.ContainerStats(harness.Ctx(t), &cri.ContainerStatsRequest{ContainerId: app.ID})
	if err != nil {
		t.Fatal(err)
	}
	s := resp.Stats
	if s.GetAttributes().GetId() != app.ID || s.GetCpu().GetUsageCoreNanoSeconds().GetValue() == 0 || s.GetCpu().GetTimestamp() == 0 ||
		s.GetMemory().GetWorkingSetBytes().GetValue() == 0 || s.GetMemory().GetTimestamp() == 0 {
		t.Errorf("incomplete: %v", s)
	}
	harness.Eventually(t, 30*time.Second, "the writable layer to be counted", func() error {
		resp, err := n.Runtime.ContainerStats(harness.Ctx(t), &cri.ContainerStatsRequest{ContainerId: app.ID})
		if got := resp.GetStats().GetWritableLayer().GetUsedBytes().GetValue(); err == nil && got < 3<<20 {
			err = fmt.Errorf("%d bytes", got)
		}
		return err
	})
	created := pod.Create(t, harness.ContainerConfig("created", images.Tools, "true"))
	if resp, err = n.Runtime.ContainerStats(harness.Ctx(t), &cri.ContainerStatsRequest{ContainerId: created.ID}); err != nil || resp.Stats.GetAttributes().GetId() != created.ID {
		t.Errorf("of a container that is not started: %v, %v", resp, err)
	}
	list, err := n.Runtime.ListContainerStats(harness.Ctx(t), &cri.ListContainerStatsRequest{Filter: &cri.ContainerStatsFilter{PodSandboxId: pod.ID}})
	if err != nil || !slices.ContainsFunc(list.Stats, func(s *cri.ContainerStats) bool { return s.GetAttributes().GetId() == app.ID }) {
		t.Errorf("list: %v, %v", list, err)
	}
}

func TestPodStats(t *testing.T) {
	n := sharedNode(t)
	pod := n.RunPod(t, "pod-stats")
	pod.Run(t, web(":80"))
	get(t, pod.IPs(t)[0]+":80")
	resp, err := n.Runtime.PodSandboxStats(harness.Ctx(t), &cri.PodSandboxStatsRequest{PodSandboxId: pod.ID})
	if err != nil {
		t.Fatal(err)
	}
	s := resp.Stats.GetLinux()
	if resp.Stats.GetAttributes().GetId() != pod.ID || len(s.GetContainers()) != 1 || s.GetCpu().GetTimestamp() == 0 || s.GetProcess().GetProcessCount().GetValue() == 0 {
		t.Errorf("incomplete: %v", resp.Stats)
	}
	if eth := s.GetNetwork().GetDefaultInterface(); eth.GetName() == "" || eth.GetRxBytes().GetValue() == 0 || eth.GetTxBytes().GetValue() == 0 {
		t.Errorf("network: %v", s.GetNetwork())
	}
}

// Every metric that is given was described, with as many label values as it has labels.
func TestMetrics(t *testing.T) {
	n := sharedNode(t)
	pod := n.RunPod(t, "metrics")
	app := pod.Idle(t, "app")
	described, err := n.Runtime.ListMetricDescriptors(harness.Ctx(t), &cri.ListMetricDescriptorsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	labels := map[string]int{}
	for _, d := range described.Descriptors {
		if !strings.HasPrefix(d.Name, "container_") && !strings.HasPrefix(d.Name, "machine_") || d.Help == "" {
			t.Errorf("descriptor %v", d)
		}
		labels[d.Name] = len(d.LabelKeys)
	}
	resp, err := n.Runtime.ListPodSandboxMetrics(harness.Ctx(t), &cri.ListPodSandboxMetricsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	check := func(metrics []*cri.Metric) {
		for _, m := range metrics {
			seen[m.Name] = true
			if want, ok := labels[m.Name]; !ok || want != len(m.LabelValues) {
				t.Errorf("%s has %d label values, described are %d", m.Name, len(m.LabelValues), want)
			}
		}
	}
	for _, p := range resp.PodMetrics {
		if p.PodSandboxId != pod.ID {
			continue
		}
		check(p.Metrics)
		if len(p.ContainerMetrics) != 1 || p.ContainerMetrics[0].ContainerId != app.ID {
			t.Errorf("containers: %v", p.ContainerMetrics)
			continue
		}
		check(p.ContainerMetrics[0].Metrics)
	}
	for _, want := range []string{"container_cpu_usage_seconds_total", "container_memory_working_set_bytes", "container_network_receive_bytes_total", "container_processes"} {
		if !seen[want] {
			t.Errorf("no %s", want)
		}
	}
}
