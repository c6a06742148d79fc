package volume

import (
	"fmt"
	"os"
	"path"
	"strings"

	v1 "k8s.io/api/core/v1"
	podutil "k8s.io/kubernetes/pkg/api/v1/pod"
)

// makeNested makes the folders in a read-only volume on which containers mount other volumes: nobody can make them later.
func makeNested(pod *v1.Pod, volume, dir string) error {
	points := nestedPoints(pod, volume)
	if len(points) == 0 {
		return nil
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	for _, p := range points {
		if st, err := root.Stat(p); err == nil && st.IsDir() {
			continue
		}
		if err := root.MkdirAll(p, 0o755); err != nil {
			return fmt.Errorf("unable to create nested volume mountpoints: %w", err)
		}
	}
	return nil
}

// nestedPoints are the places in the volume, relative to it, where containers mount others right into it.
func nestedPoints(pod *v1.Pod, volume string) (points []string) {
	podutil.VisitContainers(&pod.Spec, podutil.AllContainers, func(c *v1.Container, _ podutil.ContainerType) bool {
		for i := range c.VolumeMounts {
			if m := &c.VolumeMounts[i]; m.Name == volume && m.SubPath == "" && m.SubPathExpr == "" {
				points = append(points, pointsBelow(c, path.Clean(m.MountPath))...)
			}
		}
		return true
	})
	return points
}

func pointsBelow(c *v1.Container, top string) (points []string) {
	for i := range c.VolumeMounts {
		at := path.Clean(c.VolumeMounts[i].MountPath)
		if rest, below := strings.CutPrefix(at, strings.TrimSuffix(top, "/")+"/"); below && nearest(c, at) == top {
			points = append(points, rest)
		}
	}
	return points
}

// nearest is the place of the innermost mount that has another one at this place in it.
func nearest(c *v1.Container, at string) (top string) {
	for i := range c.VolumeMounts {
		p := path.Clean(c.VolumeMounts[i].MountPath)
		if p != at && strings.HasPrefix(at, strings.TrimSuffix(p, "/")+"/") && len(p) > len(top) {
			top = p
		}
	}
	return top
}
