package server

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	stats "k8s.io/kubelet/pkg/apis/stats/v1alpha1"
)

func TestPort(t *testing.T) {
	n := newNode(t)
	n.put("default", "web", func(p *v1.Pod) { p.Status.ContainerStatuses[0].Image = "i" })
	n.put("default", "waits", func(p *v1.Pod) { p.Status.ContainerStatuses = nil })
	if err := os.WriteFile(filepath.Join(n.dir, "log"), []byte("2026-01-02T03:04:05Z stdout F one\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	c := door(t, n.server().Port())
	for path, want := range map[string]string{
		"/healthz":                        "ok",
		"/pods":                           `"kind":"PodList"`,
		"/configz":                        "kubeletconfig",
		"/containerLogs/default/web/main": "one\n",
		"/stats/summary":                  `"usageNanoCores":250000000`,
		"/metrics/resource":               `container_memory_working_set_bytes{container="main",namespace="default",pod="web"} 6.7108864e+07`,
		"/metrics/cadvisor":               `container_cpu_usage_seconds_total{pod="web"} 7`,
		"/metrics/probes":                 "",
		"/metrics":                        `kubelet_running_pods 1`,
		"/runningpods/":                   `{"metadata":{"name":"web","namespace":"default","uid":"uid-web"},"spec":{"containers":[{"name":"main","image":"i","resources":{}}]},"status":{}}`,
	} {
		if code, body := request(t, c, http.MethodGet, path, "", ""); code != 200 || !strings.Contains(body, want) {
			t.Errorf("%s: %d %s, want %s", path, code, body, want)
		}
	}
	for path, want := range map[string]int{
		"/exec/default/web/main?command=x": 400, "/exec/default/none/main?output=1&command=x": 404,
		"/exec/default/web/another-uid/main?output=1&command=x": 404, "/logs/": 404, "/run/default/web/main": 404, "/debug/pprof/": 404,
	} {
		if code, body := request(t, c, http.MethodGet, path, "", ""); code != want {
			t.Errorf("%s: %d %s, want %d", path, code, body, want)
		}
	}
}

// TestSummaryOfStorage has a pod with a volume of each sort: what goes with the pod, and what stays or is memory.
func TestSummaryOfStorage(t *testing.T) {
	n := newNode(t)
	n.put("default", "web", func(p *v1.Pod) {
		p.Spec.Volumes = []v1.Volume{
			{Name: "scratch", VolumeSource: v1.VolumeSource{EmptyDir: &v1.EmptyDirVolumeSource{}}},
			{Name: "memory", VolumeSource: v1.VolumeSource{EmptyDir: &v1.EmptyDirVolumeSource{Medium: v1.StorageMediumMemory}}},
			{Name: "conf", VolumeSource: v1.VolumeSource{ConfigMap: &v1.ConfigMapVolumeSource{}}},
			{Name: "hidden", VolumeSource: v1.VolumeSource{Secret: &v1.SecretVolumeSource{}}},
			{Name: "data", VolumeSource: v1.VolumeSource{PersistentVolumeClaim: &v1.PersistentVolumeClaimVolumeSource{ClaimName: "mine"}}},
		}
	})
	logs := filepath.Join(n.dir, "logs")
	if err := os.Mkdir(logs, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(logs, "0.log"), make([]byte, 10_000), 0o600); err != nil {
		t.Fatal(err)
	}
	s := n.server()
	c := door(t, s.Port())
	var summary stats.Summary
	_, body := request(t, c, http.MethodGet, "/stats/summary", "", "")
	if err := json.Unmarshal([]byte(body), &summary); err != nil || len(summary.Pods) != 1 {
		t.Fatalf("%v: %s", err, body)
	}
	pod := summary.Pods[0]
	var names []string
	for _, v := range pod.VolumeStats {
		names = append(names, fmt.Sprintf("%s=%d", v.Name, *v.UsedBytes))
		if *v.CapacityBytes != 9000 || *v.AvailableBytes != 8000 || *v.Inodes != 700 || *v.InodesFree != 600 {
			t.Errorf("%s: %+v", v.Name, v.FsStats)
		}
		if (v.PVCRef != nil) != (v.Name == "data") {
			t.Errorf("%s: %+v", v.Name, v.PVCRef)
		}
	}
	if got, want := strings.Join(names, " "), "scratch=1000 conf=4000 memory=2000 hidden=8000 data=16000"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	main := pod.Containers[0]
	if main.Logs == nil || *main.Logs.UsedBytes < 10_000 || *main.Logs.InodesUsed != 2 || main.Logs.CapacityBytes == nil {
		t.Fatalf("logs: %+v", main.Logs)
	}
	if *main.Rootfs.UsedBytes != 300 || main.Rootfs.AvailableBytes == nil {
		t.Errorf("root: %+v", main.Rootfs)
	}
	if got, want := *pod.EphemeralStorage.UsedBytes, 300+*main.Logs.UsedBytes+1000+4000+50000; got != want {
		t.Errorf("all takes %d, want %d", got, want)
	}
	_, metrics := request(t, c, http.MethodGet, "/metrics", "", "")
	if want := `kubelet_volume_stats_used_bytes{namespace="default",persistentvolumeclaim="mine"} 16000`; !strings.Contains(metrics, want) {
		t.Errorf("no %s in\n%s", want, metrics)
	}
	if n.measured != 1 {
		t.Errorf("the volumes were measured %d times within a minute", n.measured)
	}
	if _, body := request(t, c, http.MethodGet, "/stats/summary?only_cpu_and_memory=true", "", ""); strings.Contains(body, "rootfs") || strings.Contains(body, "volume") {
		t.Errorf("not only CPU and memory: %s", body)
	}
	s.cfg.Now = func() time.Time { return start.Add(2 * volumeAge) }
	request(t, c, http.MethodGet, "/stats/summary", "", "")
	if n.measured != 2 {
		t.Errorf("after a while the volumes have been measured %d times", n.measured)
	}
}
