package spec

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
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
	if dirs == nil {
		dirs = cdi.DefaultSpecDirs
	}
	err := injectCDI(s, devices, dirs)
	if errors.Is(err, errCDIPanic) {
		err = errors.Join(err, brokenCDI(dirs))
	}
	return err
}

// errCDIPanic says that the library could not cope with a description: with null where it expects more, it panics.
var errCDIPanic = errors.New("the CDI descriptions cannot be read")

func injectCDI(s *specs.Spec, devices, dirs []string) (err error) {
	defer unpanic(&err)
	if err := checkCDIFiles(dirs); err != nil {
		return err
	}
	// A broken description of another vendor is no reason to fail: what counts is whether these devices are found.
	cache, err := cdi.NewCache(cdi.WithAutoRefresh(false), cdi.WithSpecDirs(dirs...))
	if err != nil {
		return fmt.Errorf("CDI: %w", err)
	}
	if _, err := cache.InjectDevices(s, devices...); err != nil {
		return fmt.Errorf("CDI_devices: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	return nil
}

// checkCDIFiles refuses what is neither file nor folder: the library would wait for a pipe to say something.
func checkCDIFiles(dirs []string) error {
	return eachCDIFile(dirs, func(file string) error {
		st, err := os.Stat(file)
		if err != nil || st.Mode().IsRegular() || st.IsDir() {
			return nil
		}
		return fmt.Errorf("CDI: %s is no regular file but %s: %w", file, st.Mode(), errdefs.ErrFailedPrecondition)
	})
}

// eachCDIFile joins the errors of check, which gets what the library reads.
func eachCDIFile(dirs []string, check func(file string) error) error {
	var errs []error
	for _, dir := range dirs {
		files, _ := filepath.Glob(filepath.Join(dir, "*")) // the library reads no folders in these
		for _, file := range files {
			if ext := filepath.Ext(file); ext == ".json" || ext == ".yaml" {
				errs = append(errs, check(file))
			}
		}
	}
	return errors.Join(errs...)
}

// brokenCDI names the files that the library panics at.
func brokenCDI(dirs []string) error {
	read := func(file string) (err error) {
		defer unpanic(&err)
		_, err = cdi.ReadSpec(file, 0)
		return err
	}
	return eachCDIFile(dirs, func(file string) error {
		if !errors.Is(read(file), errCDIPanic) {
			return nil
		}
		return fmt.Errorf("%s: %w", file, errdefs.ErrFailedPrecondition)
	})
}

func unpanic(err *error) {
	if p := recover(); p != nil {
		*err = fmt.Errorf("%w: %v", errCDIPanic, p)
	}
}
