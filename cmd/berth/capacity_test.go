package main

import (
	"strings"
	"testing"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/berth-node/berth/internal/config"
)

// What is reserved is not for pods, and what eviction keeps free is not theirs to request.
func TestForPods(t *testing.T) {
	capacity := v1.ResourceList{
		v1.ResourceCPU: resource.MustParse("2"), v1.ResourceMemory: resource.MustParse("4Gi"),
		v1.ResourceEphemeralStorage: resource.MustParse("10Gi"), v1.ResourcePods: resource.MustParse("500"),
	}
	type settings = map[string]string
	none := settings{"memory.available": "0", "nodefs.available": "0%"}
	for name, c := range map[string]struct {
		kube, system, hard  settings
		usable, allocatable string // CPU, memory, storage, pods
		fault               string
	}{
		"nothing":          {hard: none, usable: "2 4Gi 10Gi 500", allocatable: "2 4Gi 10Gi 500"},
		"both":             {settings{"cpu": "100m", "memory": "512Mi"}, settings{"cpu": "0.4", "ephemeral-storage": "1Gi"}, none, "1500m 3584Mi 9Gi 500", "1500m 3584Mi 9Gi 500", ""},
		"eviction":         {settings{"memory": "1Gi"}, nil, settings{"memory.available": "1Gi", "nodefs.available": "10%"}, "2 3Gi 10Gi 500", "2 2Gi 9Gi 500", ""},
		"other signals":    {nil, nil, settings{"imagefs.available": "50%", "pid.available": "100", "memory.available": "0"}, "2 4Gi 10Gi 500", "2 4Gi 10Gi 500", ""},
		"too much":         {settings{"cpu": "1500m"}, settings{"cpu": "1"}, none, "", "", "keep more cpu from pods than there is, 2"},
		"too much for all": {settings{"memory": "3Gi"}, nil, settings{"memory.available": "2Gi"}, "", "", "keep more memory from pods than there is, 4Gi"},
		"no such resource": {settings{"pid": "100"}, nil, none, "", "", "kubelet.kubeReserved: pid: there is no such resource to reserve"},
		"no amount":        {nil, settings{"memory": "much"}, none, "", "", `kubelet.systemReserved: memory: want an amount, as 100m or 200Mi, not "much"`},
		"less than none":   {nil, settings{"memory": "-1Gi"}, none, "", "", "want an amount"},
	} {
		t.Run(name, func(t *testing.T) {
			usable, allocatable, err := forPods(capacity, &config.Kubelet{KubeReserved: c.kube, SystemReserved: c.system, EvictionHard: c.hard})
			if c.fault != "" {
				if err == nil || !strings.Contains(err.Error(), c.fault) {
					t.Errorf("%v", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			for what, l := range map[string]struct {
				list v1.ResourceList
				want string
			}{"usable": {usable, c.usable}, "allocatable": {allocatable, c.allocatable}} {
				if got := strings.Join([]string{l.list.Cpu().String(), l.list.Memory().String(), l.list.StorageEphemeral().String(), l.list.Pods().String()}, " "); got != l.want {
					t.Errorf("%s: %s, want %s", what, got, l.want)
				}
			}
		})
	}
	if capacity.Cpu().String() != "2" {
		t.Error("what the machine has was changed")
	}
}
