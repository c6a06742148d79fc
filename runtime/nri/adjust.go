package nri

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/containerd/nri/pkg/api"
	nrigen "github.com/containerd/nri/pkg/runtime-tools/generate"
	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/opencontainers/runtime-tools/generate"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/berth-node/berth/internal/errdefs"
)

// adjusted is a spec as plugins wish it: the given one if they wish nothing, else a changed copy.
func adjusted(from *specs.Spec, wishes *api.ContainerAdjustment, injectCDI func(*specs.Spec, []string) error) (*specs.Spec, error) {
	if wishes == nil || wishless(wishes.ProtoReflect()) {
		return from, nil
	}
	if len(wishes.GetCDIDevices()) > 0 && injectCDI == nil {
		return nil, fmt.Errorf("CDI devices: %w", errdefs.ErrUnimplemented)
	}
	s, err := clone(from)
	if err != nil {
		return nil, err
	}
	base := generate.NewFromSpec(s)
	generator := nrigen.SpecGenerator(&base,
		nrigen.WithCDIDeviceInjector(injectCDI),
		nrigen.WithRdtResolver(func(class string) (*specs.LinuxIntelRdt, error) {
			return &specs.LinuxIntelRdt{ClosID: class}, nil
		}),
		// Without a resolver the library would pass over the class in silence.
		nrigen.WithBlockIOResolver(func(class string) (*specs.LinuxBlockIO, error) {
			return nil, fmt.Errorf("block I/O class %q: this runtime has no such classes: %w", class, errdefs.ErrUnimplemented)
		}),
	)
	if err := generator.Adjust(wishes); err != nil {
		return nil, err
	}
	adjustMemory(from, s, wishes.GetLinux().GetResources())
	if s.Process != nil {
		s.Process.Rlimits = lastRlimits(s.Process.Rlimits)
	}
	return s, nil
}

// adjustMemory does what the library does not: it passes over all of memory but the limit, and with that sets the same for
// memory and swap together. Here this stays as it was unless a plugin wishes it changed.
func adjustMemory(from, to *specs.Spec, wishes *api.LinuxResources) {
	wished := wishes.ToOCI()
	if wished == nil || *wished.Memory == (specs.LinuxMemory{}) {
		return
	}
	if to.Linux.Resources == nil {
		to.Linux.Resources = &specs.LinuxResources{}
	}
	if to.Linux.Resources.Memory == nil {
		to.Linux.Resources.Memory = &specs.LinuxMemory{}
	}
	m, w := to.Linux.Resources.Memory, wished.Memory
	m.Swap = nil
	if from.Linux != nil && from.Linux.Resources != nil && from.Linux.Resources.Memory != nil {
		m.Swap = from.Linux.Resources.Memory.Swap
	}
	wish(&m.Swap, w.Swap)
	wish(&m.Reservation, w.Reservation)
	wish(&m.Swappiness, w.Swappiness)
	wish(&m.DisableOOMKiller, w.DisableOOMKiller)
}

// wish grants what is wished, if anything is.
func wish[T any](to **T, wished *T) {
	if wished != nil {
		*to = wished
	}
}

// withRemovals adds to the wishes what plugins want removed, variables and devices, of the spec: the library loses these
// unless something else takes their place. It does take them out of the message that the plugins are shown one by one, so
// what is missing there at the end was removed.
func withRemovals(wishes *api.ContainerAdjustment, s *specs.Spec, shown *api.Container) *api.ContainerAdjustment {
	if wishes == nil || s == nil {
		return wishes
	}
	if s.Process != nil {
		kept := make(map[string]bool, len(shown.GetEnv())) // there may be a million
		for _, kv := range shown.GetEnv() {
			name, _, _ := strings.Cut(kv, "=")
			kept[name] = true
		}
		for _, kv := range s.Process.Env {
			if name, _, _ := strings.Cut(kv, "="); !kept[name] {
				wishes.RemoveEnv(name)
			}
		}
	}
	if s.Linux != nil {
		for _, d := range s.Linux.Devices {
			at := func(shown *api.LinuxDevice) bool { return shown.GetPath() == d.Path }
			if !slices.ContainsFunc(shown.GetLinux().GetDevices(), at) {
				wishes.RemoveDevice(d.Path)
			}
		}
	}
	return wishes
}

// frames are messages that hold wishes, which the library always sends. Other messages are a wish even if they are empty: "none".
var frames = map[protoreflect.Name]bool{
	"ContainerAdjustment": true, "LinuxContainerAdjustment": true, "LinuxResources": true, "LinuxMemory": true, "LinuxCPU": true,
	"Hooks": true,
}

// wishless reports whether nothing is set in a message, down to its last frame.
func wishless(m protoreflect.Message) bool {
	none := true
	m.Range(func(field protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		frame := field.Message() != nil && !field.IsList() && !field.IsMap() && frames[field.Message().Name()]
		none = frame && wishless(v.Message())
		return none
	})
	return none
}

// clone copies a spec by its form on disk, which is what the runtime makes of it anyway.
func clone(s *specs.Spec) (*specs.Spec, error) {
	data, err := json.Marshal(s)
	if err != nil {
		return nil, err
	}
	var out specs.Spec
	return &out, json.Unmarshal(data, &out)
}

// lastRlimits keeps the last one of each type, since the library adds those of plugins at the end and the runtime spec
// allows one only.
func lastRlimits(in []specs.POSIXRlimit) []specs.POSIXRlimit {
	var out []specs.POSIXRlimit
	place := map[string]int{}
	for _, r := range in {
		if i, twice := place[r.Type]; twice {
			out[i] = r
			continue
		}
		place[r.Type] = len(out)
		out = append(out, r)
	}
	return out
}
