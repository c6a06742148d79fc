package spec

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
	"tags.cncf.io/container-device-interface/pkg/cdi"
	"tags.cncf.io/container-device-interface/pkg/parser"

	"github.com/berth-node/berth/internal/errdefs"
)

// CDIDevices are the fully qualified names (vendor/class=device) that a request asks for: by CDI_devices first, then by
// annotations "cdi.k8s.io/…". Each is named once.
func CDIDevices(container *cri.ContainerConfig) ([]string, error) {
	var names []string
	for _, d := range container.GetCDIDevices() {
		if !parser.IsQualifiedName(d.GetName()) {
			return nil, invalid("CDI_devices", "%q is not a qualified name", d.GetName())
		}
		names = append(names, d.GetName())
	}
	annotated := maps.Clone(container.GetAnnotations())
	maps.DeleteFunc(annotated, func(k, _ string) bool { return !strings.HasPrefix(k, cdi.AnnotationPrefix) })
	for _, key := range slices.Sorted(maps.Keys(annotated)) {
		_, more, err := cdi.ParseAnnotations(map[string]string{key: annotated[key]})
		if err != nil {
			return nil, fmt.Errorf("annotation %s: %w: %w", key, err, errdefs.ErrInvalidArgument)
		}
		names = append(names, more...)
	}
	return unique(names), nil
}

// ApplyCDI adds devices of the container device interface to a spec. Their descriptions are read from dirs (nil: the
// usual ones, /etc/cdi and /var/run/cdi) each time, since drivers write them just before the container is created. A
// device that is not described is ErrInvalidArgument.
func ApplyCDI(s *specs.Spec, devices, dirs []string) error {
	if len(devices) == 0 {
		return nil
	}
	options := []cdi.Option{cdi.WithAutoRefresh(false)}
	if dirs != nil {
		options = append(options, cdi.WithSpecDirs(dirs...))
	}
	// A broken description of another vendor is no reason to fail: what counts is whether these devices are found.
	cache, err := cdi.NewCache(options...)
	if err != nil {
		return fmt.Errorf("CDI: %w", err)
	}
	if _, err := cache.InjectDevices(s, devices...); err != nil {
		return fmt.Errorf("CDI_devices: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	return nil
}
