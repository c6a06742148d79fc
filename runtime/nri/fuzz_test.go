package nri

import (
	"encoding/json"
	"testing"

	"github.com/containerd/nri/pkg/api"
	"github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/proto"
)

// Plugins wish what they like: it becomes a spec that can be written down, or an error, and the given one stays as it was.
func FuzzAdjust(f *testing.F) {
	for _, w := range []*api.ContainerAdjustment{
		{Env: []*api.KeyValue{{Key: "A", Value: "b"}, {Key: "-A"}}, Mounts: []*api.Mount{{Destination: "/x", Source: "/y", Type: "bind"}}},
		{Linux: &api.LinuxContainerAdjustment{Resources: &api.LinuxResources{Memory: &api.LinuxMemory{Limit: api.Int64(5)}}, Devices: []*api.LinuxDevice{{Path: "/dev/x", Type: "c"}}}},
		{Rlimits: []*api.POSIXRlimit{{Type: "RLIMIT_NOFILE", Hard: 5, Soft: 5}}, Hooks: &api.Hooks{Prestart: []*api.Hook{{Path: "/x"}}}},
	} {
		data, err := proto.Marshal(w)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		var wishes api.ContainerAdjustment
		if proto.Unmarshal(data, &wishes) != nil {
			return
		}
		from := &specs.Spec{Process: &specs.Process{Env: []string{"A=1"}}, Linux: &specs.Linux{Resources: &specs.LinuxResources{}}, Root: &specs.Root{}}
		before, err := json.Marshal(from)
		if err != nil {
			t.Fatal(err)
		}
		s, err := adjusted(from, &wishes, nil)
		if err == nil {
			if _, err := json.Marshal(s); err != nil {
				t.Error(err)
			}
		}
		if after, err := json.Marshal(from); err != nil || string(after) != string(before) {
			t.Errorf("the given spec was\n%s\nand is\n%s", before, after)
		}
	})
}
